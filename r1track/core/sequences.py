"""Sequences: reads tracking data in the GOT-10k layout or another.

A split is a folder with `list.txt` and one folder per sequence. In the GOT-10k layout this holds the frames
`00000001.jpg`, ... and `groundtruth.txt` (x, y, w, h per frame; one row only where the other boxes are not published),
and may hold `absence.label`, `cover.label` (visible eighths), `cut_by_image.label`, `meta_info.ini` and `nlp.txt`. No
image is opened.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from r1track.core.boxes import Array
from r1track.core.errors import MissingFile, UserError

Flags = NDArray[np.bool_]
LAYOUTS = {  # frames, boxes and description, relative to the folder of a sequence
    "got10k": ("*.jpg", "groundtruth.txt", "nlp.txt"),
    "otb": ("img/*.jpg", "groundtruth_rect.txt", "nlp.txt"),
    "lasot": ("img/*.jpg", "groundtruth.txt", "nlp.txt"),
    "tnl2k": ("imgs/*.[jp][pn]g", "groundtruth.txt", "language.txt"),
    "vot": ("color/*.jpg", "groundtruth.txt", "nlp.txt"),
    "vot-flat": ("*.jpg", "groundtruth.txt", "nlp.txt"),  # until 2017; four corners a row tell it from GOT-10k
    "nfs": ("*.jpg", "../{name}.txt", "nlp.txt"),
    "trackingnet": ("*.jpg", "../../anno/{name}.txt", "nlp.txt"),
    "uav123": ("*.jpg", "../../../anno/UAV123/{name}.txt", "nlp.txt"),
}
RESTORE = "restore it from the data set's archive"


@dataclass(frozen=True, eq=False)
class Sequence:
    """One video with its annotation; n is the number of frames.

    frames: paths of the images, in order. boxes: x, y, w, h in image pixels, shape (n, 4), or (1, 4) where only the
    first box is known. absent: shape (n,), true where the target is labelled absent or its box is empty. visibility:
    shape (n,), visible fraction of the target in [0, 1], NaN where unknown. cut: shape (n,), true where the target is
    labelled as cut by the border of the image. meta: the fields of `meta_info.ini`. text: a description of the target.
    """

    name: str
    frames: tuple[Path, ...]
    boxes: Array
    absent: Flags
    visibility: Array
    cut: Flags
    meta: dict[str, str]
    text: str | None

    @property
    def complete(self) -> bool:
        """Whether every frame has a true box, not only the first."""
        return len(self.boxes) == len(self.frames)

    def resolution(self) -> tuple[int, int]:
        """Width and height to which GOT-10k's metric clips boxes: from the metadata, else the first frame's.

        A few sequences have frames of several sizes.
        """
        match = re.fullmatch(r"\((\d+), *(\d+)\)", self.meta.get("resolution", ""))
        if match:
            return int(match[1]), int(match[2])
        with Image.open(self.frames[0]) as image:  # reads the header only
            return image.size


def read_table(path: Path, columns: int, remedy: str) -> Array:
    """Read a text file of finite numbers, `columns` per line, separated by commas; shape (lines, columns).

    Raises UserError with file, line, value and `remedy`.
    """
    if not path.is_file():
        raise MissingFile(f"{path}: no such file; {remedy}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip().splitlines(), 1):
        try:
            row = [float(value) for value in line.split(",")]
        except ValueError:
            row = []
        if len(row) != columns or not all(map(math.isfinite, row)):
            kind = "one finite number" if columns == 1 else f"{columns} finite numbers with commas between"
            raise UserError(f"{path}, line {number}: expected {kind}, found {line!r}; {remedy}")
        rows.append(row)
    return np.array(rows, dtype=np.float64).reshape(-1, columns)


def read_list(root: Path) -> dict[str, Path]:
    """The folders of the sequences in `root/list.txt`, by name, in its order.

    A line is the folder of a sequence, relative to `root`. The name of a sequence is that of its folder, and is unique.
    Raises UserError with file, line, value and remedy.
    """
    listing = root / "list.txt"
    if not listing.is_file():
        raise MissingFile(f"{listing}: no such file; give a split's folder, such as GOT-10k/val")
    lines = [(n, line.strip()) for n, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1)]
    folders: dict[str, Path] = {}
    for number, line in lines:
        if not line:
            continue
        folder = root / line
        if not folder.is_dir():
            raise MissingFile(f"{listing}, line {number}: no folder {folder}; unpack it or delete the line")
        if folder.name in folders:
            raise UserError(f"{listing}, line {number}: the name {folder.name!r} stands twice; delete one")
        folders[folder.name] = folder
    if not folders:
        raise UserError(f"{listing}: names no sequence; write one folder per line")
    return folders


def read_split(root: Path) -> list[Sequence]:
    """The sequences in `root/list.txt`, in order, all in the layout of the first. Raises as `read_list`."""
    folders = list(read_list(root).values())
    layout = detect(folders[0])
    return [read_sequence(folder, layout) for folder in folders]


def detect(folder: Path) -> str:
    """The name in LAYOUTS of the layout of a sequence's folder. UserError says which files were looked for."""
    for layout, (frames, truth, _) in LAYOUTS.items():
        path = folder / truth.format(name=folder.name)
        if path.is_file() and next(folder.glob(frames), None):
            corners = len(_numbers(path.read_text(encoding="utf-8").partition("\n")[0])) == 8
            return "vot-flat" if layout == "got10k" and corners else layout
    patterns = ", ".join(f"{frames} with {truth} ({layout})" for layout, (frames, truth, _) in LAYOUTS.items())
    raise UserError(f"{folder}: no frames with boxes; looked for {patterns}; restore them from the data set's archive")


