"""Sequences: the reader of tracking data in the GOT-10k layout.

A split is a folder with `list.txt` and one folder per sequence: frames `00000001.jpg`, …, `groundtruth.txt` (x, y, w, h
per frame; one row only where the truth is withheld), and, each optional, `absence.label`, `cover.label` (eighths),
`meta_info.ini` and `nlp.txt`. Reading opens no image.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from r1track.boxes import Array

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sequence:
    """One video with its annotation; n is the number of frames.

    frames: the images' paths in order. boxes: x, y, w, h in image pixels, shape (n, 4), or (1, 4) where only the first
    box is known. absent: shape (n,), true where the target is labelled absent or its box has no extent. visibility:
    shape (n,), visible share of the target in [0, 1], NaN where unknown. meta: `meta_info.ini`. text: a description.
    """

    name: str
    frames: tuple[Path, ...]
    boxes: Array
    absent: Flags
    visibility: Array
    meta: dict[str, str]
    text: str | None

    @property
    def complete(self) -> bool:
        """Whether there is a true box for every frame, not for the first alone."""
        return len(self.boxes) == len(self.frames)

    def resolution(self) -> tuple[int, int]:
        """Width and height that the official metric clips to: the metadata's or, without any, the first frame's.

        A few sequences change size midway, so this is not the size of every frame.
        """
        match = re.fullmatch(r"\((\d+), *(\d+)\)", self.meta.get("resolution", ""))
        if match:
            return int(match[1]), int(match[2])
        with Image.open(self.frames[0]) as image:  # reads the header only
            return image.size


def read_table(path: Path, columns: int, remedy: str) -> Array:
    """A text file of finite numbers, `columns` per line with commas between, as an array of shape (lines, columns).

    Raises FileNotFoundError, or ValueError with file, line, value and `remedy`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {remedy}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip().splitlines(), 1):
        try:
            row = [float(value) for value in line.split(",")]
        except ValueError:
            row = []
        if len(row) != columns or not all(map(math.isfinite, row)):
            kind = "one finite number" if columns == 1 else f"{columns} finite numbers with commas between"
            raise ValueError(f"{path}, line {number}: expected {kind}, found {line!r}; {remedy}")
        rows.append(row)
    return np.array(rows, dtype=np.float64).reshape(-1, columns)


def read_split(root: Path) -> list[Sequence]:
    """The sequences that `root/list.txt` names, in its order.

    A line is a sequence's folder relative to `root`; the folder's name is the sequence's, and must be unique.
    Raises FileNotFoundError or ValueError with file, line, value and remedy for whatever cannot be read.
    """
    listing = root / "list.txt"
    if not listing.is_file():
        raise FileNotFoundError(f"{listing}: no such file; give a split's folder, such as GOT-10k/val")
    lines = [(n, line.strip()) for n, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1)]
    found: dict[str, Sequence] = {}
    for number, line in lines:
        if not line:
            continue
        folder = root / line
        if not folder.is_dir():
            raise FileNotFoundError(f"{listing}, line {number}: no folder {folder}; unpack it or delete the line")
        if folder.name in found:
            raise ValueError(f"{listing}, line {number}: the name {folder.name!r} stands twice; delete one")
        found[folder.name] = _read_sequence(folder)
    if not found:
        raise ValueError(f"{listing}: names no sequence; write one folder per line")
    return list(found.values())


def _read_sequence(folder: Path) -> Sequence:
    frames = _frames(folder)
    truth = folder / "groundtruth.txt"
    boxes = read_table(truth, 4, "restore x,y,w,h from the data set's archive")
    if len(boxes) not in (1, len(frames)):
        raise ValueError(f"{truth}: {len(boxes)} rows for {len(frames)} frames; write one per frame or the first alone")
    absent = _label(folder / "absence.label", len(frames), most=1)
    cover = _label(folder / "cover.label", len(frames), most=8)
    gone = np.zeros(len(frames), bool) if absent is None else absent == 1
    if len(boxes) == len(frames):
        gone |= (boxes[:, 2:] <= 0).any(1)
    # Two training sequences of GOT-10k have nothing but zeros by mistake; without labels, absent still means unseen.
    known = cover is not None and cover.any()
    visibility = cover / 8 if cover is not None and known else np.where(gone, 0.0, np.nan)
    description = folder / "nlp.txt"
    text = description.read_text(encoding="utf-8").strip() if description.is_file() else None
    return Sequence(folder.name, frames, boxes, gone, visibility, _meta(folder / "meta_info.ini"), text or None)


def _frames(folder: Path) -> tuple[Path, ...]:
    """The numbered images of a folder, in order of their numbers."""
    paths = list(folder.glob("*.jpg"))
    stray = [path for path in paths if not path.stem.isdecimal()]
    if stray:
        raise ValueError(f"{min(stray)}: not a numbered frame; delete it or move it elsewhere")
    if not paths:
        raise ValueError(f"{folder}: no frames (00000001.jpg, …); restore them from the data set's archive")
    numbered = sorted((int(path.stem), path) for path in paths)
    for (before, _), (after, path) in pairwise(numbered):
        if after != before + 1:
            raise ValueError(f"{path}: follows frame {before}, some are missing; restore them from the archive")
    return tuple(path for _, path in numbered)


def _label(path: Path, frames: int, most: int) -> Array | None:
    """Per-frame whole numbers from 0 to `most`, shape (frames,), or None where there is no such file."""
    if not path.is_file():
        return None
    values = read_table(path, 1, "restore or delete it")[:, 0]
    if len(values) != frames:
        raise ValueError(f"{path}: {len(values)} rows for {frames} frames; restore or delete it")
    wrong = np.flatnonzero(~np.isin(values, np.arange(most + 1)))
    if len(wrong):
        raise ValueError(
            f"{path}, line {wrong[0] + 1}: {values[wrong[0]]:g} is not one of 0 to {most}; restore or delete it"
        )
    return values


def _meta(path: Path) -> dict[str, str]:
    """The `key: value` lines of a meta_info.ini, which is no INI file; empty where there is none."""
    if not path.is_file():
        return {}
    pairs = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}
