"""Sequences: reads tracking data in the GOT-10k layout or another; docs/inputs.md says what is refused.

A split is a folder with `list.txt` and one folder per sequence. In the GOT-10k layout this holds the frames
`00000001.jpg`, ... and `groundtruth.txt` (x, y, w, h per frame; one row only where the other boxes are not published),
and may hold `absence.label`, `cover.label` (visible eighths), `cut_by_image.label`, `meta_info.ini` and `nlp.txt`.
"""

import logging
import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from r1track.core.boxes import Array
from r1track.core.errors import MissingFile, UserError
from r1track.core.images import SUFFIXES, is_image, read_size
from r1track.core.text import numbers, read_text

log = logging.getLogger(__name__)
Flags = NDArray[np.bool_]
LAYOUTS = {  # images, boxes and description, relative to the folder of a sequence
    "got10k": ("*", "groundtruth.txt", "nlp.txt"),
    "otb": ("img/*", "groundtruth_rect.txt", "nlp.txt"),
    "lasot": ("img/*", "groundtruth.txt", "nlp.txt"),
    "tnl2k": ("imgs/*", "groundtruth.txt", "language.txt"),
    "vot": ("color/*", "groundtruth.txt", "nlp.txt"),
    "vot-flat": ("*", "groundtruth.txt", "nlp.txt"),  # until 2017; four corners a row tell it from GOT-10k
    "nfs": ("*", "../{name}.txt", "nlp.txt"),
    "trackingnet": ("*", "../../anno/{name}.txt", "nlp.txt"),
    "uav123": ("*", "../../../anno/UAV123/{name}.txt", "nlp.txt"),
}
RESTORE = "restore it from the data set's archive, or correct it"
NO_TARGET = "; a frame without the target has -1,-1,-1,-1"  # in GOT-10k's layout
LARGEST = 1e6  # of any number in annotation and tracks
LONGEST_TEXT = 2000  # characters of a description


@dataclass(frozen=True, eq=False)
class Sequence:
    """One video with its annotation; n is the number of frames."""

    name: str
    frames: tuple[Path, ...]  # paths of the images, in order
    boxes: Array  # x, y, w, h in image pixels, shape (n, 4), or (1, 4) where only the first box is known
    absent: Flags  # shape (n,), true where the target is labelled absent or its box is empty
    visibility: Array  # shape (n,), visible fraction of the target in [0, 1], NaN where unknown
    cut: Flags  # shape (n,), true where the target is labelled as cut by the border of the image
    meta: dict[str, str]  # the fields of meta_info.ini
    text: str | None  # a description of the target

    @property
    def complete(self) -> bool:
        """Whether every frame has a true box, not only the first."""
        return len(self.boxes) == len(self.frames)

    def resolution(self) -> tuple[int, int]:
        """Width and height to which GOT-10k's metric clips boxes: from the metadata, else the first frame's."""
        match = re.fullmatch(r"\(([1-9]\d{0,5}), *([1-9]\d{0,5})\)", self.meta.get("resolution", ""), re.ASCII)
        return (int(match[1]), int(match[2])) if match else read_size(self.frames[0])


def read_table(path: Path, columns: int | None, remedy: str) -> Array:
    """A file of finite numbers, shape (lines, columns); columns: None for those of line 1. UserError with `remedy`."""
    rows = []
    for number, line in enumerate(read_text(path, remedy).rstrip().splitlines(), 1):
        row = numbers(line)
        columns = columns or max(1, len(row))
        if len(row) != columns or not all(abs(value) <= LARGEST for value in row):  # NaN is not
            kind = "one finite number" if columns == 1 else f"{columns} finite numbers"
            raise UserError(f"{path}, line {number}: expected {kind} up to {LARGEST:g}, found {line[:80]!r}; {remedy}")
        rows.append(row)
    return np.array(rows, dtype=np.float64).reshape(-1, columns or 1)


