"""Pairs: the columns of the shards that `sample` writes, and how the other stages open them."""

import math
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, get_type_hints

import PIL.Image
import pyarrow.compute
import pyarrow.parquet
from datasets import Dataset, Features, Image, List, Value, load_dataset

from r1track.core import prompts
from r1track.core.errors import MissingFile, UserError, reading
from r1track.core.records import Record
from r1track.core.schema import Task

_number, _integer, _text = Value("float64"), Value("int32"), Value("string")
_box = List(_number)  # four; of lists with a fixed length pyarrow before 26 reads none that is null


class PairRow(TypedDict):
    """A row of a shard. Boxes in crops are x1, y1, x2, y2 in pixels of the crop; boxes in frames x, y, w, h.

    The columns that need not be there are null in the pairs of sample.hub, which alone have the column `thought`.
    """

    # Each has `bytes`, an image file, and no `path`: template, search region, then a later template if there is one.
    images: Annotated[list[dict[str, bytes | None]], List(Image())]
    answer: Annotated[list[float], _box]  # the target in the search crop, clipped to it; empty: it is not there
    template_box: Annotated[NotRequired[list[float]], _box]  # the target in the template crop
    second_box: Annotated[NotRequired[list[float] | None], _box]  # the target in the later template's crop
    sequence: Annotated[NotRequired[str], _text]
    frames: Annotated[NotRequired[list[int]], List(_integer)]  # of the images, counted from 1
    gap: Annotated[NotRequired[int], _integer]  # search frame minus template frame
    boxes: Annotated[NotRequired[list[list[float]]], List(_box)]  # the target in these frames, in image pixels
    crops: Annotated[NotRequired[list[list[float]]], List(List(_number))]  # their left, top, side, in image pixels
    visibility: Annotated[NotRequired[float], _number]  # of the target in the search frame, 0 to 1; NaN where unknown
    size: Annotated[int, _integer]  # side of the crops in their own pixels
    problem: Annotated[str | None, _text]  # the question of another data set; null: `prompts.question` asks
    thought: Annotated[NotRequired[str | None], _text]  # the text in <think> before another data set's answer, or null


_columns = {name: kind.__metadata__[0] for name, kind in get_type_hints(PairRow, include_extras=True).items()}
HUB_FEATURES = Features(_columns)
FEATURES = Features({name: column for name, column in _columns.items() if name != "thought"})
# Columns of numbers and names.
OTHERS = tuple(name for name in FEATURES if name not in ("images", "problem"))


class _PairsSettings(Record):
    task: Task


class PairsManifest(Record):
    """What of the manifest of pairs is read again."""

    settings: _PairsSettings


def shards(folder: Path) -> list[str]:
    """The paths of the shards in a folder of pairs, sorted. Raises MissingFile where there is none."""
    paths = sorted(map(str, folder.glob("*.parquet")))
    if not paths:
        raise MissingFile(f"{folder}: no Parquet shards; run `r1track sample` first")
    return paths


def load(folder: Path, *, cache: Path | None = None) -> Dataset:
    """The pairs in the shards of a folder (`.../pairs/train` or `.../pairs/val`), with the columns FEATURES.

    cache: folder for a memory-mapped copy; without it all pairs are read into memory.
    Raises MissingFile when there is no shard, and UserError for damaged ones and a box that is not four finite numbers.
    """
    files = shards(folder)
    remedy = "run `r1track sample` again"
    with reading(folder, remedy):
        if cache is None:
            pairs = Dataset(pyarrow.parquet.ParquetDataset(files).read())
        else:
            pairs = load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache))
        for name, lengths in {"answer": {0, 4}, "template_box": {4}, "second_box": {4}}.items():
            column = pairs.data.column(name)
            found = set(pyarrow.compute.list_value_length(column).unique().to_pylist()) - {None}
            finite = pyarrow.compute.all(pyarrow.compute.is_finite(pyarrow.compute.list_flatten(column))).as_py()
            if finite is False or not found <= lengths:  # null where all boxes are
                boxes = ((row, box) for row, box in enumerate(pairs[name], 1) if box is not None)
                row, box = next((n, b) for n, b in boxes if len(b) not in lengths or not all(map(math.isfinite, b)))
                raise UserError(f"{folder}: {name} of pair {row} is {box}; {remedy}")
    return pairs


def questions(pairs: Dataset, task: Task) -> list[prompts.Messages]:
    """The question of every pair: its `problem`, or the tracking question; images in the order of `prompts.places`."""
    rows = zip(pairs["problem"], pairs["template_box"], pairs["second_box"], strict=True)
    return [
        prompts.unflat(problem) if problem else prompts.question(task, box, second) for problem, box, second in rows
    ]


def first_rows(folder: Path) -> list[dict[str, Any]]:
    """The first pair with a target and the first without, as far as the first shard of a folder has them; no images.

    Raises MissingFile when there is no shard.
    """
    rows = pyarrow.parquet.read_table(shards(folder)[0], columns=list(OTHERS)).to_pylist()
    return list({bool(row["answer"]): row for row in reversed(rows)}.values())


def held_out_rows(folder: Path, count: int) -> Dataset:
    """The first `count` held-out pairs in `folder` (`.../pairs`), or all where there are fewer."""
    rows = load(folder / "val")
    return rows.select(range(min(count, len(rows))))


def held_out(folder: Path, count: int, task: Task) -> tuple[list[prompts.Messages], list[list[PIL.Image.Image]]]:
    """Questions and images of `held_out_rows`."""
    rows = held_out_rows(folder, count)
    ordered = [prompts.places(*row) for row in zip(rows["images"], rows["problem"], strict=True)]
    return questions(rows, task), ordered
