"""Formats: pairs as other tools hold them, as Parquet with the images inside, and pairs of ours made of them.

`easyr1` has `images`, `problem` (the question, `<image>` in each image's place) and `answer`; a data set of the hub in
this form can be trained on. `sharegpt` has `images` and `messages`. `export` writes both.
"""

import io
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Image, List, Value, load_dataset
from PIL import Image as Picture

from r1track.core import boxes, prompts
from r1track.core.schema import Settings
from r1track.data import shards

COLUMNS = {
    "easyr1": {"images": List(Image()), "problem": Value("string"), "answer": Value("string")},
    "sharegpt": {"images": List(Image()), "messages": List({"role": Value("string"), "content": Value("string")})},
}


def plan(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `sample` shall write of the data set sample.hub: the manifest beforehand, and the rows of each shard.

    Held out is its split `test` or `validation` or, without either, rows at random: it names no sequences. Raises
    ValueError for a data set of another form.
    """
    sample, makers = settings.sample, {}
    found = load_dataset(str(sample.hub), revision=sample.hub_revision)
    missing = COLUMNS["easyr1"].keys() - set(found["train"].column_names if "train" in found else [])
    if missing:
        raise ValueError(f"sample.hub = {sample.hub!r}: its split train lacks {sorted(missing)}; take another data set")
    if not found.keys() & {"test", "validation"}:
        found = found["train"].train_test_split(sample.val_share, seed=settings.seed)
    held = found["test"] if "test" in found else found["validation"]
    for name, rows, most in (("train", found["train"], sample.pairs), ("val", held, sample.val_pairs)):
        rows = rows.select(range(min(most, len(rows)))).cast_column("images", List(Image(decode=False)))
        for k, start in enumerate(range(0, len(rows), sample.shard_rows)):
            part = rows.select(range(start, min(start + sample.shard_rows, len(rows))))
            makers[f"{name}/{name}-{k:05d}.parquet"] = partial(map, _pair, part)
    return {"hub": sample.hub, "revision": sample.hub_revision, "splits": {"train": {}, "val": {}}}, makers


def _pair(row: dict[str, Any]) -> shards.Row | str:
    """A question and its answer as a pair of ours, or why they are none; the last image is the search region."""
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
    ordered = [{"bytes": image, "path": None} for image in (images[0], images[-1], *images[1:-1])]
    corners = boxes.clip(answer, width, height).tolist()
    return {"images": ordered, "answer": corners, "size": width, "problem": row["problem"]}
