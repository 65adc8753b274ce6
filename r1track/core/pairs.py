"""Pairs: the columns of the shards that `sample` writes, and how the other stages open them."""

import math
from pathlib import Path
from typing import NotRequired, TypedDict

import PIL.Image
import pyarrow.compute
import pyarrow.parquet
from datasets import Dataset, Features, Image, List, Value, load_dataset

from r1track.core import prompts
from r1track.core.errors import MissingFile, UserError

_box = List(Value("float64"), length=4)
FEATURES = Features(
    {
        "images": List(Image()),
        "answer": _box,
        "template_box": _box,
        "second_box": _box,
        "sequence": Value("string"),
        "frames": List(Value("int32")),
        "gap": Value("int32"),
        "boxes": List(_box),
        "crops": List(List(Value("float64"))),
        "visibility": Value("float64"),
        "size": Value("int32"),
        "problem": Value("string"),
    }
)


class PairRow(TypedDict):
    """A row of a shard. Boxes in crops are x1, y1, x2, y2 in pixels of the crop; boxes in frames x, y, w, h.

    The columns that need not be there are null in the pairs of sample.hub.
    """

    # Each has `bytes`, an image file, and no `path`: template, search region, then a later template if there is one.
    images: list[dict[str, bytes | None]]
    answer: list[float]  # the target in the search crop, clipped to it: x1, y1, x2, y2
    size: int  # side of the crops in their own pixels
    problem: str | None  # the question of another data set; null: `prompts.build` asks
    template_box: NotRequired[list[float]]  # the target in the template crop: x1, y1, x2, y2
    second_box: NotRequired[list[float] | None]  # the target in the later template's crop: x1, y1, x2, y2
    sequence: NotRequired[str]
    frames: NotRequired[list[int]]  # of the images, counted from 1
    gap: NotRequired[int]  # search frame minus template frame
    boxes: NotRequired[list[list[float]]]  # the target in these frames: x, y, w, h in image pixels
    crops: NotRequired[list[list[float]]]  # left, top and side of the crops, in image pixels
    visibility: NotRequired[float]  # of the target in the search frame, 0 to 1; NaN where unknown


def load(folder: Path, *, cache: Path | None = None) -> Dataset:
    """The pairs in the shards of a folder (`.../pairs/train` or `.../pairs/val`), with the columns FEATURES.

    cache: folder for a memory-mapped copy; without it all pairs are read into memory.
    Raises MissingFile when there is no shard, and UserError for a box that is not finite.
    """
    shards = sorted(str(p) for p in folder.glob("*.parquet"))
    if not shards:
        raise MissingFile(f"{folder}: no Parquet shards; run `r1track sample` first")
    if cache is None:
        pairs = Dataset(pyarrow.parquet.ParquetDataset(shards).read())
    else:
        pairs = load_dataset("parquet", data_files=shards, split="train", cache_dir=str(cache))
    for name in ("answer", "template_box", "second_box"):
        finite = pyarrow.compute.is_finite(pyarrow.compute.list_flatten(pairs.data.column(name)))
        if pyarrow.compute.all(finite).as_py() is False:  # null where all boxes are
            row, box = next((k, box) for k, box in enumerate(pairs[name]) if box and not all(map(math.isfinite, box)))
            raise UserError(f"{folder}: {name} of pair {row + 1} is {box}; run `r1track sample` again")
    return pairs


def questions(pairs: Dataset, think: bool) -> list[prompts.Messages]:
    """The question of every pair: its `problem`, or the tracking question; images in the order of `prompts.places`."""
    rows = zip(pairs["problem"], pairs["template_box"], pairs["second_box"], strict=True)
    return [
        prompts.unflat(problem) if problem else prompts.build(box, second_box=second, think=think)
        for problem, box, second in rows
    ]


def held_out(folder: Path, count: int, think: bool) -> tuple[list[prompts.Messages], list[list[PIL.Image.Image]]]:
    """Questions and images of the first `count` held-out pairs in `folder` (`.../pairs`), or of all where fewer."""
    rows = load(folder / "val")
    rows = rows.select(range(min(count, len(rows))))
    return questions(rows, think), [prompts.places(images) for images in rows["images"]]
