"""Stage `track`: one question per frame, from the first frame's box or from a description of the target.

Sequences advance side by side: each round asks about the next frame of each of them in one batch; a finished sequence
makes room for the next. The first frame's template stays for the whole sequence. Where task.templates is 2, a later
template stands beside it, cut anew every track.refresh frames if the frame is `ok`. Boxes are x, y, w, h in frame
pixels. Frames are decoded ahead, while the model answers. A finished sequence is written at once, so a killed run goes
on with the others.

Times are wall seconds per frame, with decoding and cutting. The frames of a round share its time evenly.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress
from rich.progress import track as progress

from r1track.core import prompts
from r1track.core.boxes import Array
from r1track.core.config import stage_values
from r1track.core.crops import fits
from r1track.core.errors import UserError
from r1track.core.files import cores, hashes, read_record, write_json
from r1track.core.folders import atomic_folder, check_replaceable, link_folder, resumed_folder
from r1track.core.images import read_image
from r1track.core.provenance import Provenance, ProvenanceRecord
from r1track.core.schema import Settings, Task
from r1track.core.sequences import Sequence, read_split, start_fault
from r1track.tracking import predictors
from r1track.tracking.motion import search_region, update_box
from r1track.tracking.track_files import Track, write_track
from r1track.tracking.views import Generate, Predict, Template, View

log = logging.getLogger(__name__)

Decode = Callable[[Sequence, int], Future[Image.Image]]  # starts to decode a sequence's frame, by its number from 0


@dataclass
class LiveTrack:
    """A sequence that is being tracked. Its lists have one entry per finished frame."""

    sequence: Sequence
    template: Template
    later: Template | None
    boxes: list[Array]
    seconds: list[float]
    next_frame: Future[Image.Image]
    first_frame: Image.Image | None  # until the first view has shown it
    statuses: list[str] = field(default_factory=lambda: ["init"])
    answers: list[str] = field(default_factory=lambda: [""])

    @classmethod
    def start(cls, sequence: Sequence, task: Task, decode: Decode) -> "LiveTrack":
        """The track after its first frame, whose box is the sequence's first."""
        begin = time.perf_counter()
        box, image = sequence.boxes[0], decode(sequence, 0).result()
        template = Template.cut(image, box, task)
        later = template if task.templates == 2 else None
        next_frame = decode(sequence, min(1, len(sequence.frames) - 1))
        return cls(sequence, template, later, [box], [time.perf_counter() - begin], next_frame, image)

    @property
    def done(self) -> bool:
        return len(self.boxes) == len(self.sequence.frames)

    def view(self, settings: Settings, reveal: bool, decode: Decode) -> View:
        """What the tracker sees of the next frame; the frame after it starts to be decoded."""
        t, image = len(self.boxes), self.next_frame.result()
        if t + 1 < len(self.sequence.frames):
            self.next_frame = decode(self.sequence, t + 1)
        crop = search_region(self.boxes[-1], self.statuses, settings)
        true_box = self.sequence.boxes[t] if reveal and not self.sequence.absent[t] else None
        first_frame, self.first_frame = self.first_frame, None
        return View(self.template, self.later, self.boxes[0], crop.cut(image), crop, true_box, image, first_frame)

    def add(self, answer: str, view: View, settings: Settings) -> None:
        """Finish the frame of `view` with the answer about it."""
        task = settings.task
        said = prompts.complete(answer, task.think) or answer
        corners = prompts.parse_box(said, size=task.size, think=task.think)
        box, status = update_box(self.boxes[-1], corners, view.crop, view.frame.size, settings.track.min_side)
        if corners is None and prompts.denies(said, think=task.think):
            status = "absent"
        self.boxes.append(box)
        self.statuses.append(status)
        self.answers.append(answer)
        if self.later and status == "ok" and len(self.boxes) % settings.track.refresh == 0:
            self.later = Template.cut(view.frame, box, task)

    def finish(self) -> Track:
        return Track(self.sequence.name, np.stack(self.boxes), np.array(self.seconds), self.statuses, self.answers)


