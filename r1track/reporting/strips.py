"""Pictures of the page: film strips of sequences, and a training run's sampled answers, with their boxes.

Boxes are not drawn into the pixels: the page lays them over the picture, in the picture's own coordinates.
"""

import base64
import io
import logging
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from r1track.core import schema
from r1track.core.boxes import Array, iou, xywh_to_xyxy, xyxy_to_xywh
from r1track.core.errors import UserError
from r1track.core.files import read_record
from r1track.core.images import read_image
from r1track.core.prompts import parse_box
from r1track.core.records import Record
from r1track.core.sequences import Sequence, read_split
from r1track.reporting.summary import BASE, Run
from r1track.tracking.track_files import Track, read_track

log = logging.getLogger(__name__)
SIDE = 480  # a picture's longer side on the page has at most so many pixels
QUALITY = 80
TRUTH = "truth"
FAILURES = ("held", "absent", "clipped", "failed")  # statuses of the tracker


class Picture(NamedTuple):
    """A picture as a data URI of JPEG, its own size in pixels, and boxes by name, x, y, w, h in its own pixels."""

    width: int
    height: int
    source: str
    boxes: list[tuple[str, list[float]]]  # with the name of a model, `truth` or `answer`
    fault: str = ""  # why it cannot be shown


class Frame(NamedTuple):
    """A frame, by its number from 1: the IoU in words, and the status and answer of the tracked model."""

    number: int
    words: str
    status: str
    answer: str
    picture: Picture


class Strip(NamedTuple):
    """Frames of a sequence; rank: `best`, `median`, `worst` or a status of failure; first: which the page opens at."""

    rank: str
    sequence: str
    frames: list[Frame]
    first: int


class SampledAnswer(Record):
    """A sampled answer and its reward, in total and in parts, see r1track/training/rewards.py."""

    answer: str
    total: float
    valid: float
    iou: float
    giou: float
    format: float
    length: float


class Example(Record):
    """A question of a training run, and the answers sampled to it."""

    step: int
    # File names: template, any further template, search region.
    images: list[Annotated[str, Field(pattern=r"^\w[\w.-]*$")]] = Field(min_length=2)
    target: tuple[float, float, float, float] | tuple[()]  # corners in pixels of the search region, empty: not there
    answers: list[SampledAnswer] = Field(min_length=1)


