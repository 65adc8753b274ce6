"""Pairs: the columns of the shards that `sample` writes, and how the other stages open them."""

from pathlib import Path

import PIL.Image
import pyarrow.parquet
from datasets import Dataset, Features, Image, List, Value, load_dataset

from r1track.core import prompts

_box = List(Value("float64"), length=4)
FEATURES = Features(
    {
        "images": List(Image()),
        "answer": _box,
        "template_box": _box,
        "second_box": _box,  # the target in a later template, the third image; null where there is none
        "sequence": Value("string"),
        "frames": List(Value("int32")),
        "gap": Value("int32"),
        "boxes": List(_box),
        "crops": List(List(Value("float64"))),
        "visibility": Value("float64"),
        "size": Value("int32"),
        "problem": Value("string"),  # another data set's own question, asked as it stands; null in pairs that we cut
    }
)


def load(folder: Path, *, cache: Path | None = None) -> Dataset:
    """The pairs of one split, as `sample` wrote them (`.../pairs/train` or `.../pairs/val`).

    cache: folder for a memory-mapped copy; without it all pairs are read into memory.
    Raises FileNotFoundError when there are none.
    """
    shards = sorted(str(p) for p in folder.glob("*.parquet"))
    if not shards:
        raise FileNotFoundError(f"{folder}: no Parquet shards; run `r1track sample` first")
    if cache is None:
        return Dataset(pyarrow.parquet.ParquetDataset(shards).read())
    return load_dataset("parquet", data_files=shards, split="train", cache_dir=str(cache))


def questions(pairs: Dataset, think: bool) -> list[prompts.Messages]:
    """The question of every pair, its own where it has one; its images go in the order of `prompts.places`."""
    rows = zip(pairs["problem"], pairs["template_box"], pairs["second_box"], strict=True)
    return [
        prompts.unflat(problem) if problem else prompts.build(box, second_box=second, think=think)
        for problem, box, second in rows
    ]


def held_out(folder: Path, count: int, think: bool) -> tuple[list[prompts.Messages], list[list[PIL.Image.Image]]]:
    """Questions and images of the first `count` held-out pairs of `folder` (`.../pairs`), at most."""
    rows = load(folder / "val")
    rows = rows.select(range(min(count, len(rows))))
    return questions(rows, think), [prompts.places(images) for images in rows["images"]]
