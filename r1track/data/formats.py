"""Formats: the formats of other tools for pairs, as Parquet files that hold the images, and the readers of two of them.

`easyr1` has the columns `images`, `problem` (the question, with `<image>` in the place of each image) and `answer`.
`sharegpt` has the columns `images` and `messages` (or `conversations`): question and answer, perhaps with thoughts.
A data set on the hub in one of these formats can be trained on (sample.hub). `export` writes both.
"""

import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, List, Value

from r1track.core import boxes, files, hub, prompts
from r1track.core.config_errors import PATCH
from r1track.core.crops import fits
from r1track.core.errors import UserError, environment_fault
from r1track.core.images import as_rgb, read_stored
from r1track.core.pairs import PairRow
from r1track.core.schema import Sample, Settings
from r1track.core.section import without_marks
from r1track.data import shards

log = logging.getLogger(__name__)
COLUMNS = {
    "easyr1": {"images": List(Image()), "problem": Value("string"), "answer": Value("string")},
    "sharegpt": {"images": List(Image()), "messages": List({"role": Value("string"), "content": Value("string")})},
}
TURNS = ("messages", "conversations")  # columns of the format sharegpt
SPEAKERS = {"human": "user", "gpt": "assistant"}  # its other names
HELD_OUT = ("val", "validation", "dev", "test")  # names of splits
SYSTEM = "You are a helpful assistant."  # what the chat template says anyway


def plan(settings: Settings) -> tuple[dict[str, Any], dict[str, shards.Maker]]:
    """The manifest of the data set sample.hub, without what only the shards can tell, and the maker of every shard.

    Rows are drawn with the seed from all of a split. The held-out ones are those of a split HELD_OUT or, without any,
    random rows of `train`. Raises UserError for a data set that cannot be loaded, has another format or no rows.
    """
    sample, makers = settings.sample, dict[str, shards.Maker]()
    train, val = _splits(sample, settings.seed)
    pair = partial(_pair, folder=Path(str(sample.hub)), settings=settings)
    for name, rows, most in (("train", train, sample.pairs), ("val", val, sample.val_pairs)):
        if most and not len(rows):
            raise _refusal(sample, f"it has no rows for {name}")
        drawn = np.random.default_rng([settings.seed, len(rows)]).permutation(len(rows))[:most]
        try:
            # Training draws again; of the held-out rows `merge` takes the first ones.
            rows = rows.select(sorted(drawn) if name == "train" else drawn)
            rows = rows.cast_column("images", List(Image(decode=False)))
        except (TypeError, ValueError, NotImplementedError) as error:  # from datasets and from Arrow
            raise _refusal(sample, "its column images has no lists of images") from error
        _compare_questions(rows, name, settings)
        for k, start in enumerate(range(0, len(rows), sample.shard_rows)):
            part = rows.select(range(start, min(start + sample.shard_rows, len(rows))))
            makers[f"{name}/{name}-{k:05d}.parquet"] = partial(map, pair, part)
    commit = hub.commit_of(train) if files.on_hub(str(sample.hub)) else None
    return {"hub": sample.hub, "revision": commit, "splits": {"train": {}, "val": {}}}, makers


def _splits(sample: Sample, seed: int) -> tuple[Dataset, Dataset]:
    """The rows for training and the held-out rows."""
    try:
        splits = hub.load_rows(str(sample.hub), None, None, sample.hub_revision)
    except Exception as error:
        if environment_fault(error):
            raise
        raise _refusal(sample, f"it cannot be loaded ({error.__cause__ or error})") from error
    if "train" not in splits:
        raise _refusal(sample, f"it has no split train, only {[*splits]}")
    train = splits["train"]
    needed = {"images"} if set(TURNS) & set(train.column_names) else COLUMNS["easyr1"].keys()
    if missing := needed - set(train.column_names):
        raise _refusal(sample, f"its split train lacks {sorted(missing)}")
    if held_out := [splits[name] for name in HELD_OUT if name in splits]:
        return train, held_out[0]
    count = min(len(train) - 1, math.ceil(sample.val_share * len(train)), sample.val_pairs)
    if count < 1:
        return train, train.select([])
    parts = train.train_test_split(count, seed=seed)
    return parts["train"], parts["test"]


