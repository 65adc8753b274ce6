"""Track files: the one writer and the one reader of what tracking leaves for a sequence.

`_001.txt` has a box x,y,w,h per frame, in pixels of the frame, with three decimals; `_time.txt` has the seconds of each
frame: both in GOT-10k's format. `_status.csv` has frame (from 1), status and answer; FORMULA says which answers have an
apostrophe before them there. Row 1 is the start. The boxes and times of other toolkits are read too, see `read_result`.
"""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from r1track.core.boxes import Array
from r1track.core.errors import UserError
from r1track.core.folders import atomic_folder
from r1track.core.sequences import read_table
from r1track.core.text import LARGEST, read_text

BOXES, TIMES, STATUS = "{0}/{0}_001.txt", "{0}/{0}_time.txt", "{0}/{0}_status.csv"  # by the sequence's name
# Where boxes and times of this toolkit and of others stand, the first that is there counts.
BOXES_OF, TIMES_OF = (BOXES, "{0}.txt"), (TIMES, "{0}_time.txt", "times/{0}_time.txt")
REMEDY = "run `r1track track` again"
# Answers that a spreadsheet could run as formulas get an apostrophe before them, which `read_track` takes away. Those
# that have one, or several, before such a beginning get one more.
FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
csv.field_size_limit(LARGEST)  # by itself 131072 characters, which one answer may exceed


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
    answers = [re.sub(r"\r(?!\n)", "\n", answer) for answer in track.answers]  # a bare \r is not quoted: it ends a row
    cells = [f"'{answer}" if FORMULA.match(answer) else answer for answer in answers]
    rows = zip(range(1, len(track.boxes) + 1), track.statuses, cells, strict=True)
    with atomic_folder(folder / track.name) as temp_path:
        for form, text in as_text(track.boxes, track.seconds).items():
            (temp_path / Path(form.format(track.name)).name).write_text(text)
        status = temp_path / Path(STATUS.format(track.name)).name
        with status.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([("frame", "status", "answer"), *rows])


def as_text(boxes: Array, seconds: Array) -> dict[str, str]:
    """The content of the files BOXES and TIMES in GOT-10k's format, for boxes (n, 4) and seconds (n,)."""
    lines = (",".join(f"{v:.3f}" for v in box) for box in boxes)
    return {BOXES: "".join(f"{line}\n" for line in lines), TIMES: "".join(f"{t:.8f}\n" for t in seconds)}


def read_result(folder: Path, name: str, frames: int | None = None, remedy: str = REMEDY) -> tuple[Array, Array]:
    """The boxes, shape (n, 4), and the seconds, shape (n,) or (0,), of the sequence `name`, by this or another toolkit.

    got10k writes `NAME/NAME_001.txt`, and a column of times for each of its runs, of which the first is taken;
    pytracking writes `NAME.txt` with tabs, and `NAME_time.txt`; got10k does so too for other data sets than its own,
    with the times in a folder `times`. frames: how many rows there must be; without it, as many as there are boxes.
    Raises MissingFile without boxes, and UserError, with file and remedy, for a file that cannot be read.
    """
    places = [[folder / form.format(name) for form in forms] for forms in (BOXES_OF, TIMES_OF)]
    path, times = (next((place for place in forms if place.is_file()), forms[0]) for forms in places)
    boxes = read_table(path, 4, remedy)
    seconds = read_table(times, None, remedy)[:, 0] if times.is_file() else np.empty(0)
    for file, count in ((path, len(boxes)), (times, len(seconds))):
        check_rows(file, count, len(boxes) if frames is None else frames, remedy)
    return boxes, seconds


def check_rows(file: Path, rows: int, frames: int, remedy: str) -> None:
    """Raise UserError for a file, if it is there, that has another number of rows than there are frames."""
    if file.is_file() and rows != frames:
        raise UserError(f"{file}: {rows} rows for {frames} frames; {remedy}")


def read_track(folder: Path, name: str, frames: int | None = None) -> Track:
    """Read the track of the sequence `name` from `folder`, where `write_track` or another toolkit put it.

    frames: how many the sequence has; without it, as many as there are boxes. Raises as `read_result`, and UserError
    for another number of rows.
    """
    boxes, seconds = read_result(folder, name, frames)
    status, rows = folder / STATUS.format(name), list[dict[str, str | None]]()
    if status.is_file():
        try:
            rows = list(csv.DictReader(io.StringIO(read_text(status), newline=""), strict=True))
        except csv.Error as error:
            raise UserError(f"{status}: {error}; {REMEDY}") from error
    check_rows(status, len(rows), len(boxes), REMEDY)
    statuses, cells = ([row.get(column) for row in rows] for column in ("status", "answer"))
    if None in statuses or None in cells:
        raise UserError(f"{status}: expected the columns frame, status and answer; {REMEDY}")
    answers = [cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell for cell in map(str, cells)]
    return Track(name, boxes, seconds, [str(status) for status in statuses], answers)
