"""Small splits for tests: clips of the toy world, and bare annotations whose frames are empty files."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from r1track.toy.world import write_split

REAL = Path(__file__).resolve().parents[2] / "shared" / "realseq"
needs_real = pytest.mark.skipif(
    not (REAL / "list.txt").is_file(), reason="the real clips (shared/realseq beside the repository) are not here"
)


def toy_split(folder: Path, *, sequences: int = 4, length: int = 12, seed: int = 7) -> Path:
    """A validation split of the toy world at `folder`; clips of 24 frames have some in which the target is absent."""
    write_split(folder, "val", sequences=sequences, length=length, seed=seed)
    return folder


def bare_sequence(
    root: Path, name: str, boxes: ArrayLike, *, cover: Iterable[int] = (), size: str = "(100, 80)", kind: str = "dog"
) -> Path:
    """A sequence folder with annotations and empty image files; it joins `root/list.txt`."""
    boxes = np.asarray(boxes, dtype=float)
    folder = root / name
    folder.mkdir(parents=True)
    for t in range(len(boxes)):
        (folder / f"{t + 1:08d}.jpg").touch()
    np.savetxt(folder / "groundtruth.txt", boxes, fmt="%.4f", delimiter=",")
    cover = list(cover)
    if cover:
        (folder / "cover.label").write_text("".join(f"{c}\n" for c in cover))
    (folder / "meta_info.ini").write_text(f"[METAINFO]\nobject_class: {kind}\nresolution: {size}\n")
    with (root / "list.txt").open("a") as stream:
        stream.write(f"{name}\n")
    return folder