def read_sequence(folder: Path, layout: str) -> Sequence:
    """The sequence in a folder of this layout, one of LAYOUTS. Raises as `read_list`."""
    pattern, boxes_file, text_file = LAYOUTS[layout]
    frames, truth = _frames(folder, pattern), folder / boxes_file.format(name=folder.name)
    boxes = _boxes(truth, layout, len(frames))
    if layout == "nfs" and abs(len(boxes) - len(frames)) == 1:  # as in some of its sequences
        frames, boxes = frames[: len(boxes)], boxes[: len(frames)]
    n = len(frames)
    if len(boxes) not in (1, n):
        raise UserError(f"{truth}: {len(boxes)} rows for {n} frames; write one per frame or the first alone")
    lasot = [_label(folder / f"{reason}.txt", n, 1) for reason in ("full_occlusion", "out_of_view")]
    absent = np.any([_label(folder / "absence.label", n, 1), *lasot], axis=0)
    if len(boxes) == n:
        absent |= (boxes[:, 2:] <= 0).any(1)
    cover, cut = _label(folder / "cover.label", n, 8), _label(folder / "cut_by_image.label", n, 1) == 1
    # In two training sequences of GOT-10k all labels are 0 by mistake. Without labels, an absent target is invisible.
    visibility = cover / 8 if cover.any() else np.where(absent, 0.0, np.nan)
    text = (folder / text_file).read_text(encoding="utf-8").strip() if (folder / text_file).is_file() else ""
    return Sequence(folder.name, frames, boxes, absent, visibility, cut, _meta(folder / "meta_info.ini"), text or None)


def _numbers(line: str) -> list[str]:
    return re.split(r"[,\s]+", line.strip())


def _boxes(path: Path, layout: str, frames: int) -> Array:
    """x, y, w, h per row, shape (rows, 4). Rows of NaN (no target) become -1, -1, -1, -1; in GOT-10k there are none."""
    if layout == "got10k":
        return read_table(path, 4, RESTORE)
    if not path.is_file():
        raise MissingFile(f"{path}: no such file, which layout {layout} needs; {RESTORE}, or set sample.layout")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip().splitlines(), 1):
        try:
            row = [float(value) for value in _numbers(line)[slice(1, 7) if layout == "nfs" else slice(None)]]
        except ValueError:
            row = []
        if len(row) == 6 and layout == "nfs":  # two corners, frame, whether the target is lost
            row = [row[0], row[1], row[2] - row[0], row[3] - row[1]] if not row[5] else [math.nan] * 4
        if len(row) == 8 and layout.startswith("vot"):  # four corners: the upright box that holds them
            row = [*np.min([row[::2], row[1::2]], 1), *np.ptp([row[::2], row[1::2]], 1)]
        if len(row) != 4 or any(map(math.isinf, row)):
            raise UserError(f"{path}, line {number}: no box of layout {layout}: {line[:80]!r}; {RESTORE}")
        rows.append([-1.0] * 4 if any(map(math.isnan, row)) else row)
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
    boxes[:, :2] -= layout == "otb"  # which counts pixels from 1
    # NfS also has frames at 30 per second with boxes at 240 per second.
    return boxes[::8] if layout == "nfs" and abs(len(boxes) / frames - 8) < 1 else boxes


def _frames(folder: Path, pattern: str) -> tuple[Path, ...]:
    """The numbered images of a folder, in order of their numbers."""
    paths = list(folder.glob(pattern))
    stray = [path for path in paths if not path.stem.isdecimal()]
    if stray:
        raise UserError(f"{min(stray)}: not a numbered frame; delete it or move it elsewhere")
    if not paths:
        raise UserError(f"{folder}: no frames ({pattern}); restore them from the data set's archive")
    numbered = sorted((int(path.stem), path) for path in paths)
    for (before, _), (after, path) in pairwise(numbered):
        if after != before + 1:
            raise UserError(f"{path}: follows frame {before}, some are missing; restore them from the archive")
    return tuple(path for _, path in numbered)


def _label(path: Path, frames: int, most: int) -> Array:
    """Per-frame whole numbers from 0 to `most`, shape (frames,); all 0 where there is no such file."""
    if not path.is_file():
        return np.zeros(frames)
    if path.suffix == ".txt":  # LaSOT's stand in one line
        labels = _numbers(path.read_text(encoding="utf-8"))
        values = np.array([float(label) if label in ("0", "1") else math.nan for label in labels])
    else:
        values = read_table(path, 1, "restore or delete it")[:, 0]
    if len(values) != frames:
        raise UserError(f"{path}: {len(values)} rows for {frames} frames; restore or delete it")
    wrong = np.flatnonzero(~np.isin(values, np.arange(most + 1)))
    if len(wrong):
        raise UserError(
            f"{path}, line {wrong[0] + 1}: {values[wrong[0]]:g} is not one of 0 to {most}; restore or delete it"
        )
    return values


def _meta(path: Path) -> dict[str, str]:
    """The `key: value` lines of a meta_info.ini, which is no INI file; empty where there is none."""
    if not path.is_file():
        return {}
    pairs = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}
