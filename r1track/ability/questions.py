"""Question sets: where the questions come from, and which of them are asked."""

import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from PIL import Image

from r1track.ability import metrics
from r1track.core import prompts, schema
from r1track.core.boxes import xywh_to_xyxy
from r1track.core.crops import processed_size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One question about one image; the image's bytes are read when they are needed."""

    where: str  # the set, as its field in the configuration
    doc_id: str
    question: str  # with its options, in its prompt
    targets: list[str]  # what a metric takes
    metric: str
    read: Callable[[], bytes]
    pixels: int = 0

    @property
    def target(self) -> str:
        """The right answer that most people gave, or the only one."""
        return Counter(self.targets or [""]).most_common(1)[0][0]

    @cached_property
    def image_sha256(self) -> str:
        """SHA-256 of the image file's bytes: questions about one image share it."""
        return hashlib.sha256(self.read()).hexdigest()

    def picture(self) -> Image.Image:
        """The image, RGB. Raises ValueError when there is none or its bytes are no image."""
        try:
            return Image.open(io.BytesIO(self.read())).convert("RGB")
        except (OSError, TypeError) as error:
            raise ValueError(
                f"{self.where}: image of question {self.doc_id} ({self.question!r}) cannot be read: {error}; fetch the "
                "set anew, or take another revision"
            ) from error


def choose(answers: Sequence[str], items: int, seed: int) -> list[int]:
    """Places of `items` questions, in ascending order: drawn by chance, each answer in its share, all equally likely.

    The questions stand in random order within their answer, the answers in random order too, and are taken at even
    steps from a random start: so the number taken of every answer is within one of its share, and where every answer is
    unique the choice is a plain draw.
    """
    total = len(answers)
    random = np.random.default_rng(seed)
    kinds, kind = np.unique(np.asarray(answers), return_inverse=True)
    order = np.lexsort((random.permutation(total), random.permutation(len(kinds))[kind]))
    steps = (np.arange(items) * total + random.integers(total)) // items
    return sorted(order[steps].tolist())


def load(name: str, spec: schema.VqaSet, seed: int, model: schema.Model) -> list[Item]:
    """The chosen items of the set vqa.sets.<name>, the same for every model; model: the limits of an image's pixels.

    A question whose own right answer the metric would not accept cannot be scored: such are counted, logged and never
    chosen. Raises ValueError when the set cannot be had, lacks a column, has one id twice, has fewer questions than are
    asked for, or when the image of a chosen question is broken.
    """
    import datasets

    where = f"vqa.sets.{name}"
    rows = _rows(spec, where)
    columns = [c for c in dict.fromkeys((spec.question, spec.answer, spec.options, spec.group, spec.id)) if c]
    columns += [column for column in ("dataset",) if column in rows.features]
    missing = [column for column in ("image", *columns) if column not in rows.features]
    if missing or not isinstance(rows.features["image"], datasets.Image):
        lack = f"no column {', '.join(missing)}" if missing else "no pictures in the column image"
        raise ValueError(f"{where}: {spec.source} has {lack}; its columns: {sorted(rows.features)}")
    stored = rows.select_columns("image").cast_column("image", datasets.Image(decode=False))
    every = [_item(where, place, row, spec, stored) for place, row in enumerate(rows.select_columns(columns))]
    twice = [each for each, count in Counter(item.doc_id for item in every).items() if count > 1]
    if twice:
        raise ValueError(f"{where}.id = {spec.id!r}: {len(twice)} ids stand there twice, first {twice[0]!r}; set null")
    worth = [metrics.BY_NAME[item.metric](item.target, item.targets) if item.targets else 0 for item in every]
    good = [place for place, score in enumerate(worth) if score]
    if len(good) < len(every):
        log.warning("%s: left out %d of %d questions: no answer to score", where, len(every) - len(good), len(every))
    if spec.items > len(good):
        raise ValueError(
            f"{where}.items = {spec.items}: split {spec.split!r} of {spec.source} has {len(good)} questions that can "
            "be scored; ask for at most as many"
        )
    groups = rows[spec.group] if spec.group else [item.target for item in every]
    return [_seen(every[good[i]], model) for i in choose([str(groups[i]) for i in good], spec.items, seed)]


def _rows(spec: schema.VqaSet, where: str) -> Any:
    import datasets

    if spec.source == "easy-vqa":
        return _easy_vqa(spec, where)
    try:
        return datasets.load_dataset(spec.source, spec.subset, split=spec.split, revision=spec.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise ValueError(
            f"{where}: cannot load split {spec.split!r} of {spec.source!r}: {error}; check source, subset, split, "
            "revision and the network, or take source easy-vqa"
        ) from error


def _easy_vqa(spec: schema.VqaSet, where: str) -> Any:
    import datasets

    try:
        import easy_vqa
    except ImportError as error:
        raise ValueError(f"{where}.source = 'easy-vqa': not installed; pip install easy-vqa==1.0") from error
    if spec.split not in ("train", "test"):
        raise ValueError(f"{where}.split = {spec.split!r}: easy-vqa has `train` and `test`")
    questions, answers, images = getattr(easy_vqa, f"get_{spec.split}_questions")()
    paths = getattr(easy_vqa, f"get_{spec.split}_image_paths")()
    rows = {"image": [str(paths[image]) for image in images], "question": questions, "answer": answers}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))


def _item(where: str, place: int, row: dict[str, Any], spec: schema.VqaSet, stored: Any) -> Item:
    asked, found = row[spec.question], row[spec.answer]
    question = str((asked[0] if isinstance(asked, list) and asked else asked) or "")
    if spec.metric == "box" and found:
        found = str(xywh_to_xyxy(found).tolist())
    each = found if isinstance(found, list) else [found]
    targets = [str(one["answer"] if isinstance(one, dict) else one) for one in each if one not in (None, "")]
    if spec.options:
        question += "".join(f"\n{ascii_uppercase[i]}. {text}" for i, text in enumerate(row[spec.options]))
        targets = [ascii_uppercase[int(t)] if t.isdigit() else t for t in targets] + row[spec.options]
    # Other braces may stand in a prompt, so it is no format string.
    question = (spec.prompt or "{question}" + prompts.SHORT).replace("{question}", question)
    # OCRBench scores its handwritten formulas otherwise than its other texts.
    metric = "formula" if row.get("dataset") == "HME100k" else spec.metric

    def read() -> bytes:
        image = stored[place]["image"]
        return bytes(image["bytes"] or Path(image["path"]).read_bytes())

    return Item(where, str(row[spec.id] if spec.id else place), question, targets, metric, read)


def _seen(item: Item, model: schema.Model) -> Item:
    """The item with its image's size, and the corners of a box in pixels of the image as the model sees it."""
    width, height = item.picture().size
    targets = item.targets
    if item.metric == "box":
        shown = processed_size((width, height), model)
        scale = np.array([shown[0] / width, shown[1] / height] * 2)
        targets = [prompts.numbers(json.loads(target) * scale) for target in targets]
    return replace(item, targets=targets, pixels=width * height)
