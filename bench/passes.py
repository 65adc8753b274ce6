"""Milliseconds of a pass of decoding, as it is and replayed from a CUDA graph: what fixed shapes would save on a card.

    PYTHONPATH=. python bench/passes.py scratch/bench/3B/base      # after bench/gpu.py, on a card

The model of a folder, in bfloat16, with 400 tokens in the cache of every row (r1track/core/graphs.py). Medians of ten.
Also the image tower's time for crops of 336 px. Without a card there is no graph, and the times are those of a CPU.
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
from r1track.core.graphs import Graphs
from r1track.core.schema import Settings

BEFORE, COLUMNS = 400, 512  # tokens in the cache, and columns of a fixed one
ROWS, WIDTHS, MOST = (1, 8, 32), (1, 8, 16, 64), 512  # most tokens of a pass
console = Console(soft_wrap=True, highlight=False)


def milliseconds(work: Callable[[], Any]) -> float:
    spans = []
    for _ in range(12):
        wait()
        began = time.perf_counter()
        work()
        wait()
        spans.append(1e3 * (time.perf_counter() - began))
    return statistics.median(spans[2:])


def measure(loaded: models.Loaded, rows: int, width: int) -> dict[str, float]:
    """Milliseconds by kind of a pass over `width` tokens in each of `rows` rows."""
    model, device = loaded.model, loaded.device
    shape = model.config.get_text_config()
    heads, size = shape.num_key_value_heads, shape.hidden_size // shape.num_attention_heads
    cache: Any = DynamicCache(config=model.config)
    for layer in range(shape.num_hidden_layers):
        keys, values = torch.randn(2, rows, heads, BEFORE, size, dtype=model.dtype, device=device)
        cache.update(keys, values, layer)
    ids = torch.randint(5, 200, (rows, width), device=device)
    positions = torch.arange(BEFORE, BEFORE + width, device=device).expand(3, rows, width).contiguous()
    mask = torch.ones(rows, 1, width, BEFORE + width, dtype=torch.bool, device=device)

    def plain() -> None:
        named = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
        model(**named, past_key_values=cache, use_cache=True)
        cache.crop(-width)

    times = {"as it is": milliseconds(plain)}
    if torch.cuda.is_available():
        graphs = Graphs("bench/passes.py")
        fixed = graphs.hold(model, cache, copies=1, columns=COLUMNS, width=width)

        def replayed() -> None:
            graphs.replay(ids, positions, mask)
            fixed.crop(-width)

        times["from a graph"] = milliseconds(replayed)
    return times


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