def _refusal(sample: Sample, fault: str) -> UserError:
    return UserError(f"sample.hub = {sample.hub!r}: {fault}; give a data set in the format easyr1 (docs/sampling.md)")


def _texts(row: dict[str, Any], around: str) -> tuple[str, str] | None:
    """Question, in the text `around` it, and answer of a row; None where it has not one of each."""
    column = next((name for name in TURNS if name in row), None)
    if column is None:
        question, answer = row["problem"], row["answer"]
    else:
        turns = [turn for turn in row[column] or () if isinstance(turn, dict)]
        said = [(turn.get("role") or turn.get("from"), turn.get("content") or turn.get("value")) for turn in turns]
        said = [(SPEAKERS.get(str(who), who), text) for who, text in said if (who, text) != ("system", SYSTEM)]
        if [who for who, _ in said] != ["user", "assistant"]:
            return None
        question, answer = (text for _, text in said)
    answer = answer if isinstance(answer, str) else json.dumps(answer, default=str)
    return (around.replace("{question}", question), answer) if isinstance(question, str) else None


def _compare_questions(rows: Dataset, name: str, settings: Settings) -> None:
    """Warn where the rows ask otherwise than the tracker will."""
    trackers, around = prompts.pattern(settings.task), settings.sample.hub_prompt
    texts = [_texts(row, around) for row in rows.remove_columns("images")]
    if others := [text[0] for text in texts if text and not trackers.fullmatch(text[0])]:
        log.warning(
            "%s: %d of %d questions are not the one that the tracker asks, which is task.prompt (docs/sampling.md); "
            "the first: %r", name, len(others), len(texts), others[0],
        )  # fmt: skip


def _pair(row: dict[str, Any], folder: Path, settings: Settings) -> PairRow | shards.Rejection:
    """A row of the data set as a row of our shards, or why it is none."""
    texts = _texts(row, settings.sample.hub_prompt)
    try:
        without_marks("".join(texts or ()))
        stored = [as_rgb(read_stored(image, "an image", folder), "an image") for image in row["images"] or []]
    except UserError as fault:
        return str(fault)
    images = [image for image, _ in stored]
    chat = not set(TURNS).isdisjoint(row)
    if texts is None and chat:
        return "messages are not one question and one answer"
    problem, answer = texts or ("", "")
    if len(images) < 2 or problem.count(prompts.PLACE) != len(images):
        return "images do not fit their places in the problem"
    if not all(fits(size) for _, size in stored):
        return "an image is too narrow for the model"
    place = prompts.search_place(problem, len(images))
    if place is None:
        return "the question does not say which image is the search region"
    (width, height), search = stored[place][1], images.pop(place)
    think, tags = settings.task.think and chat, prompts.thought_tags(answer.strip())
    if think and not tags:
        return "the answer has no thoughts"
    box = prompts.parse_box(answer, size=width, think=think)
    clipped = [] if box is None else boxes.clip(box, width, height).tolist()
    if width != height or not (boxes.area(clipped) if clipped else prompts.denies(answer, think=think)):
        return "answer is no box in a square search region"
    if clipped and min(np.subtract(clipped[2:], clipped[:2])) < 1:
        return "target thinner than a pixel"
    if width % PATCH:
        return f"the side of the search region is no multiple of {PATCH} pixels"
    return {
        "images": [{"bytes": image, "path": None} for image in (images[0], search, *images[1:])],
        "answer": clipped, "size": width, "problem": problem,
        "thought": answer.strip()[len("<think>") : tags[0]] if think and tags else None,
    }  # fmt: skip
