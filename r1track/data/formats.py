"""Formats: the formats of other tools for pairs, as Parquet files that hold the images, and the reader of one of them.

`easyr1` has the columns `images`, `problem` (the question, with `<image>` in the place of each image) and `answer`; a
data set on the hub in this format can be trained on (sample.hub). `sharegpt` has the columns `images` and `messages`.
`export` writes both.
"""

import io
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Image, List, Value, load_dataset
from PIL import Image as Picture

from r1track.core import boxes, prompts
from r1track.core.errors import UserError
from r1track.core.pairs import PairRow
from r1track.core.schema import Settings
from r1track.data import shards

COLUMNS = {
    "easyr1": {"images": List(Image()), "problem": Value("string"), "answer": Value("string")},
    "sharegpt": {"images": List(Image()), "messages": List({"role": Value("string"), "content": Value("string")})},
}


def plan(settings: Settings) -> tuple[dict[str, Any], dict[str, shards.Maker]]:
    """The manifest of the data set sample.hub, without what only the shards can tell, and the maker of every shard.

    The held-out rows are its split `test` or `validation` or, without either, random rows: it names no sequences.
    Raises UserError for a data set in another format.
    """
    sample, makers = settings.sample, dict[str, shards.Maker]()
    splits = load_dataset(str(sample.hub), revision=sample.hub_revision)
    missing = COLUMNS["easyr1"].keys() - set(splits["train"].column_names if "train" in splits else [])
    if missing:
        raise UserError(f"sample.hub = {sample.hub!r}: its split train lacks {sorted(missing)}; take another data set")
    if not splits.keys() & {"test", "validation"}:
        splits = splits["train"].train_test_split(sample.val_share, seed=settings.seed)
    val = splits["test"] if "test" in splits else splits["validation"]
    for name, rows, most in (("train", splits["train"], sample.pairs), ("val", val, sample.val_pairs)):
        rows = rows.select(range(min(most, len(rows)))).cast_column("images", List(Image(decode=False)))
        for k, start in enumerate(range(0, len(rows), sample.shard_rows)):
            part = rows.select(range(start, min(start + sample.shard_rows, len(rows))))
            makers[f"{name}/{name}-{k:05d}.parquet"] = partial(map, _pair, part)
    return {"hub": sample.hub, "revision": sample.hub_revision, "splits": {"train": {}, "val": {}}}, makers


def _pair(row: dict[str, Any]) -> PairRow | shards.Rejection:
    """A row in the format `easyr1` as a row of our shards, or why it is none; its last image is the search region."""
    images = [image["bytes"] or Path(image["path"]).read_bytes() for image in row["images"]]
    if len(images) < 2 or row["problem"].count(prompts.PLACE) != len(images):
        return "images do not fit their places in the problem"
    try:
        width, height = [Picture.open(io.BytesIO(image)).convert("RGB").size for image in images][-1]
    except OSError:
        return "image cannot be decoded"
    answer = prompts.parse_box(str(row["answer"]), size=width)
    if width != height or answer is None:
        return "answer is no box in a square search region"
    return {
        "images": [{"bytes": image, "path": None} for image in (images[0], images[-1], *images[1:-1])],
        "answer": boxes.clip(answer, width, height).tolist(), "size": width, "problem": row["problem"],
    }  # fmt: skip
