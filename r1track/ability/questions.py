"""Question sets: how they are loaded, and which of their questions are asked."""

import hashlib
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
from r1track.core import hub, prompts, schema
from r1track.core.boxes import area, clip, xywh_to_xyxy
from r1track.core.crops import fits, processed_size
from r1track.core.errors import UserError, environment_fault
from r1track.core.images import decode, read_stored
from r1track.core.section import MODEL_MARK

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One question about one image; the image's bytes are read when they are needed."""

    field: str  # of the set in the configuration: vqa.sets.<name>
    doc_id: str
    question: str  # the whole prompt, with the options of a multiple choice
    targets: list[str]  # right answers, as the metric takes them
    metric: str
    read: Callable[[], bytes]  # of the image file
    pixels: int = 0  # width x height of the image file

    @property
    def target(self) -> str:
        """The right answer that most people gave, or the only one."""
        return Counter(self.targets or [""]).most_common(1)[0][0]

    @property
    def scorable(self) -> bool:
        """Whether the right answer would itself score more than 0; never where a mark of the model's own is asked."""
        marked = MODEL_MARK.search(self.question)
        return bool(not marked and self.targets and metrics.BY_NAME[self.metric](self.target, self.targets))

    @cached_property
    def image_sha256(self) -> str:
        """SHA-256 of the image file's bytes: questions about one image share it."""
        return hashlib.sha256(self.read()).hexdigest()

    @property
    def image_name(self) -> str:
        """What messages call the image."""
        return f"{self.field}: image of question {self.doc_id} ({self.question[:200]!r})"

    def picture(self) -> Image.Image:
        """The image, RGB, upright. Raises UserError when it is missing or its bytes are no image."""
        return decode(self.read(), self.image_name)


def choose(answers: Sequence[str], items: int, seed: int) -> list[int]:
    """Indices of `items` of the questions, in ascending order: a systematic sample, stratified by their answers.

    The questions are put in random order, those with the same answer together, and are then taken at even steps from a
    random start. So all are equally likely, and of each answer as many are taken as is its share, within one.
    """
    total = len(answers)
    random = np.random.default_rng(seed)
    strata, stratum = np.unique(np.asarray(answers), return_inverse=True)
    order = np.lexsort((random.permutation(total), random.permutation(len(strata))[stratum]))
    steps = (np.arange(items) * total + random.integers(total)) // items
    return sorted(order[steps].tolist())


def load(name: str, spec: schema.VqaSet, seed: int, model: schema.Model) -> list[Item]:
    """The chosen items of the set vqa.sets.<name>, the same for every model; model: the limits of an image's pixels.

    A question whose own right answer would score 0 is never chosen, and one whose image is broken is left out: they are
    counted and named. Raises UserError when the set cannot be loaded, lacks a column, has an id twice, has fewer
    questions than `spec.items`, or when more than the fraction `spec.max_unusable` of them is left out.
    """
    import datasets

    field = f"vqa.sets.{name}"
    rows, folder = _rows(spec, field)
    missing = [column for column in spec.columns if column not in rows.features]
    columns = [*spec.columns[1:], *({"dataset"} & rows.features.keys())]
    if missing or not isinstance(rows.features["image"], datasets.Image):
        fault = f"no column {', '.join(missing)}" if missing else "no pictures in the column image"
        raise UserError(f"{field}: {spec.source} has {fault}; its columns: {sorted(rows.features)}")
    if spec.options and not isinstance(getattr(rows.features[spec.options], "feature", None), datasets.Value):
        fault = "holds no lists, one text for each option; take another set"
        raise UserError(f"{field}.options = {spec.options!r}: {fault}")
    stored = rows.select_columns("image").cast_column("image", datasets.Image(decode=False))
    items = [_item(field, index, row, spec, stored, folder) for index, row in enumerate(rows.select_columns(columns))]
    twice = [doc_id for doc_id, count in Counter(item.doc_id for item in items).items() if count > 1]
    if twice:
        raise UserError(f"{field}.id = {spec.id!r}: {len(twice)} ids occur twice, first {twice[0]!r}; set it to null")
    groups = [str(group) for group in rows[spec.group]] if spec.group else [item.target for item in items]
    return _draw(items, groups, spec, field, seed, model)


