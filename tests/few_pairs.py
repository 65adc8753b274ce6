"""Settings of `sample` for a few pairs of the toy world, and what it wrote."""

from pathlib import Path
from typing import Any

from r1track.core import config, files
from r1track.core import pairs as pairs_module

FEW = {"pairs": 30, "val_pairs": 6, "val_share": 0.2, "shard_rows": 12, "max_gap": 8}


def settings(**changes: Any) -> config.Settings:
    return config.resolve({"preset": "demo", "sample": {**FEW, **changes}})


def rows(folder: Path) -> list[dict[str, Any]]:
    return pairs_module.load(folder).remove_columns("images").to_list()


def manifest(out: Path, split: str = "train") -> dict[str, Any]:
    return files.read_json(out / "manifest.json")["splits"][split]
