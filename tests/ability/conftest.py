"""What tests of the questions and of the verdict share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from answers import write
from PIL import Image


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base that is asked 600 questions and answers each fifth wrongly."""
    return write(tmp_path / "base", range(0, 600, 5), self={"items": 300, "difference": 0.0, "changed": 0})


@pytest.fixture
def pictures(tmp_path: Path) -> list[dict[str, Any]]:
    """Two image files as `datasets` stores images, of 40 x 30 and 60 x 120 pixels."""
    stored_images = []
    for name, size in (("red", (40, 30)), ("blue", (60, 120))):
        Image.new("RGB", size, name).save(tmp_path / f"{name}.png")
        stored_images.append({"bytes": (tmp_path / f"{name}.png").read_bytes(), "path": None})
    return stored_images


@pytest.fixture
def stored(tmp_path: Path, pictures: list[dict[str, Any]]) -> Callable[..., str]:
    """A function that stores columns as a data set of the hub is stored, with the pictures in turn as its images."""

    def store(columns: dict[str, Any], split: str = "test", subset: str | None = None, **features: Any) -> str:
        many = len(next(iter(columns.values())))
        columns = {"image": [pictures[k % 2] for k in range(many)], **columns}
        table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        for name, feature in features.items():
            table = table.cast_column(name, feature)
        table.to_parquet(tmp_path / "stored" / f"{split}.parquet")
        form = {"config_name": subset or "default", "data_files": [{"split": split, "path": f"{split}.parquet"}]}
        (tmp_path / "stored" / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': [form]})}---\n")
        return str(tmp_path / "stored")

    return store