def rounds(
    sequences: list[Sequence],
    predict: Predict,
    settings: Settings,
    *,
    reveal: bool = False,
    read: Callable[[Sequence, int], Image.Image] = lambda sequence, t: read_image(sequence.frames[t]),
) -> Iterator[list[LiveTrack]]:
    """Track the sequences from their first boxes, track.batch at a time, the longest first; yield these in each round.

    A round adds a frame to each, but not to those of a single frame, which are done as they start. reveal: whether the
    views have the true box. read: the pixels of a frame; called on other threads, in order within a sequence.
    """
    waiting = sorted(sequences, key=lambda sequence: len(sequence.frames))  # the last one is the next
    live: list[LiveTrack] = []
    with ThreadPoolExecutor(cores()) as readers:

        def decode(sequence: Sequence, t: int) -> Future[Image.Image]:
            return readers.submit(read, sequence, t)

        while waiting or live:
            while waiting and len(live) < settings.track.batch:
                live.append(LiveTrack.start(waiting.pop(), settings.task, decode))
            begin, tracks = time.perf_counter(), [track for track in live if not track.done]  # one more frame of each
            views = [track.view(settings, reveal, decode) for track in tracks]
            for track, view, answer in zip(tracks, views, predict(views) if views else [], strict=True):
                track.add(answer, view, settings)
            seconds = time.perf_counter() - begin
            for track in tracks:
                track.seconds.append(seconds / len(tracks))
            yield live
            live = [track for track in live if not track.done]


def follow(
    sequences: list[Sequence],
    predict: Predict,
    settings: Settings,
    *,
    reveal: bool = False,
    tick: Callable[[int], None] = lambda frames: None,
) -> Iterator[Track]:
    """Track the sequences as `rounds` does; yield each when it is done. tick: called with each round's frames."""
    for live in rounds(sequences, predict, settings, reveal=reveal):
        tick(sum(len(track.boxes) > 1 for track in live))
        yield from (track.finish() for track in live if track.done)


def _check(sequences: list[Sequence], root: Path, start: str, oracle: bool) -> None:
    """Raise UserError for a sequence that cannot be tracked, before hours of work."""
    for sequence in sequences:
        if start == "box" and (fault := start_fault(sequence, root)):
            raise UserError(fault)
        if oracle and not sequence.complete:
            raise UserError(f"{root}: {sequence.name} has its first box only; the oracle needs all, leave it out")


def _locate(sequences: list[Sequence], generate: Generate, settings: Settings, folder: Path) -> Iterator[Sequence]:
    """The sequences whose described target is found in the first frame, with its box as their first.

    The others are written to `folder` as failed: all their boxes are zeros, which overlap nothing.
    """
    for k in progress(range(0, len(sequences), settings.track.batch), "finding targets"):
        batch = sequences[k : k + settings.track.batch]
        images = {sequence.name: read_image(sequence.frames[0]) for sequence in batch if sequence.text}
        shown = {name: image for name, image in images.items() if fits(image.size)}
        texts = [str(sequence.text) for sequence in batch if sequence.name in shown]
        groundings = predictors.ground(generate, [*shown.values()], texts, settings)
        by_name = dict(zip(shown, groundings, strict=True))
        for sequence in batch:
            answer, box = by_name.get(sequence.name, ("", None))
            if box is not None:
                yield replace(sequence, boxes=np.concatenate([box[None], sequence.boxes[1:]]))
                continue
            reason = f"no box of {sequence.text!r} in {answer!r}" if sequence.text else "it has no description"
            if sequence.name in images.keys() - shown.keys():
                reason = f"its first frame has {images[sequence.name].size} pixels, too narrow for the model"
            log.warning("%s: not tracked, scored as zero: %s", sequence.name, reason)
            n = len(sequence.frames)
            statuses, answers = ["init", *["failed"] * (n - 1)], [answer, *[""] * (n - 1)]
            write_track(folder, Track(sequence.name, np.zeros((n, 4)), np.zeros(n), statuses, answers))


