"""Draws docs/toy-world.jpg: five clips of toy/val, six frames each, with the true box in green.

python docs/contact_sheet.py SPLIT_DIR      # such as scratch/demo/toy/val
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from r1track.boxes import xywh_to_xyxy
from r1track.sequences import Sequence, read_split

ROWS, COLUMNS = 5, 6


def row(sequence: Sequence) -> Image.Image:
    """Evenly spread frames of one clip, side by side; no box where the target is absent."""
    strip = []
    for t in np.linspace(0, len(sequence.frames) - 1, COLUMNS).round().astype(int):
        frame = Image.open(sequence.frames[t]).convert("RGB")
        if not sequence.absent[t]:
            ImageDraw.Draw(frame).rectangle(xywh_to_xyxy(sequence.boxes[t]).tolist(), outline=(60, 255, 60))
        strip.append(np.asarray(frame))
    return Image.fromarray(np.concatenate(strip, axis=1))


def main() -> None:
    sequences = read_split(Path(sys.argv[1]))
    sequences.sort(key=lambda sequence: -int(sequence.absent.sum()))
    chosen = [*sequences[:2], *sequences[-ROWS + 2 :]]
    rows = [np.asarray(row(sequence)) for sequence in chosen]
    Image.fromarray(np.concatenate(rows)).save(Path(__file__).parent / "toy-world.jpg", quality=88)


if __name__ == "__main__":
    main()
