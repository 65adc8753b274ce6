"""Copies of a model's or an adapter's folder in which something is another's or wrong."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from r1track.core import files

Tensors = dict[str, torch.Tensor]


def edited(
    source: Path,
    folder: Path,
    weights: Callable[[Tensors], Tensors] | None = None,
    changes: dict[str, Any] | None = None,
) -> Path:
    """A copy of a model's or an adapter's folder, with other tensors or other values in its configuration."""
    shutil.copytree(source, folder)
    (file,) = folder.glob("*.safetensors")
    described = next(path for path in (folder / "adapter_config.json", folder / "config.json") if path.is_file())
    if weights:
        save_file(weights(load_file(file)), file, metadata={"format": "pt"})
    files.write_json(described, {**files.read_json(described), **(changes or {})})
    return folder


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {re.sub(old, new, name): value for name, value in tensors.items()}


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


NO_JSON = {
    "cut short": b'{"model_type": "qwen2_5_vl", ',
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "Latin-1": '{"über": 1}'.encode("latin-1"),
    "nested without end": b"[" * 100_000,
    "a number without end": b'{"model_type": ' + b"9" * 5000 + b"}",
}


def spoiled(name: str, value: float) -> Callable[[Tensors], Tensors]:
    def spoil(tensors: Tensors) -> Tensors:
        tensors[name].view(-1)[5] = value
        return tensors

    return spoil