def read_list(root: Path) -> dict[str, Path]:
    """The folders of the sequences in `root/list.txt`, by name, in its order; without it, all folders, sorted.

    A line is a folder below `root`, or a link there; its name, which is unique, names the sequence. Raises UserError
    with file, line, value and remedy.
    """
    listing = root / "list.txt"
    lines = sorted(path.name for path in root.glob("[!.]*/")) if not os.path.lexists(listing) else []
    if lines:
        log.warning("%s: there is no list.txt, so its %d folders are read, sorted by name", root, len(lines))
    else:
        lines = [*map(str.strip, read_text(listing, "give a split's folder, such as GOT-10k/val").splitlines())]
    present = {entry.name for entry in os.scandir(root)}  # one system call, for thousands of sequences
    missing = [line for line in lines if line not in present and not os.path.isdir(root / line)]  # noqa: PTH112
    folders: dict[str, Path] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        place, folder = f"{listing}, line {number}:", root / line
        parts = Path(line).parts
        if not line.isprintable() or not parts or any(part.startswith(("/", "..")) for part in parts):
            raise UserError(f"{place} {line!r} is no path below {root}; name a folder there, or a link to one")
        if line in missing:
            count = f"{len(missing)} of {len(lines)} are missing"
            raise MissingFile(f"{place} no folder {folder}; unpack it or delete the line ({count})")
        if folder.name in folders:
            raise UserError(f"{place} the name {folder.name!r} stands twice; delete one")
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
        if path.is_file() and any(map(is_image, folder.glob(frames))):
            corners = len(numbers(read_text(path).partition("\n")[0])) == 8
            return "vot-flat" if layout == "got10k" and corners else layout
    patterns = ", ".join(f"{frames} with {truth} ({layout})" for layout, (frames, truth, _) in LAYOUTS.items())
    fault = f"no frames with boxes; looked for {patterns}, frames being {', '.join(SUFFIXES)}"
    raise UserError(f"{folder}: {fault}; restore them from the data set's archive")


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
    text, meta = _optional(folder / text_file).strip(), _optional(folder / "meta_info.ini")
    if len(text) > LONGEST_TEXT:
        raise UserError(f"{folder / text_file}: {len(text)} characters; describe the target in {LONGEST_TEXT} at most")
    pairs = (line.partition(":") for line in meta.splitlines())  # `key: value`, which is no INI file
    fields = {key.strip(): value.strip() for key, colon, value in pairs if colon}
    return Sequence(folder.name, frames, boxes, absent, visibility, cut, fields, text or None)


def start_fault(sequence: Sequence, root: Path) -> str | None:
    """Why a sequence of the split at `root` cannot be tracked from its first box, with the remedy, or None."""
    if (sequence.boxes[0, 2:] > 0).all():
        return None
    place, box = root / sequence.name / "groundtruth.txt", sequence.boxes[0].tolist()
    fault = f"{place}, line 1: {box} has no extent, so there is nothing to track"
    return f"{fault}; correct it, or take the sequence out of list.txt"


def beyond_frame(sequence: Sequence) -> Flags:
    """Of each box of a present target, whether it reaches beyond the frame by a twentieth of the frame's side."""
    frame, boxes = np.array(read_size(sequence.frames[0])), sequence.boxes[~sequence.absent[: len(sequence.boxes)]]
    outside = (boxes[:, :2] < -frame / 20) | (boxes[:, :2] + boxes[:, 2:] > frame * 1.05)
    return np.asarray(outside.any(1))


def _optional(path: Path) -> str:
    """The text of a file, "" where there is none."""
    return read_text(path) if os.path.lexists(path) else ""


