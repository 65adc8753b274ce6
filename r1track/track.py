"""Stage `track`: one question per frame, from the first frame's box.

Live sequences advance in lock step: each round takes the next frame of each, asks all questions in one batch, and a
finished sequence is replaced by the next. The template is the first frame's for ever. Coordinates are image pixels.

Times are wall seconds per frame, decoding and cutting included: a round's time divided by its rows, since the rows of a
batch have no time of their own. The first row of a time file is the initialisation.
"""

import csv
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress

from r1track import peers, prompts
from r1track.boxes import Array, clip, xywh_to_xyxy, xyxy_to_xywh
from r1track.crops import Crop
from r1track.files import Provenance, atomic_folder
from r1track.peers import Ask, View
from r1track.schema import Settings, Task
from r1track.sequences import Sequence, read_split

log = logging.getLogger(__name__)

NOTABLE = 1.0  # pixels that clipping must move a border by before the frame is called clipped


def move(
    last: ArrayLike, answer: ArrayLike | None, crop: Crop, size: tuple[int, int], min_side: float
) -> tuple[Array, str]:
    """The rules of motion: the new box (x, y, w, h in the image) and the frame's status.

    last: the box before, x, y, w, h. answer: corners in pixels of the search crop, None where it was unreadable: then
    the last box is held. size: width and height of this frame. An answer is cropped to the image, never shifted; a side
    shorter than `min_side` is widened around its centre, which moves no further than keeps that side in the image.
    """
    if answer is None:
        return np.asarray(last, dtype=np.float64), "held"
    raw = crop.to_image(answer)
    box = clip(raw, *size)
    status = "clipped" if np.abs(box - raw).max() > NOTABLE else "ok"
    extent, limit = box[2:] - box[:2], np.array(size, dtype=np.float64)
    centre = np.clip((box[:2] + box[2:]) / 2, min_side / 2, limit - min_side / 2)
    small = extent < min_side
    low, high = np.where(small, centre - min_side / 2, box[:2]), np.where(small, centre + min_side / 2, box[2:])
    return xyxy_to_xywh(np.concatenate([low, high])), status


@dataclass
class Track:
    """A sequence on its way: what has been found so far, one entry per frame that is done."""

    sequence: Sequence
    template: Image.Image
    template_box: Array
    boxes: list[Array]
    seconds: list[float]
    status: list[str] = field(default_factory=lambda: ["init"])
    answers: list[str] = field(default_factory=lambda: [""])

    @classmethod
    def start(cls, sequence: Sequence, task: Task) -> "Track":
        begin = time.perf_counter()
        box = sequence.boxes[0]
        crop = Crop.around(box, task.template_factor, task.size)
        template = crop.cut(_decode(sequence.frames[0]))
        return cls(sequence, template, crop.to_crop(xywh_to_xyxy(box)), [box], [time.perf_counter() - begin])

    @property
    def done(self) -> bool:
        return len(self.boxes) == len(self.sequence.frames)

    def look(self, task: Task, reveal: bool) -> tuple[View, tuple[int, int]]:
        """The next frame as the tracker sees it, and the frame's size; the frame itself is dropped."""
        t = len(self.boxes)
        crop = Crop.around(self.boxes[-1], task.search_factor, task.size)
        image = _decode(self.sequence.frames[t])
        truth = xywh_to_xyxy(self.sequence.boxes[t]) if reveal and not self.sequence.absent[t] else None
        view = View(self.template, self.template_box, self.boxes[0], crop.cut(image), crop, truth)
        return view, image.size

    def write(self, folder: Path) -> None:
        """Write boxes, times and status as `<folder>/<name>/<name>_*`."""
        name = self.sequence.name
        (folder / name).mkdir()
        rows = "".join(",".join(f"{v:.3f}" for v in box) + "\n" for box in self.boxes)
        (folder / name / f"{name}_001.txt").write_text(rows)
        (folder / name / f"{name}_time.txt").write_text("".join(f"{s:.8f}\n" for s in self.seconds))
        with (folder / name / f"{name}_status.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["frame", "status", "answer"])
            writer.writerows(zip(range(1, len(self.boxes) + 1), self.status, self.answers, strict=True))


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path}: cannot be decoded ({error}); restore it from the archive") from error


