"""Film strips of the page: frames of the best, the median and the worst sequences, with boxes drawn on them."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from r1track.boxes import Array, iou, xywh_to_xyxy
from r1track.sequences import Sequence, read_split, read_table

SIDE = 320  # pixels of a frame's longer side on the page
QUALITY = 80
TRUTH = "truth"
REMEDY = "run the stage `track` again"


def choose(changes: dict[str, float], count: int) -> list[tuple[str, str]]:
    """At most `count` sequences as (`best`|`median`|`worst`, name), by their change, the largest first."""
    names = sorted(changes, key=lambda name: (-changes[name], name))
    count = min(count, len(names))
    best, worst, middle = (count + 2) // 3, (count + 1) // 3, count // 3
    start = min(max((len(names) - middle) // 2, best), len(names) - worst - middle)
    places = [("best", 0, best), ("median", start, middle), ("worst", len(names) - worst, worst)]
    return [(rank, name) for rank, at, length in places for name in names[at : at + length]]


def read(
    tracks: Path, name: str, root: Path, colours: dict[str, str], picks: list[tuple[str, str]], frames: int
) -> tuple[list[dict[str, Any]], str | None]:
    """A strip of `frames` frames for every pick, or none and why the split's frames cannot be read.

    tracks: results/<run>/tracks. name: of the set. root: its split. colours: of the boxes, by model, and of the truth.
    Raises FileNotFoundError or ValueError when it is the tracks that cannot be read.
    """
    boxes = {
        pick: {m: read_table(tracks / m / name / pick / f"{pick}_001.txt", 4, REMEDY) for m in colours if m != TRUTH}
        for _, pick in picks
    }
    try:
        sequences = {sequence.name: sequence for sequence in read_split(root)}
        gone = [pick for pick in boxes if pick not in sequences]
        if gone:
            return [], f"{root} has no sequence {gone[0]} any more"
        strips = [(rank, pick, _strip(sequences[pick], boxes[pick], colours, frames)) for rank, pick in picks]
        return [{"rank": rank, "sequence": pick, "frames": shown} for rank, pick, shown in strips], None
    except (OSError, ValueError) as error:
        return [], str(error)


def _strip(sequence: Sequence, tracked: dict[str, Array], colours: dict[str, str], count: int) -> list[dict[str, Any]]:
    """Frames after the first, evenly spaced, as the page shows them."""
    total = len(sequence.frames)
    for model, rows in tracked.items():
        if not len(rows) == total == len(sequence.boxes):
            raise ValueError(f"{sequence.name} has {total} frames now, {len(rows)} when {model} tracked it")
    shown = []
    for t in np.unique(np.linspace(min(1, total - 1), total - 1, count).round().astype(int)).tolist():
        here = {} if sequence.absent[t] else {TRUTH: xywh_to_xyxy(sequence.boxes[t])}
        guesses = {model: xywh_to_xyxy(rows[t]) for model, rows in tracked.items()}
        overlap = {model: float(iou(box, here[TRUTH])) for model, box in guesses.items() if here}
        words = ", ".join(f"{model} {value:.2f}" for model, value in overlap.items()) or "target absent"
        alt = f"{sequence.name}, frame {t + 1}: {'IoU ' if overlap else ''}{words}"
        source = _picture(sequence.frames[t], here | guesses, colours)
        shown.append({"frame": t + 1, "words": words, "alt": alt, "source": source})
    return shown


def _picture(path: Path, boxes: dict[str, Array], colours: dict[str, str]) -> str:
    """A frame with corner boxes (in the frame's pixels) as a data URI."""
    with Image.open(path) as opened:
        scale = SIDE / max(opened.size)
        image = opened.convert("RGB").resize((round(opened.width * scale), round(opened.height * scale)))
    draw = ImageDraw.Draw(image)
    for model, box in boxes.items():
        x1, y1, x2, y2 = (box * scale).tolist()
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colours[model], width=4 if model == TRUTH else 2)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
