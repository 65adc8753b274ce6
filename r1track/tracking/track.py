"""Stage `track`: one question per frame, from the first frame's box or from a description of the target.

Live sequences advance in lock step: each round takes the next frame of each, asks all questions in one batch, and a
finished sequence is replaced by the next. The template is the first frame's for ever; where task.templates is 2, a
later one stands beside it, cut anew now and then from a frame that was found. Coordinates are image pixels.

Frames are decoded ahead, while the model answers. A finished sequence is written at once, and a killed run goes on with
the others. A sequence whose described target is not found in its first frame has no box: all its rows are zero.

Times are wall seconds per frame, decoding and cutting included: a round's time divided by its rows, since the rows of a
batch have no time of their own. The first row of a time file is the initialisation.
"""

import csv
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress
from rich.progress import track as progress

from r1track.core import prompts
from r1track.core.boxes import Array, xywh_to_xyxy
from r1track.core.config import stage_values
from r1track.core.files import Provenance, atomic_folder, cores, resumed_folder
from r1track.core.schema import Settings, Task
from r1track.core.sequences import Sequence, read_split
from r1track.tracking import predictors
from r1track.tracking.motion import search_region, update_box
from r1track.tracking.predictors import Answer
from r1track.tracking.views import Ask, Template, View

log = logging.getLogger(__name__)

Ahead = Callable[[Sequence, int], Future[Image.Image]]  # begins to decode a sequence's frame, by its number from 0
Row = tuple[Array, float, str, str]  # box, seconds, status and answer of a frame


@dataclass
class Track:
    """A sequence on its way: what has been found so far, one entry per frame that is done."""

    sequence: Sequence
    template: Template
    later: Template | None
    boxes: list[Array]
    seconds: list[float]
    frame: Future[Image.Image]  # the next one, being decoded
    opening: Image.Image | None  # the first one, until it has been shown
    status: list[str] = field(default_factory=lambda: ["init"])
    answers: list[str] = field(default_factory=lambda: [""])

    @classmethod
    def start(cls, sequence: Sequence, task: Task, ahead: Ahead) -> "Track":
        begin = time.perf_counter()
        box, image = sequence.boxes[0], ahead(sequence, 0).result()
        template = Template.cut(image, box, task)
        later = template if task.templates == 2 else None
        coming = ahead(sequence, min(1, len(sequence.frames) - 1))
        return cls(sequence, template, later, [box], [time.perf_counter() - begin], coming, image)

    @property
    def done(self) -> bool:
        return len(self.boxes) == len(self.sequence.frames)

    def look(self, settings: Settings, reveal: bool, ahead: Ahead) -> View:
        """The next frame as the tracker sees it; the one after it begins to be decoded."""
        t, image = len(self.boxes), self.frame.result()
        if t + 1 < len(self.sequence.frames):
            self.frame = ahead(self.sequence, t + 1)
        crop = search_region(self.boxes[-1], self.status, settings)
        truth = xywh_to_xyxy(self.sequence.boxes[t]) if reveal and not self.sequence.absent[t] else None
        opening, self.opening = self.opening, None
        return View(self.template, self.later, self.boxes[0], crop.cut(image), crop, truth, image, opening)

    def take(self, answer: str, view: View, settings: Settings) -> None:
        """Enter what was answered about a frame."""
        task = settings.task
        box = prompts.parse_box(answer, size=task.size, think=task.think)
        moved, status = update_box(self.boxes[-1], box, view.crop, view.frame.size, settings.track.min_side)
        if box is None and prompts.denies(answer, think=task.think):
            status = "absent"
        self.boxes.append(moved)
        self.status.append(status)
        self.answers.append(answer)
        if self.later and status == "ok" and len(self.boxes) % settings.track.refresh == 0:
            self.later = Template.cut(view.frame, moved, task)


