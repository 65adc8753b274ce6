"""Draws docs/before-after.jpg: of a finished demo, the clips that training changed best, in the middle, and worst.

python docs/contact_sheet.py RESULTS SPLIT_DIR      # such as results/demo scratch/demo/toy/val

The true box is white, the base's red, the tuned model's green. The label has the clip's AO before and after.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from r1track.core import files
from r1track.core.boxes import xywh_to_xyxy
from r1track.core.sequences import Sequence, read_split, read_table

COLUMNS, SET, SCALE = 6, "toy-val", 1.25
COLOURS = {"truth": (255, 255, 255), "base": (255, 70, 70), "grpo": (60, 255, 60)}


def row(sequence: Sequence, results: Path, label: str) -> Image.Image:
    """Evenly spread frames of one clip, side by side; no true box where the target is absent."""
    tracks = {m: results / "tracks" / m / SET / sequence.name / f"{sequence.name}_001.txt" for m in ("base", "grpo")}
    boxes = {"truth": sequence.boxes, **{model: read_table(path, 4, "") for model, path in tracks.items()}}
    strip = []
    for t in np.linspace(0, len(sequence.frames) - 1, COLUMNS).round().astype(int):
        frame = Image.open(sequence.frames[t]).convert("RGB")
        frame = frame.resize([round(SCALE * side) for side in frame.size])
        for name, colour in COLOURS.items():
            if name != "truth" or not sequence.absent[t]:
                corners = SCALE * xywh_to_xyxy(boxes[name][t])
                ImageDraw.Draw(frame).rectangle(corners.tolist(), outline=colour, width=2)
        strip.append(np.asarray(frame))
    drawn = Image.fromarray(np.concatenate(strip, axis=1))
    ImageDraw.Draw(drawn).text((6, 4), label, fill="white", stroke_width=2, stroke_fill="black", font_size=16)
    return drawn


def main() -> None:
    results, root = map(Path, sys.argv[1:])
    scores = {m: files.read_json(results / "scores" / m / f"{SET}.json")["sequences"] for m in ("base", "grpo")}
    ao = {name: [scores[model][name]["ao"] for model in scores] for name in scores["base"]}
    ranked = sorted((name for name in ao if None not in ao[name]), key=lambda name: ao[name][0] - ao[name][1])
    sequences = {sequence.name: sequence for sequence in read_split(root)}
    picks = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    labels = {name: f"{rank}: {ao[name][0]:.2f} to {ao[name][1]:.2f}" for rank, name in picks.items()}
    rows = [np.asarray(row(sequences[name], results, label)) for name, label in labels.items()]
    Image.fromarray(np.concatenate(rows)).save(Path(__file__).parent / "before-after.jpg", quality=85)


if __name__ == "__main__":
    main()
