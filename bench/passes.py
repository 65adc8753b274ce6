"""Milliseconds of a pass of decoding, as it is and replayed from a CUDA graph: what fixed shapes would save on a card.

    PYTHONPATH=. python bench/passes.py scratch/bench/3B/base      # after bench/gpu.py, on a card

The model of a folder, in bfloat16, with 400 tokens in the cache of every row. A graph replays the card's operations
without Python, so it needs a cache of fixed size. Medians of ten. Also the image tower's time for crops of 336 px.
Without a card there is no graph, and the times are those of a CPU.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import wait
from PIL import Image
from rich.console import Console
from transformers import DynamicCache

from r1track.core import models
from r1track.core.schema import Settings

BEFORE, LENGTH = 400, 512  # tokens in the cache, and columns of a fixed one
ROWS, WIDTHS, MOST = (1, 8, 32), (1, 8, 16, 64), 512  # most tokens of a pass
console = Console(soft_wrap=True, highlight=False)


class FixedCache:
    """Keys and values of every layer in tensors of one size; a pass writes behind the first BEFORE columns."""

    def __init__(self, like: DynamicCache):
        shape = (*like.layers[0].keys.shape[:2], LENGTH, like.layers[0].keys.shape[3])
        self.keys = [part.keys.new_zeros(shape) for part in like.layers]
        self.values = [part.values.new_zeros(shape) for part in like.layers]
        self.start = torch.tensor(BEFORE, device=like.layers[0].keys.device)

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        columns = self.start + torch.arange(keys.shape[2], device=keys.device)
        return self.keys[layer].index_copy_(2, columns, keys), self.values[layer].index_copy_(2, columns, values)

    def get_seq_length(self) -> int:
        return BEFORE


def milliseconds(work: Callable[[], Any]) -> float:
    spans = []
    for _ in range(12):
        wait()
        began = time.perf_counter()
        work()
        wait()
        spans.append(1e3 * (time.perf_counter() - began))
    return statistics.median(spans[2:])


def graph_of(work: Callable[[], Any]) -> Callable[[], None]:
    """The operations of `work`, recorded once, to be replayed."""
    side: Any = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


def measure(loaded: models.Loaded, rows: int, width: int) -> dict[str, float]:
    """Milliseconds by kind of a pass over `width` tokens in each of `rows` rows."""
    model, device = loaded.model, loaded.device
    text, shape = model.model.language_model, model.config.get_text_config()
    heads, size = shape.num_key_value_heads, shape.hidden_size // shape.num_attention_heads
    cache: Any = DynamicCache(config=model.config)
    for layer in range(shape.num_hidden_layers):
        keys, values = torch.randn(2, rows, heads, BEFORE, size, dtype=model.dtype, device=device)
        cache.update(keys, values, layer)
    ids = torch.randint(5, 200, (rows, width), device=device)
    positions = torch.arange(BEFORE, BEFORE + width, device=device).expand(3, rows, width).contiguous()
    mask = torch.ones(rows, 1, width, LENGTH, dtype=torch.bool, device=device)
    named = {"input_ids": ids, "position_ids": positions, "attention_mask": mask[..., : BEFORE + width]}

    def plain() -> None:
        model(**named, past_key_values=cache, use_cache=True)
        cache.crop(-width)

    fixed = FixedCache(cache)

    def steady() -> Any:
        masks, said = {"full_attention": mask}, text.embed_tokens(ids)
        hidden = text(inputs_embeds=said, position_ids=positions, attention_mask=masks, past_key_values=fixed)
        return model.lm_head(hidden.last_hidden_state)

    times = {"as it is": milliseconds(plain), "cache of fixed size": milliseconds(steady)}
    return times | ({"from a graph": milliseconds(graph_of(steady))} if device.type == "cuda" else {})


@torch.no_grad()
def main() -> None:
    loaded = models.load(sys.argv[1], Settings().model)
    console.print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no card")
    for rows in ROWS:
        for width in (width for width in WIDTHS if rows * width <= MOST):
            times = (f"{name} {value:.1f}" for name, value in measure(loaded, rows, width).items())
            console.print(f"{rows} rows of {width} tokens, ms:", ", ".join(times))
    for count in (1, 32):
        crops = [Image.new("RGB", (336, 336))] * count
        seen = loaded.processor.image_processor(images=crops, return_tensors="pt").to(loaded.device)
        pixels, grid = seen["pixel_values"].to(loaded.model.dtype), seen["image_grid_thw"]
        spent = milliseconds(lambda: loaded.model.model.visual(pixels, grid_thw=grid))  # noqa: B023
        console.print(f"image tower, {count} crops of 336 px, ms: {spent:.1f}")


if __name__ == "__main__":
    main()