def choose(changes: dict[str, float], count: int) -> list[tuple[str, str]]:
    """At most `count` sequences as (`best`|`median`|`worst`, name), by their change of AO, the largest first."""
    names = sorted(changes, key=lambda name: (-changes[name], name))
    count = min(count, len(names))
    best, worst, middle = (count + 2) // 3, (count + 1) // 3, count // 3
    start = min(max((len(names) - middle) // 2, best), len(names) - worst - middle)
    places = [("best", 0, best), ("median", start, middle), ("worst", len(names) - worst, worst)]
    return [(rank, name) for rank, at, length in places for name in names[at : at + length]]


def failures(statuses: dict[str, dict[str, int]]) -> list[tuple[str, str]]:
    """For every status of failure that occurs: (status, the sequence with most such frames), from frames by status."""
    worst = {kind: max(statuses, key=lambda name: statuses[name].get(kind, 0)) for kind in FAILURES}
    return [(kind, name) for kind, name in worst.items() if statuses[name].get(kind)]


def read(
    run: Run, name: str, tuned: str, changes: dict[str, float | None], wanted: schema.Report
) -> tuple[list[Strip], str | None]:
    """The strips of the set `name`, failures last; or none, and why the split's frames cannot be read.

    tuned: the model whose answers are shown, and its boxes beside those of the base. changes: of AO, by sequence, None
    where it has none. Raises UserError when the tracks themselves cannot be read.
    """
    picks = choose({key: change for key, change in changes.items() if change is not None}, wanted.strips)
    statuses = {key: row.status for key, row in run.scores[name][tuned].sequences.items()}
    picks += failures(statuses) if wanted.strips else []
    folders = {model: run.results / "tracks" / model / name for model in (BASE, tuned)}
    root = run.split(BASE, name).path
    tracked = {pick: {model: read_track(folder, pick) for model, folder in folders.items()} for _, pick in picks}
    try:
        sequences = {sequence.name: sequence for sequence in read_split(Path(root))}
        gone = [pick for pick in tracked if pick not in sequences]
        if gone:
            raise UserError(f"{root} has no sequence {gone[0]} any more")
        return [_strip(sequences[pick], tracked[pick], tuned, rank, wanted.strip_frames) for rank, pick in picks], None
    except (OSError, ValueError) as error:
        log.warning("no film strips of %s: %s", name, error)
        return [], str(error)


def _strip(sequence: Sequence, tracks: dict[str, Track], judged: str, rank: str, count: int) -> Strip:
    """Frames evenly spaced, opened where IoUs differ most, or in a row around the first failure of `judged`."""
    total, statuses = len(sequence.frames), tracks[judged].statuses
    for model, track in tracks.items():
        if not len(track.boxes) == total == len(sequence.boxes):
            raise UserError(f"{sequence.name} has {total} frames now, {len(track.boxes)} when {model} tracked it")
    shown = np.unique(np.linspace(min(1, total - 1), total - 1, count).round().astype(int)).tolist()
    overlaps = [iou(xywh_to_xyxy(track.boxes), xywh_to_xyxy(sequence.boxes)) for track in tracks.values()]
    apart = np.ptp(overlaps, axis=0) * ~sequence.absent
    at = int(np.argmax(apart[1:])) + 1 if total > 1 else 0
    first = int(np.abs(np.subtract(shown, at)).argmin())
    shown[first] = at
    if statuses and rank in FAILURES:
        at = statuses.index(rank)
        start = max(0, min(at - count // 3, total - count))
        shown, first = list(range(start, min(start + count, total))), at - start
    return Strip(rank, sequence.name, [_frame(sequence, tracks, judged, t) for t in shown], first)


def _frame(sequence: Sequence, tracks: dict[str, Track], judged: str, t: int) -> Frame:
    truth = {} if sequence.absent[t] else {TRUTH: sequence.boxes[t]}
    boxes, track = {model: track.boxes[t] for model, track in tracks.items()}, tracks[judged]
    overlaps = {m: float(iou(xywh_to_xyxy(box), xywh_to_xyxy(truth[TRUTH]))) for m, box in boxes.items() if truth}
    words = "IoU " + ", ".join(f"{m} {value:.2f}" for m, value in overlaps.items()) if truth else "target absent"
    status, answer = (track.statuses[t], track.answers[t]) if track.statuses else ("", "")
    return Frame(t + 1, words, status, answer, _picture(sequence.frames[t], [*(truth | boxes).items()]))


def _picture(path: Path, boxes: list[tuple[str, Array]]) -> Picture:
    stream = io.BytesIO()
    try:
        image = read_image(path)
    except (OSError, UserError):
        return Picture(0, 0, "", [], f"{path.name} is missing, cut short or no picture")
    width, height = image.size
    image.thumbnail((SIDE, SIDE))
    image.save(stream, "JPEG", quality=QUALITY)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Picture(width, height, source, [(name, np.round(box, 1).tolist()) for name, box in boxes])


def examples(folder: Path, count: int, think: bool) -> list[tuple[Example, list[Picture]]]:
    """At most `count` of the questions that a training run stored in `folder`, evenly spaced over its steps.

    Each with its pictures: on the search region lie the boxes of readable answers and the true box.
    """
    paths, rows = sorted(folder.glob("step-*.json")), []
    for k in np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)).tolist():
        example = read_record(paths[k], Example)
        pictures = [_picture(folder / name, []) for name in example.images]
        read = [parse_box(row.answer, size=pictures[-1].width, think=think) for row in example.answers]
        corners = [("answer", box) for box in read if box is not None]
        corners += [(TRUTH, np.array(example.target))] if example.target else []
        boxes = [(name, np.round(xyxy_to_xywh(box), 1).tolist()) for name, box in corners]
        rows.append((example, [*pictures[:-1], pictures[-1]._replace(boxes=boxes)]))
    return rows
