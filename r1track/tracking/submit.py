"""Stage `submit`: tracks of GOT-10k's test split as the zip that its server takes.

At the root of the zip are the folders of the 180 sequences, each with its boxes and times (see track_files.py) of one
run: the tracker is deterministic. The zip is read back and checked before it stands at its place.
"""

import re
import zipfile
from pathlib import Path

import numpy as np

from r1track.core.boxes import Array
from r1track.core.errors import UserError, reading
from r1track.core.provenance import Provenance
from r1track.core.sequences import read_list, read_split
from r1track.tracking.track_files import BOXES, TIMES, as_text, read_result

NAMES = tuple(f"GOT-10k_Test_{number:06d}" for number in range(1, 181))
ROWS = {BOXES: re.compile(r"(-?\d+\.\d{3},){2}\d+\.\d{3},\d+\.\d{3}"), TIMES: re.compile(r"\d+\.\d+")}


def verify(path: Path, root: Path | None = None) -> None:
    """Raise UserError, with file, line and remedy, for a zip that the server would refuse.

    root: the split; with it, the given first boxes and the lengths are compared too.
    """
    split = {sequence.name: sequence for sequence in read_split(root)} if root else {}
    with reading(path, "run `r1track submit` again"), zipfile.ZipFile(path) as archive:
        expected = {form.format(name) for name in NAMES for form in ROWS}
        for file in sorted(expected ^ set(archive.namelist())):
            fault = "missing" if file in expected else "too much"
            raise UserError(f"{path}: {file} is {fault}; track the test split")
        for name in NAMES:
            boxes, times = (_read_rows(archive, form.format(name), ROWS[form]) for form in (BOXES, TIMES))
            boxes = boxes.reshape(-1, 4)
            if not len(times) == len(boxes) > 0 or not (boxes[:, 2:] > 0).all():
                raise UserError(f"{name} lacks boxes, their extent, or times; track it again, from boxes")
            if split and (len(boxes) != len(split[name].frames) or abs(boxes[0] - split[name].boxes[0]).max() > 6e-4):
                raise UserError(f"{name}_001.txt has another first box or length than in {root}; track it")


def _read_rows(archive: zipfile.ZipFile, file: str, row: re.Pattern[str]) -> Array:
    """The numbers of a file whose lines all match `row`, shape (lines, numbers of a line)."""
    lines = archive.read(file).decode().splitlines()
    for number, line in enumerate(lines, 1):
        if not row.fullmatch(line):
            raise UserError(f"{file}, line {number}: {line!r}; track it again")
    return np.array([line.split(",") for line in lines], dtype=np.float64)


def run(tracks: Path, out: Path, root: Path | None = None) -> None:
    """Write the zip `out` from what `track` or another toolkit wrote, see `verify` for what is refused."""
    if root:
        read_list(root)  # before the work
    with Provenance("submit", {"tracks": tracks}).result_file(out) as temp_path:
        with zipfile.ZipFile(temp_path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in NAMES:
                for form, text in as_text(*read_result(tracks, name, remedy="track the test split")).items():
                    archive.writestr(form.format(name), text)
        verify(temp_path, root)