def run(
    settings: Settings, model: str, root: Path, out: Path, start: Literal["box", "text"] | None = None, part: int = 0
) -> None:
    """Track every sequence of the split at `root` and write the track files to `out`, see track_files.py.

    model: a folder, a hub id, `tiny`, `peer:NAME`, `extra:NAME`, or the name that the server of track.endpoint knows.
    start: replaces track.start. part: the only one of the track.parts to track, from 1; 0: all. `out` appears when all
    is done. Until then the finished sequences are in a hidden folder beside it, from which a run with the same
    settings, model, server and sequences goes on. Raises UserError, with file or URL and remedy, for data that cannot
    be tracked and for servers that do not answer.
    """
    check_replaceable(out, "track")  # before a model is loaded
    stage = stage_values(settings, "track")
    settings, oracle = predictors.settings_for(settings, model, start), model == "peer:oracle"
    url, base = settings.track.endpoint.url, settings.model.base
    served = {"url": url, "model": base, "weights": "not a local file"} if url else None
    loads = not url and not model.startswith(predictors.PEER)
    inputs: dict[str, Path | str] = {"split": root, **({"model": base} if loads else {})}
    if (extra := predictors.extra_of(settings, model)) and extra.adapter:
        inputs["adapter"] = extra.adapter
    provenance = Provenance("track", inputs, settings.model.revision)
    sequences = read_split(root)
    if part > settings.track.parts:
        raise UserError(f"--part {part}: track.parts = {settings.track.parts}; take one from 1 to that")
    if part:
        sequences = sequences[part - 1 :: settings.track.parts]
    _check(sequences, root, settings.track.start, oracle)
    predict, generate = predictors.load_predictor(settings, model)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    values = stage_values(settings, "track")
    values["track"]["endpoint"] = served  # patience with a server changes no answer
    hashes = {name: file.model_dump() for name, file in provenance.inputs.items()}
    identity = {"settings": values, "model": model, "inputs": hashes}
    with resumed_folder(out, identity, "track") as temp_path, Progress(*columns) as bar:
        remaining = [sequence for sequence in sequences if not (temp_path / sequence.name).is_dir()]
        if done := len(sequences) - len(remaining):
            log.info("%s: %d of %d sequences were done before", out, done, len(sequences))
        if settings.track.start == "text" and generate:
            total, remaining = len(remaining), list(_locate(remaining, generate, settings, temp_path))
            log.info("%s: %d of %d described targets were found in first frames", out, len(remaining), total)
        total = sum(len(sequence.frames) - 1 for sequence in remaining)
        tick = partial(bar.advance, bar.add_task(f"tracking {out.name}", total=total))
        for track in follow(remaining, predict, settings, reveal=oracle, tick=tick):
            write_track(temp_path, track)
        frames, begun = sum(len(sequence.frames) - 1 for sequence in sequences), settings.track.start
        notes: dict[str, Any] = {"model": model, "start": begun, "sequences": len(sequences), "frames": frames}
        provenance.write(temp_path / "provenance.json", notes={"settings": stage, "endpoint": served, **notes})
    log.info("%s: %d frames of %d sequences", model, frames, len(sequences))


def join(parts: list[Path], out: Path) -> None:
    """Write to `out` what tracking the whole split would have written, from the results of its parts.

    The provenance has the sums of times, sequences and frames, and the largest memory. Raises UserError for parts of
    other settings, inputs or models.
    """
    records = [read_record(part / "provenance.json", ProvenanceRecord) for part in parts]
    for part, record in zip(parts, records, strict=True):
        for name in ("settings", "inputs", "model", "start"):
            if getattr(record, name) != getattr(records[0], name):
                raise UserError(f"{part}: its {name} are not those of {parts[0]}; track it again")
    sums = ("wall_seconds", "cpu_seconds", "sequences", "frames")
    figures: dict[str, Any] = {name: sum(getattr(record, name) for record in records) for name in sums}
    for name in ("peak_cpu_bytes", "peak_gpu_bytes"):
        figures[name] = max((value for record in records if (value := getattr(record, name))), default=None)
    with atomic_folder(out, "track") as temp_path:
        for sequence in (path for part in parts for path in sorted(part.iterdir()) if path.is_dir()):
            if (temp_path / sequence.name).exists():
                raise UserError(f"{sequence}: its sequence is in another part, too; give each part once")
            link_folder(sequence, temp_path / sequence.name)
        last = max(records, key=lambda record: record.finished)
        record = last.model_copy(update={**figures, "outputs": hashes(temp_path)})
        write_json(temp_path / "provenance.json", record.model_dump(exclude_unset=True))
    log.info("%s: joined from %d parts", out, len(parts))
