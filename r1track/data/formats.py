"""Formats: the formats of other tools for pairs, as Parquet files that hold the images, and the reader of one of them.

`easyr1` has the columns `images`, `problem` (the question, with `<image>` in the place of each image) and `answer`; a
data set on the hub in this format can be trained on (sample.hub). `sharegpt` has the columns `images` and `messages`.
`export` writes both.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, List, Value, load_dataset
from datasets.exceptions import DatasetsError

from r1track.core import boxes, prompts
from r1track.core.crops import fits
from r1track.core.errors import UserError
from r1track.core.images import as_rgb, read_stored
from r1track.core.pairs import PairRow
from r1track.core.schema import Sample, Settings
from r1track.data import shards

COLUMNS = {
    "easyr1": {"images": List(Image()), "problem": Value("string"), "answer": Value("string")},
    "sharegpt": {"images": List(Image()), "messages": List({"role": Value("string"), "content": Value("string")})},
}


def plan(settings: Settings) -> tuple[dict[str, Any], dict[str, shards.Maker]]:
    """The manifest of the data set sample.hub, without what only the shards can tell, and the maker of every shard.

    The held-out rows are its split `test` or `validation` or, without either, random rows. Raises UserError for a data
    set that cannot be loaded, has another format or no rows.
    """
    sample, makers = settings.sample, dict[str, shards.Maker]()
    train, val = _splits(sample, settings.seed)
    pair = partial(_pair, folder=Path(str(sample.hub)))
    for name, rows, most in (("train", train, sample.pairs), ("val", val, sample.val_pairs)):
        if most and not len(rows):
            raise _refusal(sample, f"it has no rows for {name}")
        try:
            rows = rows.select(range(min(most, len(rows)))).cast_column("images", List(Image(decode=False)))
        except (TypeError, ValueError, NotImplementedError) as error:  # from datasets and from Arrow
            raise _refusal(sample, "its column images has no lists of images") from error
        for k, start in enumerate(range(0, len(rows), sample.shard_rows)):
            part = rows.select(range(start, min(start + sample.shard_rows, len(rows))))
            makers[f"{name}/{name}-{k:05d}.parquet"] = partial(map, pair, part)
    return {"hub": sample.hub, "revision": sample.hub_revision, "splits": {"train": {}, "val": {}}}, makers


def _splits(sample: Sample, seed: int) -> tuple[Dataset, Dataset]:
    """The rows for training and the held-out rows."""
    try:
        splits = load_dataset(str(sample.hub), revision=sample.hub_revision)
    except (FileNotFoundError, ConnectionError, ValueError, StopIteration, DatasetsError) as error:
        raise _refusal(sample, f"it cannot be loaded ({error.__cause__ or error})") from error
    if "train" not in splits:
        raise _refusal(sample, f"it has no split train, only {[*splits]}")
    train = splits["train"]
    if missing := COLUMNS["easyr1"].keys() - set(train.column_names):
        raise _refusal(sample, f"its split train lacks {sorted(missing)}")
    held_out = [splits[name] for name in ("test", "validation") if name in splits]
    if held_out or len(train) < 2:
        return train, (*held_out, train.select([]))[0]
    parts = train.train_test_split(min(len(train) - 1, math.ceil(sample.val_share * len(train))), seed=seed)
    return parts["train"], parts["test"]


def _refusal(sample: Sample, fault: str) -> UserError:
    return UserError(f"sample.hub = {sample.hub!r}: {fault}; give a data set in the format easyr1 (docs/sampling.md)")


def _pair(row: dict[str, Any], folder: Path) -> PairRow | shards.Rejection:
    """A row in the format `easyr1` as a row of our shards, or why it is none; its last image is the search region."""
    try:
        stored = [as_rgb(read_stored(image, "an image", folder), "an image") for image in row["images"] or []]
    except UserError as fault:
        return str(fault)
    images, problem = [image for image, _ in stored], row["problem"]
    if len(images) < 2 or not isinstance(problem, str) or problem.count(prompts.PLACE) != len(images):
        return "images do not fit their places in the problem"
    if not all(fits(size) for _, size in stored):
        return "an image is too narrow for the model"
    width, height = stored[-1][1]
    answer = prompts.parse_box(str(row["answer"]), size=width)
    if width != height or answer is None or not boxes.area(clipped := boxes.clip(answer, width, height)):
        return "answer is no box in a square search region"
    return {
        "images": [{"bytes": image, "path": None} for image in (images[0], images[-1], *images[1:-1])],
        "answer": clipped.tolist(), "size": width, "problem": problem,
    }  # fmt: skip
