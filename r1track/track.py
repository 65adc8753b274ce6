"""Stage `track`: one question per frame, from the first frame's box.

Live sequences advance in lock step: each round takes the next frame of each, asks all questions in one batch, and a
finished sequence is replaced by the next. The template is the first frame's for ever; where task.templates is 2, a
later one stands beside it, cut anew now and then from a frame that was found. Coordinates are image pixels.

Frames are decoded ahead, while the model answers. A finished sequence is written at once, and a killed run goes on with
the others.

Times are wall seconds per frame, decoding and cutting included: a round's time divided by its rows, since the rows of a
batch have no time of their own. The first row of a time file is the initialisation.
"""

import csv
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from rich.progress import MofNCompleteColumn, Progress

from r1track import peers, prompts
from r1track.boxes import Array, xywh_to_xyxy
from r1track.config import stage_values
from r1track.files import Provenance, atomic_folder, cores, resumed_folder
from r1track.motion import move, region
from r1track.peers import Ask, Template, View
from r1track.schema import Settings, Task
from r1track.sequences import Sequence, read_split

log = logging.getLogger(__name__)


@dataclass
class Track:
    """A sequence on its way: what has been found so far, one entry per frame that is done."""

    sequence: Sequence
    template: Template
    later: Template | None
    boxes: list[Array]
    seconds: list[float]
    frame: Future[Image.Image]  # the next one, being decoded
    status: list[str] = field(default_factory=lambda: ["init"])
    answers: list[str] = field(default_factory=lambda: [""])

    @classmethod
    def start(cls, sequence: Sequence, task: Task, readers: Executor) -> "Track":
        begin = time.perf_counter()
        box = sequence.boxes[0]
        template = Template.cut(_decode(sequence.frames[0]), box, task)
        later = template if task.templates == 2 else None
        ahead = readers.submit(_decode, sequence.frames[min(1, len(sequence.frames) - 1)])
        return cls(sequence, template, later, [box], [time.perf_counter() - begin], ahead)

    @property
    def done(self) -> bool:
        return len(self.boxes) == len(self.sequence.frames)

    def look(self, settings: Settings, reveal: bool, readers: Executor) -> tuple[View, Image.Image]:
        """The next frame as the tracker sees it, and the frame; the one after it begins to be decoded."""
        t, image = len(self.boxes), self.frame.result()
        if t + 1 < len(self.sequence.frames):
            self.frame = readers.submit(_decode, self.sequence.frames[t + 1])
        crop = region(self.boxes[-1], self.status, settings)
        truth = xywh_to_xyxy(self.sequence.boxes[t]) if reveal and not self.sequence.absent[t] else None
        return View(self.template, self.later, self.boxes[0], crop.cut(image), crop, truth), image

    def take(self, answer: str, view: View, image: Image.Image, settings: Settings) -> None:
        """Enter what was answered about a frame."""
        task = settings.task
        box = prompts.parse_box(answer, size=task.size, think=task.think)
        moved, status = move(self.boxes[-1], box, view.crop, image.size, settings.track.min_side)
        if box is None and prompts.denies(answer, think=task.think):
            status = "absent"
        self.boxes.append(moved)
        self.status.append(status)
        self.answers.append(answer)
        if self.later and status == "ok" and len(self.boxes) % settings.track.refresh == 0:
            self.later = Template.cut(image, moved, task)

    def write(self, folder: Path) -> None:
        """Write boxes, times and status as `<folder>/<name>/<name>_*`; the folder appears when it is whole."""
        name = self.sequence.name
        with atomic_folder(folder / name) as out:
            rows = "".join(",".join(f"{v:.3f}" for v in box) + "\n" for box in self.boxes)
            (out / f"{name}_001.txt").write_text(rows)
            (out / f"{name}_time.txt").write_text("".join(f"{s:.8f}\n" for s in self.seconds))
            with (out / f"{name}_status.csv").open("w", newline="", encoding="utf-8") as stream:
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
    settings: Settings,
    *,
    reveal: bool = False,
    tick: Callable[[int], None] = lambda frames: None,
) -> Iterator[Track]:
    """Track the sequences, track.batch at a time, the longest first, and yield each when it is done.

    ask: one answer text per view. reveal: whether the views carry the true box. tick: told how many frames were done.
    """
    waiting = sorted(sequences, key=lambda sequence: len(sequence.frames))  # the last is the next
    live: list[Track] = []
    with ThreadPoolExecutor(cores()) as readers:
        while waiting or live:
            while waiting and len(live) < settings.track.batch:
                live.append(Track.start(waiting.pop(), settings.task, readers))
            _advance([track for track in live if not track.done], ask, settings, reveal, readers)
            tick(sum(len(track.boxes) > 1 for track in live))
            yield from (track for track in live if track.done)
            live = [track for track in live if not track.done]