def _write(folder: Path, name: str, rows: Iterable[Row]) -> None:
    """Write boxes, times and status as `<folder>/<name>/<name>_*`; the folder appears when it is whole."""
    boxes, seconds, status, answers = zip(*rows, strict=True)
    with atomic_folder(folder / name) as out:
        (out / f"{name}_001.txt").write_text("".join(",".join(f"{v:.3f}" for v in box) + "\n" for box in boxes))
        (out / f"{name}_time.txt").write_text("".join(f"{s:.8f}\n" for s in seconds))
        with (out / f"{name}_status.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["frame", "status", "answer"])
            writer.writerows(zip(range(1, len(status) + 1), status, answers, strict=True))


def open_frame(path: Path) -> Image.Image:
    """An image file's pixels in RGB. Raises ValueError, with file and remedy, when it cannot be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path}: cannot be decoded ({error}); restore it from the archive") from error


def follow(
    sequences: list[Sequence],
    ask: Ask,
    settings: Settings,
    *,
    reveal: bool = False,
    tick: Callable[[int], None] = lambda frames: None,
    read: Callable[[Sequence, int], Image.Image] = lambda sequence, t: open_frame(sequence.frames[t]),
) -> Iterator[Track]:
    """Track the sequences, track.batch at a time, the longest first, and yield each when it is done.

    ask: one answer text per view. reveal: whether the views carry the true box. tick: told how many frames were done.
    read: called from threads, for each frame of a sequence in order.
    """
    waiting = sorted(sequences, key=lambda sequence: len(sequence.frames))  # the last is the next
    live: list[Track] = []
    with ThreadPoolExecutor(cores()) as readers:

        def ahead(sequence: Sequence, t: int) -> Future[Image.Image]:
            return readers.submit(read, sequence, t)

        while waiting or live:
            while waiting and len(live) < settings.track.batch:
                live.append(Track.start(waiting.pop(), settings.task, ahead))
            _advance([track for track in live if not track.done], ask, settings, reveal, ahead)
            tick(sum(len(track.boxes) > 1 for track in live))
            yield from (track for track in live if track.done)
            live = [track for track in live if not track.done]


def _advance(tracks: list[Track], ask: Ask, settings: Settings, reveal: bool, ahead: Ahead) -> None:
    """One more frame for each of the tracks."""
    if not tracks:
        return
    begin = time.perf_counter()
    views = [track.look(settings, reveal, ahead) for track in tracks]
    for track, view, answer in zip(tracks, views, ask(views), strict=True):
        track.take(answer, view, settings)
    share = (time.perf_counter() - begin) / len(tracks)
    for track in tracks:
        track.seconds.append(share)


def _check(sequences: list[Sequence], root: Path, start: str, oracle: bool) -> None:
    """Refuse, before hours of work, what cannot be started."""
    for sequence in sequences:
        if start == "box" and not (sequence.boxes[0, 2:] > 0).all():
            raise ValueError(
                f"{root}: {sequence.name}/groundtruth.txt, line 1: {sequence.boxes[0].tolist()} has no extent, so "
                "there is nothing to track; take the sequence out of list.txt"
            )
        if oracle and not sequence.complete:
            raise ValueError(f"{root}: {sequence.name} has its first box only; the oracle needs all, leave it out")


def _locate(sequences: list[Sequence], answer: Answer, settings: Settings, folder: Path) -> Iterator[Sequence]:
    """The sequences, each with the box of the described target in its first frame.

    Where none is found, the sequence is written as failed: every frame has a box of zeros, which overlaps nothing.
    """
    for k in progress(range(0, len(sequences), settings.track.batch), "finding targets"):
        batch = sequences[k : k + settings.track.batch]
        named = [sequence for sequence in batch if sequence.text]
        images = [open_frame(sequence.frames[0]) for sequence in named]
        found = predictors.ground(answer, images, [str(sequence.text) for sequence in named], settings)
        answers = dict(zip([sequence.name for sequence in named], found, strict=True))
        for sequence in batch:
            text, box = answers.get(sequence.name, ("", None))
            if box is not None:
                yield replace(sequence, boxes=np.concatenate([box[None], sequence.boxes[1:]]))
                continue
            reason = f"no box of {sequence.text!r} in {text!r}" if sequence.text else "it has no description"
            log.warning("%s: not tracked, scored as zero: %s", sequence.name, reason)
            rest: list[Row] = [(np.zeros(4), 0.0, "failed", "")] * (len(sequence.frames) - 1)
            _write(folder, sequence.name, [(np.zeros(4), 0.0, "init", text), *rest])


def run(settings: Settings, model: str, root: Path, out: Path, start: Literal["box", "text"] | None = None) -> None:
    """Track every sequence of the split at `root` and write `out/<sequence>/<sequence>_{001.txt,time.txt,status.csv}`.

    model: a folder, a hub id, `tiny`, `peer:NAME`, `extra`, or what the server of track.endpoint calls it. start: in
    place of track.start. Nothing stands at `out` until all of it is done; what is finished waits in a hidden folder
    beside it, for the next run with the same settings, model, server and sequences. Raises FileNotFoundError and
    ValueError, with file or URL and remedy, for data that cannot be tracked and servers that do not answer.
    """
    stage = stage_values(settings, "track")
    settings, oracle = predictors.settings_for(settings, model, start), model == "peer:oracle"
    url, base = settings.track.endpoint.url, settings.model.base
    served = {"url": url, "model": base, "weights": "not a local file"} if url else None
    loads = not url and not model.startswith(predictors.PEER)
    inputs: dict[str, Path | str] = {"split": root, **({"model": base} if loads else {})}
    provenance = Provenance("track", inputs, settings.model.revision)
    sequences = read_split(root)
    _check(sequences, root, settings.track.start, oracle)
    ask, answer = predictors.load_predictor(settings, model)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    values = stage_values(settings, "track")
    values["track"]["endpoint"] = served  # patience with a server changes no answer
    identity = {
        "settings": values,
        "model": model,
        "inputs": {name: file.model_dump() for name, file in provenance.inputs.items()},
    }
    with resumed_folder(out, identity) as temp_path, Progress(*columns) as bar:
        left = [sequence for sequence in sequences if not (temp_path / sequence.name).is_dir()]
        if len(left) < len(sequences):
            log.info("%s: %d of %d sequences were done before", out, len(sequences) - len(left), len(sequences))
        if settings.track.start == "text" and answer:
            wanted, left = len(left), list(_locate(left, answer, settings, temp_path))
            log.info("%s: %d of %d described targets were found in first frames", out, len(left), wanted)
        line = bar.add_task(f"tracking {out.name}", total=sum(len(sequence.frames) - 1 for sequence in left))
        for track in follow(left, ask, settings, reveal=oracle, tick=lambda n: bar.advance(line, n)):
            _write(
                temp_path,
                track.sequence.name,
                zip(track.boxes, track.seconds, track.status, track.answers, strict=True),
            )
        frames, begun = sum(len(sequence.frames) - 1 for sequence in sequences), settings.track.start
        notes: dict[str, Any] = {"model": model, "start": begun, "sequences": len(sequences), "frames": frames}
        provenance.write(temp_path / "provenance.json", notes={"settings": stage, "endpoint": served, **notes})
    log.info("%s: %d frames of %d sequences", model, frames, len(sequences))
