"""Pictures of the page: film strips of sequences, and what a training run's model answered, with the boxes of both.

Boxes are not drawn into the pixels: the page lays them over the picture, in the picture's own coordinates.
"""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from r1track.core.boxes import Array, iou, xywh_to_xyxy, xyxy_to_xywh
from r1track.core.files import read_json
from r1track.core.prompts import parse_box
from r1track.core.sequences import Sequence, read_split
from r1track.tracking.track_files import Track, read_track

SIDE = 480  # most pixels of a picture's longer side on the page
QUALITY = 80
TRUTH = "truth"
FAILURES = ("held", "absent", "clipped", "failed")  # statuses of the tracker


def choose(changes: dict[str, float], count: int) -> list[tuple[str, str]]:
    """At most `count` sequences as (`best`|`median`|`worst`, name), by their change, the largest first."""
    names = sorted(changes, key=lambda name: (-changes[name], name))
    count = min(count, len(names))
    best, worst, middle = (count + 2) // 3, (count + 1) // 3, count // 3
    start = min(max((len(names) - middle) // 2, best), len(names) - worst - middle)
    places = [("best", 0, best), ("median", start, middle), ("worst", len(names) - worst, worst)]
    return [(rank, name) for rank, at, length in places for name in names[at : at + length]]


def failures(sequences: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """For every status of failure that occurs: (status, the sequence with most of it), from a model's scores."""
    worst = {each: max(sequences, key=lambda name: sequences[name]["status"].get(each, 0)) for each in FAILURES}
    return [(status, name) for status, name in worst.items() if sequences[name]["status"].get(status)]


def read(
    tracks: Path, name: str, root: Path, models: list[str], picks: list[tuple[str, str]], frames: int
) -> tuple[list[dict[str, Any]], str | None]:
    """A strip of `frames` frames for every pick, or none and why the split's frames cannot be read.

    tracks: results/<run>/tracks. name: of the set. root: its split. models: whose boxes are shown; the last is the one
    whose answers are. picks: as from `choose` and `failures`; the latter are shown around their first failure.
    Raises FileNotFoundError or ValueError when it is the tracks that cannot be read.
    """
    tracked = {pick: {model: read_track(tracks / model / name, pick) for model in models} for _, pick in picks}
    try:
        sequences = {sequence.name: sequence for sequence in read_split(root)}
        gone = [pick for pick in tracked if pick not in sequences]
        if gone:
            return [], f"{root} has no sequence {gone[0]} any more"
        return [
            {"rank": rank, "sequence": pick, **_strip(sequences[pick], tracked[pick], models[-1], rank, frames)}
            for rank, pick in picks
        ], None
    except (OSError, ValueError) as error:
        return [], str(error)


def _strip(sequence: Sequence, tracked: dict[str, Track], judged: str, rank: str, count: int) -> dict[str, Any]:
    """Frames as the page shows them, and which it opens at: evenly spaced, or around the first failure.

    tracked: tracks by model. judged: the model whose statuses and answers are shown.
    """
    total, statuses, answers = len(sequence.frames), tracked[judged].statuses, tracked[judged].answers
    for model, rows in ((model, track.boxes) for model, track in tracked.items()):
        if not len(rows) == total == len(sequence.boxes):
            raise ValueError(f"{sequence.name} has {total} frames now, {len(rows)} when {model} tracked it")
    chosen, first = np.unique(np.linspace(min(1, total - 1), total - 1, count).round().astype(int)).tolist(), 0
    if statuses and rank in FAILURES:
        at = statuses.index(rank)
        start = max(0, min(at - count // 3, total - count))
        chosen, first = list(range(start, min(start + count, total))), at - start
    shown = []
    for t in chosen:
        here = {} if sequence.absent[t] else {TRUTH: sequence.boxes[t]}
        tracks = {model: track.boxes[t] for model, track in tracked.items()}
        overlap = {m: float(iou(xywh_to_xyxy(box), xywh_to_xyxy(here[TRUTH]))) for m, box in tracks.items() if here}
        values = ", ".join(f"{model} {value:.2f}" for model, value in overlap.items())
        said = {"status": statuses[t], "answer": answers[t]} if statuses else {"status": "", "answer": ""}
        words = f"IoU {values}" if here else "target absent"
        alt = f"{sequence.name}, frame {t + 1}: {words}; {said['status']}"
        boxes = here | tracks
        shown.append({**said, "frame": t + 1, "words": words, "alt": alt, **_picture(sequence.frames[t], boxes)})
    return {"frames": shown, "first": first}


def _picture(path: Path, boxes: dict[str, Array]) -> dict[str, Any]:
    """A picture as a data URI, made smaller where it is large; its own size, and boxes x, y, w, h in its own pixels."""
    with Image.open(path) as opened:
        width, height = opened.size
        opened.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        opened.convert("RGB").save(stream, "JPEG", quality=QUALITY)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    laid = [(model, np.round(box, 1).tolist()) for model, box in boxes.items()]
    return {"width": width, "height": height, "source": source, "boxes": laid}


def answers(folder: Path, count: int, think: bool) -> list[dict[str, Any]]:
    """At most `count` of the questions that a training run kept in `folder`, evenly spaced over its steps.

    Each with its pictures, on the search region the true box and those of readable answers, and with all its answers.
    """
    paths = sorted(folder.glob("step-*.json"))
    shown = []
    for k in np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)).tolist():
        kept = read_json(paths[k])
        files = [folder / name for name in kept["images"]]
        with Image.open(files[1]) as search:
            read = [parse_box(row["answer"], size=search.width, think=think) for row in kept["answers"]]
        boxes = [*(("answer", box) for box in read if box is not None), (TRUTH, np.array(kept["target"]))]
        pictures = [_picture(path, {}) for path in files]
        pictures[1]["boxes"] = [(whose, np.round(xyxy_to_xywh(box), 1).tolist()) for whose, box in boxes]
        shown.append({"step": kept["step"], "answers": kept["answers"], "pictures": pictures})
    return shown