def follow(
    sequences: list[Sequence],
    ask: Ask,
    task: Task,
    *,
    batch: int,
    min_side: float,
    reveal: bool = False,
    tick: Callable[[int], None] = lambda frames: None,
) -> Iterator[Track]:
    """Track the sequences, `batch` at a time, the longest first, and yield each when it is done.

    ask: one answer text per view. reveal: whether the views carry the true box. tick: told how many frames were done.
    """
    waiting = sorted(sequences, key=lambda sequence: len(sequence.frames))  # the last is the next
    live: list[Track] = []
    while waiting or live:
        while waiting and len(live) < batch:
            live.append(Track.start(waiting.pop(), task))
        _advance([track for track in live if not track.done], ask, task, min_side, reveal)
        tick(sum(len(track.boxes) > 1 for track in live))
        yield from (track for track in live if track.done)
        live = [track for track in live if not track.done]


def _advance(tracks: list[Track], ask: Ask, task: Task, min_side: float, reveal: bool) -> None:
    """One more frame for each of the tracks."""
    if not tracks:
        return
    begin = time.perf_counter()
    views = [track.look(task, reveal) for track in tracks]
    answers = ask([view for view, _ in views])
    for track, (view, size), answer in zip(tracks, views, answers, strict=True):
        box = prompts.parse_box(answer, size=task.size, think=task.think)
        moved, status = move(track.boxes[-1], box, view.crop, size, min_side)
        track.boxes.append(moved)
        track.status.append(status)
        track.answers.append(answer)
    share = (time.perf_counter() - begin) / len(tracks)
    for track in tracks:
        track.seconds.append(share)


def _asker(settings: Settings, model: str) -> Ask:
    """The function that answers a batch of views with the model."""
    from r1track import models

    loaded = models.load(model, settings.model)

    def ask(views: list[View]) -> list[str]:
        questions = [prompts.build(view.template_box, think=settings.task.think) for view in views]
        images = [[view.template, view.search] for view in views]
        return models.answer(
            loaded, questions, images, max_tokens=settings.track.max_tokens, batch=settings.track.batch
        )  # fmt: skip

    return ask


def _check(sequences: list[Sequence], root: Path, oracle: bool) -> None:
    """Refuse, before hours of work, what cannot be started."""
    for sequence in sequences:
        if not (sequence.boxes[0, 2:] > 0).all():
            raise ValueError(
                f"{root}: {sequence.name}/groundtruth.txt, line 1: {sequence.boxes[0].tolist()} has no extent, so "
                "there is nothing to track; take the sequence out of list.txt"
            )
        if oracle and not sequence.complete:
            raise ValueError(f"{root}: {sequence.name} has its first box only; the oracle needs all, leave it out")


def run(settings: Settings, model: str, root: Path, out: Path) -> None:
    """Track every sequence of the split at `root` and write `out/<sequence>/<sequence>_{001.txt,time.txt,status.csv}`.

    model: a folder, a hub id, `tiny`, or `peer:NAME`. Nothing stands at `out` until all of it is done.
    Raises FileNotFoundError and ValueError, with file and remedy, for data that cannot be tracked.
    """
    kind, _, name = model.partition(":")
    peer = name if kind == "peer" else None
    provenance = Provenance("track", [root] if peer else [root, model])
    sequences = read_split(root)
    _check(sequences, root, peer == "oracle")
    if peer:  # peers answer without thinking
        task, ask = settings.task.model_copy(update={"think": False}), peers.find(peer)
    else:
        task, ask = settings.task, _asker(settings, model)
    frames = sum(len(sequence.frames) - 1 for sequence in sequences)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    status: Counter[str] = Counter()
    with atomic_folder(out) as aside, Progress(*columns) as bar:
        line = bar.add_task(f"tracking {out.name}", total=frames)
        for track in follow(
            sequences, ask, task, batch=settings.track.batch, min_side=settings.track.min_side,
            reveal=peer == "oracle", tick=lambda frames: bar.advance(line, frames),
        ):  # fmt: skip
            track.write(aside)
            status.update(track.status[1:])
        provenance.write(aside / "provenance.json", base=model, sequences=len(sequences), frames=frames)
    log.info("%s: %d frames of %d sequences: %s", model, frames, len(sequences), dict(status))