def _boxes(path: Path, layout: str, frames: int) -> Array:
    """x, y, w, h per row, shape (rows, 4). Rows of NaN (no target) become -1, -1, -1, -1; in GOT-10k there are none."""
    if layout == "got10k":
        return read_table(path, 4, RESTORE + NO_TARGET)
    if not path.is_file():
        raise MissingFile(f"{path}: no such file, which layout {layout} needs; {RESTORE}, or set sample.layout")
    rows = []
    for number, line in enumerate(read_text(path, RESTORE).rstrip().splitlines(), 1):
        row = numbers(" ".join(line.split()[1:7]) if layout == "nfs" else line)
        if len(row) == 6 and layout == "nfs":  # two corners, frame, whether the target is lost
            row = [row[0], row[1], row[2] - row[0], row[3] - row[1]] if not row[5] else [math.nan] * 4
        if len(row) == 8 and layout.startswith("vot"):  # four corners: the upright box that holds them
            row = [*np.min([row[::2], row[1::2]], 1), *np.ptp([row[::2], row[1::2]], 1)]
        if len(row) != 4 or any(abs(value) > LARGEST for value in row):
            raise UserError(f"{path}, line {number}: no box of layout {layout}: {line[:80]!r}; {RESTORE}")
        rows.append([-1.0] * 4 if any(map(math.isnan, row)) else row)
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
    boxes[:, :2] -= layout == "otb"  # which counts pixels from 1
    # NfS also has frames at 30 per second with boxes at 240 per second.
    return boxes[::8] if layout == "nfs" and abs(len(boxes) / frames - 8) < 1 else boxes


def _frames(folder: Path, pattern: str) -> tuple[Path, ...]:
    """The numbered images of a folder, such as `frame_0007.PNG`, in order; of several kinds, the first of SUFFIXES."""
    kinds = {path: path.suffix.lower().replace(".jpeg", ".jpg") for path in folder.glob(pattern) if is_image(path)}
    if not kinds:
        raise UserError(f"{folder}: no frames ({pattern}{', '.join(SUFFIXES)}); {RESTORE}")
    first = min(kinds.values(), key=SUFFIXES.index)
    names = {path: re.fullmatch(r"(.*?)(\d+)", path.stem) for path, kind in kinds.items() if kind == first}
    prefixes = Counter(name and name[1] for name in names.values())
    common = max(prefixes, key=lambda prefix: (prefixes[prefix], prefix is not None))
    if stray := [path for path, name in names.items() if name is None or name[1] != common]:
        raise UserError(f"{min(stray)}: not a numbered frame; delete it or move it elsewhere, or name all frames alike")
    numbered = sorted((int(name[2]), path) for path, name in names.items() if name)
    used = {number for number, _ in numbered}
    for path in sorted(kinds.keys() - names.keys()):
        name = re.fullmatch(r"(.*?)(\d+)", path.stem)
        if name and name[1] == common and int(name[2]) not in used:
            raise UserError(f"{path}: a frame that is no {first}, as the others are; convert it, or move it elsewhere")
    for (before, _), (after, path) in pairwise(numbered):
        if after != before + 1:
            fault = "some are missing; restore them from the archive" if after > before else "as it does; delete one"
            raise UserError(f"{path}: follows frame {before}, {fault}")
    return tuple(path for _, path in numbered)


def _label(path: Path, frames: int, most: int) -> Array:
    """Per-frame whole numbers from 0 to `most`, shape (frames,); all 0 where there is no such file."""
    if not os.path.lexists(path):
        return np.zeros(frames)
    one_line = path.suffix == ".txt"  # as LaSOT's
    values = np.array(numbers(read_text(path))) if one_line else read_table(path, 1, "restore or delete it")[:, 0]
    if len(values) != frames:
        raise UserError(f"{path}: {len(values)} rows for {frames} frames; restore or delete it")
    wrong = np.flatnonzero(~np.isin(values, np.arange(most + 1)))
    if len(wrong):
        line, value = wrong[0] + 1, values[wrong[0]]
        raise UserError(f"{path}, line {line}: {value:g} is not one of 0 to {most}; restore or delete it")
    return values
