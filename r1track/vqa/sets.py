"""Question sets: where the questions come from, and which of them are asked."""

import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from r1track import schema
from r1track.vqa import metrics

log = logging.getLogger(__name__)
COLUMNS = ("image", "question", "answer")


@dataclass(frozen=True)
class Item:
    """One question about one image; the image's bytes are read when they are needed."""

    doc_id: str
    image_name: str | None
    question: str
    target: str
    read: Callable[[], bytes]

    @cached_property
    def image_sha256(self) -> str:
        """SHA-256 of the image file's bytes."""
        return hashlib.sha256(self.read()).hexdigest()

    @property
    def image_id(self) -> str:
        """The image's name in its set, or the start of its hash: questions about one image share it."""
        return self.image_name or self.image_sha256[:16]

    def picture(self) -> Image.Image:
        """The image, RGB. Raises ValueError when its bytes are no image."""
        try:
            return Image.open(io.BytesIO(self.read())).convert("RGB")
        except OSError as error:
            raise ValueError(
                f"image {self.image_id} of question {self.doc_id} ({self.question!r}) cannot be read: {error}; "
                "fetch the set anew, or take another revision"
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


def load(name: str, spec: schema.VqaSet, seed: int) -> list[Item]:
    """The chosen items of the set vqa.sets.<name>, the same for every model.

    Questions whose answer is empty once normalised cannot be scored: they are counted, logged and never chosen. Raises
    ValueError when the set cannot be had, lacks a column, or has fewer questions than are asked for.
    """
    where = f"vqa.sets.{name}"
    found = _easy_vqa(spec, where) if spec.source == "easy-vqa" else _hub(spec, where)
    every = [item for item in found if not metrics.is_empty(item.target)]
    if len(every) < len(found):
        log.warning(
            "%s: left out %d of %d questions, whose answer is empty", where, len(found) - len(every), len(found)
        )
    if spec.items > len(every):
        raise ValueError(
            f"{where}.items = {spec.items}: split {spec.split!r} of {spec.source} has {len(every)} questions that "
            "can be scored; ask for at most as many"
        )
    return [every[place] for place in choose([item.target for item in every], spec.items, seed)]


def _easy_vqa(spec: schema.VqaSet, where: str) -> list[Item]:
    try:
        import easy_vqa
    except ImportError as error:
        raise ValueError(
            f"{where}.source = 'easy-vqa': the package is not installed; pip install easy-vqa==1.0"
        ) from error
    if spec.split == "test":
        rows, paths = zip(*easy_vqa.get_test_questions(), strict=True), easy_vqa.get_test_image_paths()
    elif spec.split == "train":
        rows, paths = zip(*easy_vqa.get_train_questions(), strict=True), easy_vqa.get_train_image_paths()
    else:
        raise ValueError(f"{where}.split = {spec.split!r}: easy-vqa has `train` and `test`")
    return [
        Item(str(place), str(image), question, answer, Path(paths[image]).read_bytes)
        for place, (question, answer, image) in enumerate(rows)
    ]


def _hub(spec: schema.VqaSet, where: str) -> list[Item]:
    import datasets

    try:
        rows = datasets.load_dataset(spec.source, split=spec.split, revision=spec.revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{where}: cannot load split {spec.split!r} of {spec.source!r}: {error}; check source, split, revision and "
            "the network, or take source easy-vqa"
        ) from error
    missing = [column for column in COLUMNS if column not in rows.features]
    if missing:
        raise ValueError(
            f"{where}: {spec.source} has no column {', '.join(missing)}; its columns: {sorted(rows.features)}"
        )
    wrong = [column for column in COLUMNS[1:] if getattr(rows.features[column], "dtype", None) != "string"]
    if wrong or not isinstance(rows.features["image"], datasets.Image):
        kinds = {column: str(rows.features[column]) for column in COLUMNS}
        raise ValueError(f"{where}: {spec.source}: need an image and two columns of text, found {kinds}")
    raw = rows.cast_column("image", datasets.Image(decode=False))

    def reader(place: int) -> Callable[[], bytes]:
        def read() -> bytes:
            stored = raw[place]["image"]
            return stored["bytes"] or Path(stored["path"]).read_bytes()

        return read

    texts = rows.select_columns(["question", "answer"])
    return [
        Item(str(place), None, row["question"] or "", row["answer"] or "", reader(place))
        for place, row in enumerate(texts)
    ]
