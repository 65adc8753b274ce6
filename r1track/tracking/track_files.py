"""Track files: the one writer and the one reader of what tracking leaves for a sequence.

`_001.txt` has a box x,y,w,h per frame, in pixels of the frame, with three decimals; `_time.txt` has the seconds of each
frame: both in GOT-10k's format. `_status.csv` has frame (from 1), status and answer. Row 1 is the start.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from r1track.core.boxes import Array
from r1track.core.errors import UserError
from r1track.core.folders import atomic_folder
from r1track.core.sequences import read_table

BOXES, TIMES, STATUS = "{0}/{0}_001.txt", "{0}/{0}_time.txt", "{0}/{0}_status.csv"  # by the sequence's name
REMEDY = "run `r1track track` again"


@dataclass(frozen=True, eq=False)
class Track:
    """The track of a sequence of n frames.

    boxes: x, y, w, h in pixels of the frame, shape (n, 4); the first is the box that tracking started from. seconds:
    wall time of each frame, shape (n,). statuses, answers: n words and n texts. All but the boxes are empty where the
    tracker did not write them.
    """

    name: str
    boxes: Array
    seconds: Array
    statuses: list[str]
    answers: list[str]


def write_track(folder: Path, track: Track) -> None:
    """Write a track as `<folder>/<name>/<name>_*`. The folder of the name appears when all its files are whole."""
    rows = zip(range(1, len(track.boxes) + 1), track.statuses, track.answers, strict=True)
    with atomic_folder(folder / track.name) as temp_path:
        boxes, times, status = (temp_path / Path(form.format(track.name)).name for form in (BOXES, TIMES, STATUS))
        boxes.write_text("".join(",".join(f"{v:.3f}" for v in box) + "\n" for box in track.boxes))
        times.write_text("".join(f"{seconds:.8f}\n" for seconds in track.seconds))
        with status.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([("frame", "status", "answer"), *rows])


def read_track(folder: Path, name: str, frames: int | None = None) -> Track:
    """Read the track of the sequence `name` from `folder`, where `write_track` put it.

    frames: how many the sequence has; without it, as many as there are boxes. Raises MissingFile without boxes,
    and UserError, with file and remedy, for a file that cannot be read or has another number of rows.
    """
    paths = [folder / form.format(name) for form in (BOXES, TIMES, STATUS)]
    boxes = read_table(paths[0], 4, REMEDY)
    seconds = read_table(paths[1], 1, REMEDY)[:, 0] if paths[1].is_file() else np.empty(0)
    rows: list[dict[str, str | None]] = []
    if paths[2].is_file():
        with paths[2].open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    frames = len(boxes) if frames is None else frames
    for path, count in zip(paths, (len(boxes), len(seconds), len(rows)), strict=True):
        if path.is_file() and count != frames:
            raise UserError(f"{path}: {count} rows for {frames} frames; {REMEDY}")
    statuses, answers = ([row.get(column) for row in rows] for column in ("status", "answer"))
    if None in statuses or None in answers:
        raise UserError(f"{paths[2]}: expected the columns frame, status and answer; {REMEDY}")
    return Track(name, boxes, seconds, [str(status) for status in statuses], [str(answer) for answer in answers])
