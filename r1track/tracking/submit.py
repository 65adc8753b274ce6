"""Stage `submit`: tracks of GOT-10k's test split as the zip that its server takes, read back before it is there.

Folders of the 180 sequences stand at the root. `<sequence>_001.txt` has x,y,w,h per frame, the given box first, with
three decimals and no spaces; `<sequence>_time.txt` has seconds. One run, since the tracker is deterministic.
"""

import re
import zipfile
from pathlib import Path

import numpy as np

from r1track.core.files import Provenance, atomic_file
from r1track.core.sequences import read_split

NAMES = tuple(f"GOT-10k_Test_{number:06d}" for number in range(1, 181))
ROWS = {"001": re.compile(r"(-?\d+\.\d{3},){2}\d+\.\d{3},\d+\.\d{3}"), "time": re.compile(r"\d+\.\d+")}


def verify(path: Path, root: Path | None = None) -> None:
    """Raise ValueError, with file, line and remedy, for a zip that the server would refuse or not find its way in.

    root: the split, to compare first boxes and lengths with.
    """
    given = {sequence.name: sequence for sequence in read_split(root)} if root else {}
    with zipfile.ZipFile(path) as archive:
        expected = {f"{name}/{name}_{part}.txt" for name in NAMES for part in ROWS}
        for name in sorted(expected ^ set(archive.namelist())):
            raise ValueError(f"{name} is {'missing' if name in expected else 'too much'}; track the test split")
        for name in NAMES:
            lines = {part: archive.read(f"{name}/{name}_{part}.txt").decode().splitlines() for part in ROWS}
            for part, found in lines.items():
                for number, line in enumerate(found, 1):
                    if not ROWS[part].fullmatch(line):
                        raise ValueError(f"{name}_{part}.txt, line {number}: {line!r}; track it again")
            boxes = np.array([line.split(",") for line in lines["001"]], dtype=np.float64).reshape(-1, 4)
            if not len(lines["time"]) == len(boxes) > 0 or not (boxes[:, 2:] > 0).all():
                raise ValueError(f"{name} lacks boxes, their extent, or times; track it again, from boxes")
            if given and (len(boxes) != len(given[name].frames) or abs(boxes[0] - given[name].boxes[0]).max() > 6e-4):
                raise ValueError(f"{name}_001.txt has another first box or length than in {root}; track it")


def run(tracks: Path, out: Path, root: Path | None = None) -> None:
    """Write the zip `out` from what `track` wrote, see `verify` for what is refused."""
    provenance = Provenance("submit", {"tracks": tracks})
    with atomic_file(out) as temp_path:
        with zipfile.ZipFile(temp_path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(tracks.glob("*/*.txt")):
                archive.write(file, f"{file.parent.name}/{file.name}")
        verify(temp_path, root)
    provenance.write(out.with_name(f"{out.name}.provenance.json"))