def _advance(tracks: list[Track], ask: Ask, settings: Settings, reveal: bool, readers: Executor) -> None:
    """One more frame for each of the tracks."""
    if not tracks:
        return
    begin = time.perf_counter()
    seen = [track.look(settings, reveal, readers) for track in tracks]
    answers = ask([view for view, _ in seen])
    for track, (view, image), answer in zip(tracks, seen, answers, strict=True):
        track.take(answer, view, image, settings)
    share = (time.perf_counter() - begin) / len(tracks)
    for track in tracks:
        track.seconds.append(share)


def _asker(settings: Settings, model: str) -> Ask:
    """The function that answers a batch of views with the model."""
    from r1track import decode, models

    task, track = settings.task, settings.track
    loaded = models.load(model, settings.model)
    decoder = decode.Decoder(loaded, max_tokens=track.max_tokens, think=task.think) if track.reuse else None
    held: dict[tuple[Template, Template | None], decode.Prefix] = {}

    def ask(views: list[View]) -> list[str]:
        nonlocal held
        laters = [view.later for view in views]
        questions = [
            prompts.build(view.template.box, second_box=later.box if later else None, think=task.think)
            for view, later in zip(views, laters, strict=True)
        ]
        templates = [[view.template.image, *([view.later.image] if view.later else [])] for view in views]
        if decoder is None:
            images = [[*row, view.search] for row, view in zip(templates, views, strict=True)]
            return models.answer(loaded, questions, images, max_tokens=track.max_tokens, batch=track.batch)
        keys = [(view.template, view.later) for view in views]
        new = [k for k, key in enumerate(keys) if key not in held]
        if new:
            made = decoder.prefixes([questions[k] for k in new], [templates[k] for k in new])
            held.update((keys[k], prefix) for k, prefix in zip(new, made, strict=True))
        held = {key: held[key] for key in keys}
        return decoder.answers(questions[0], list(held.values()), [view.search for view in views])

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

    model: a folder, a hub id, `tiny`, or `peer:NAME`. Nothing stands at `out` until all of it is done; what is finished
    waits in a hidden folder beside it, and is taken up by the next run with the same settings, model and sequences.
    Raises FileNotFoundError and ValueError, with file and remedy, for data that cannot be tracked.
    """
    kind, _, name = model.partition(":")
    peer = name if kind == "peer" else None
    provenance = Provenance("track", [root] if peer else [root, model])
    sequences = read_split(root)
    _check(sequences, root, peer == "oracle")
    if peer:  # peers answer without thinking
        settings = settings.model_copy(update={"task": settings.task.model_copy(update={"think": False})})
    ask = peers.find(peer) if peer else _asker(settings, model)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    identity = {"settings": stage_values(settings, "track"), "model": model, "inputs": provenance.hashes()}
    with resumed_folder(out, identity) as aside, Progress(*columns) as bar:
        left = [sequence for sequence in sequences if not (aside / sequence.name).is_dir()]
        if len(left) < len(sequences):
            log.info("%s: %d of %d sequences were done before", out, len(sequences) - len(left), len(sequences))
        line = bar.add_task(f"tracking {out.name}", total=sum(len(sequence.frames) - 1 for sequence in left))
        for track in follow(left, ask, settings, reveal=peer == "oracle", tick=lambda n: bar.advance(line, n)):
            track.write(aside)
        frames = sum(len(sequence.frames) - 1 for sequence in sequences)
        provenance.write(aside / "provenance.json", base=model, sequences=len(sequences), frames=frames)
    log.info("%s: %d frames of %d sequences", model, frames, len(sequences))
