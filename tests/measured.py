"""What the plan of memory is compared with: a base of a middling shape, batches for it, and the bytes of tensors."""

import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from r1track.core import config
from r1track.preflight import memory

ROWS, IMAGES, WORDS, ANSWER = 2, 2, 160, 8
SIDE = 84  # pixels of an image: 36 patches, 9 tokens


def make(folder: Path, layers: int, depth: int, heads: int = 2) -> Path:
    """A folder with random weights of a middle-sized shape, with the proportions of the real ones."""
    text = {
        "hidden_size": 128 * heads, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 1,
        "intermediate_size": 688 * heads, "vocab_size": 1024, "bos_token_id": None, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {
        "depth": depth, "hidden_size": 160, "intermediate_size": 428, "num_heads": 2, "out_hidden_size": 128 * heads,
        "fullatt_block_indexes": [1, 3], "tokens_per_second": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    shape = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True,
        image_token_id=6, video_token_id=7, vision_start_token_id=3, vision_end_token_id=4,
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(shape).save_pretrained(folder)
    return folder


def settings(base: Path | str, dtype: str = "float32", **train: Any) -> config.Settings:
    values = {"shared_prefix": False, **train}
    return config.resolve({"preset": "demo", "model": {"base": str(base), "dtype": dtype}, "train": values})


def counted(base: Path, dtype: str = "float32", **train: Any) -> memory.Model:
    return memory.Model(settings(base, dtype, **train))


def plan_of(chosen: config.Settings, stage: str) -> memory.StagePlan:
    return next(each for each in memory.plan(chosen) if each.stage == stage)


def stored(tensors: Any) -> int:
    """Bytes of the tensors, each storage once."""
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(found.values())


def with_adapter(model: Any, vision: bool = False) -> Any:
    from peft import LoraConfig, get_peft_model

    wanted = [
        name
        for name, layer in model.named_modules()
        if "Linear" in type(layer).__name__ and ("language_model" in name or (vision and "visual" in name))
    ]
    adapted: Any = get_peft_model(model, LoraConfig(r=16, target_modules=wanted))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def question(rows: int = ROWS, words: int = WORDS) -> dict[str, torch.Tensor]:
    """A batch of prompts, the first with padding, each with IMAGES images."""
    image = [3, *[6] * (SIDE // 28) ** 2, 4]
    ids = torch.tensor([[9] * words + image * IMAGES] * rows)
    mask = torch.ones_like(ids)
    mask[0, : words // 4], ids[0, : words // 4] = 0, 0
    grid = torch.tensor([[1, SIDE // 14, SIDE // 14]] * (rows * IMAGES))
    kinds = (ids == 6).int()
    return {
        "input_ids": ids, "attention_mask": mask, "image_grid_thw": grid, "mm_token_type_ids": kinds,
        "pixel_values": torch.randn(int(grid.prod(1).sum()), 1176),
    }  # fmt: skip


class Living(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while they live, not of those that were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def _begin(self, values: Any, made: bool) -> None:
        for each in tree_iter(values):
            storage = each.untyped_storage() if isinstance(each, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.seen:
                size = storage.nbytes() if made else 0
                self.seen.add(storage._cdata)
                self.now += size
                weakref.finalize(storage, self._end, storage._cdata, size)

    def _end(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._begin((args, kwargs), made=False)
        result = function(*args, **(kwargs or {}))
        self._begin(result, made=True)
        self.peak = max(self.peak, self.now)
        return result