def _draw(
    items: list[Item], groups: list[str], spec: schema.VqaSet, field: str, seed: int, model: schema.Model
) -> list[Item]:
    """The chosen ones of the items of a set, with the sizes of their images, as `load`; groups: of every item."""
    scorable, wanted = [k for k, item in enumerate(items) if item.scorable], spec.items
    if len(scorable) < len(items):
        others = ", ".join(item.doc_id for item in items if not item.scorable)
        lacking = f"{len(items) - len(scorable)} of {len(items)} questions"
        log.warning("%s: left out %s: no answer that can be scored (%.200s)", field, lacking, others)
    places = choose([groups[k] for k in scorable], min(wanted, len(scorable)), seed) if scorable else []
    chosen, faults = list[Item](), list[str]()
    for place in places:
        try:
            chosen.append(_with_image_size(items[scorable[place]], model))
        except UserError as fault:
            faults.append(str(fault))
    if len(chosen) < (wanted if wanted > len(items) else spec.fewest):
        number = f"{len(places)} questions that can be scored; take at most that number"
        few = f"{field}.items = {wanted}: split {spec.split!r} of {spec.source} has {number}"
        raise UserError(f"{faults[0]}; {len(faults)} of {len(places)} images cannot be used" if faults else few)
    if len(chosen) < wanted:
        log.warning("%s: asks %d of %d questions", field, len(chosen), wanted)
    for line in faults:
        log.warning("left out: %s", line)
    return chosen


def _rows(spec: schema.VqaSet, field: str) -> tuple[Any, Path]:
    """The rows of a set, and the folder where those of its images lie that are files."""
    if spec.source == "easy-vqa":
        return _easy_vqa(spec, field)
    try:
        return hub.load_rows(spec.source, spec.subset, spec.split, spec.revision), Path(spec.source)
    except Exception as error:
        if environment_fault(error):
            raise
        raise UserError(
            f"{field}: cannot load split {spec.split!r} of {spec.source!r}: {error}; correct source, subset, split or "
            f"revision, or {hub.REMEDY}"
        ) from error


def _easy_vqa(spec: schema.VqaSet, field: str) -> tuple[Any, Path]:
    import datasets

    try:
        import easy_vqa
    except ImportError as error:
        raise UserError(f"{field}.source = 'easy-vqa': not installed; pip install easy-vqa==1.0") from error
    if spec.split not in ("train", "test"):
        raise UserError(f"{field}.split = {spec.split!r}: easy-vqa has `train` and `test`")
    questions, answers, images = getattr(easy_vqa, f"get_{spec.split}_questions")()
    paths = getattr(easy_vqa, f"get_{spec.split}_image_paths")()
    rows = {"image": [str(paths[image]) for image in images], "question": questions, "answer": answers}
    stored = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    return stored, Path(easy_vqa.__file__).parent


def _item(field: str, index: int, row: dict[str, Any], spec: schema.VqaSet, stored: Any, folder: Path) -> Item:
    """The item of a row; a box stays in pixels of the image file. stored: the images, not decoded; or in `folder`."""
    question, answer = row[spec.question], row[spec.answer]
    question = str((question[0] if isinstance(question, list) and question else question) or "")
    if spec.metric == "box":
        answer = _box(answer)
    answers = answer if isinstance(answer, list) else [answer]
    texts = [one.get("answer") if isinstance(one, dict) else one for one in answers]
    targets = [str(text) for text in texts if text not in (None, "")]
    if spec.options:
        texts = row[spec.options] or []
        options = dict(zip(ascii_uppercase, texts, strict=False))
        question += "".join(f"\n{letter}. {text}" for letter, text in options.items())
        letters = {str(place): letter for place, letter in enumerate(options)}
        right = {letters.get(target, target) for target in targets}
        scorable = (
            len(right) == 1 and len(texts) == len(options) and None not in texts
        )  # one letter for every option, and one that is right
        targets = [*right, *options.values()] if scorable else []
    # A prompt may contain other braces, so it is no format string.
    question = (spec.prompt or "{question}" + prompts.SHORT).replace("{question}", question)
    # OCRBench scores its handwritten formulas differently from its other texts.
    metric = "formula" if row.get("dataset") == "HME100k" else spec.metric

    doc_id = str(row[spec.id] if spec.id else index)
    item = Item(field, doc_id, question, targets, metric, lambda: read_stored(stored[index]["image"], name, folder))
    name = item.image_name
    return item


def _box(answer: Any) -> str | None:
    """The corners of a box x, y, w, h as JSON; None for what is no box."""
    try:
        box = np.array(answer, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return (
        str(xywh_to_xyxy(box).tolist()) if box.shape == (4,) and np.isfinite(box).all() and min(box[2:]) > 0 else None
    )


def _with_image_size(item: Item, model: schema.Model) -> Item:
    """The item with its image's pixel count, and a box, xyxy, in pixels of the image as the model sees it."""
    width, height = item.picture().size
    if not fits((width, height)):
        raise UserError(f"{item.image_name} has {width} x {height} pixels, too narrow for the model; take another set")
    if item.metric == "box":
        model_width, model_height = processed_size((width, height), model)
        box = json.loads(item.target) * np.array([model_width / width, model_height / height] * 2)
        item = replace(item, targets=[prompts.numbers(box)])
        if not item.scorable or not area(clip(box, model_width, model_height)):
            raise UserError(
                f"{item.image_name}: its box is outside of it, or thinner than a pixel as the model sees it"
            )
    return replace(item, pixels=width * height)
