"""Stage `score`: what tracks are worth, by the official GOT-10k metric and by the means that others report.

`ao`, `sr50`, `sr75` and `curve` are the official ones (got10k toolkit 0.1.3): the first frame is left out, prediction
and truth are limited to the image, frames with cover > 0 count, and the frames of all sequences are pooled. Success at
a threshold is strict. `ao_sequence_mean` averages the sequences' AO; `classes` and `ao_class_mean` average it within
classes and then over classes (mAO of the GOT-10k paper). A score on val is not comparable with published test scores.
"""

import csv
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from r1track.boxes import Array, iou, xywh_to_xyxy
from r1track.files import Provenance, write_json
from r1track.sequences import Sequence, read_split, read_table

THRESHOLDS = np.linspace(0, 1, 101)
SEED = 0  # of the bootstrap, so that equal tracks have equal scores
REMEDY = "run `r1track track` again"


def limit(boxes_xywh: Array, size: tuple[int, int]) -> Array:
    """Boxes x, y, w, h, shape (n, 4), limited to width and height as the official toolkit does it, on a copy.

    Its corner is moved into the image while the extent is kept (x = -10, w = 50 becomes x = 0, w = 50), then cut at the
    right and lower border: not what the tracker's own cropping does, but what official numbers are computed with.
    """
    extent = np.array(size, dtype=np.float64)
    corner = np.clip(boxes_xywh[:, :2], 0, extent)
    return np.concatenate([corner, np.clip(boxes_xywh[:, 2:], 0, extent - corner)], axis=1)


def overlaps(predicted: Array, sequence: Sequence) -> Array:
    """IoU per frame that counts, shape (k,); `predicted` is x, y, w, h, shape (n, 4), the first row the given box.

    Frames of unknown visibility count.
    """
    size = sequence.resolution()
    values = iou(xywh_to_xyxy(limit(predicted, size)), xywh_to_xyxy(limit(sequence.boxes, size)))
    return values[1:][~(sequence.visibility[1:] <= 0)]


def _read_times(path: Path, frames: int) -> Array | None:
    """Seconds of every frame but the first, where the tracker wrote them."""
    if not path.is_file():
        return None
    seconds = read_table(path, 1, REMEDY)[:, 0]
    if len(seconds) != frames:
        raise ValueError(f"{path}: {len(seconds)} rows for {frames} frames; {REMEDY}")
    return seconds[1:][seconds[1:] > 0]


def _read_status(path: Path, frames: int) -> Counter[str]:
    """How often each status stands in a status file; empty where the tracker wrote none."""
    if not path.is_file():
        return Counter()
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if len(rows) != frames or any(row.get("status") is None for row in rows):
        raise ValueError(f"{path}: expected frame,status,answer for {frames} frames, found {len(rows)} rows; {REMEDY}")
    return Counter(row["status"] for row in rows if row["status"] != "init")


def _summary(values: Array, seconds: Array | None) -> dict[str, Any]:
    """AO, SR.50, SR.75 (null without frames) and frames per second: the mean of 1/t, null without times."""
    known = len(values) > 0
    return {
        "ao": float(values.mean()) if known else None,
        "sr50": float((values > 0.5).mean()) if known else None,
        "sr75": float((values > 0.75).mean()) if known else None,
        "frames": len(values),
        "fps": float((1 / seconds).mean()) if seconds is not None and len(seconds) else None,
    }


def _read_track(tracks: Path, sequence: Sequence) -> tuple[Array, Array | None, Counter[str]]:
    """A sequence's overlaps, seconds and statuses."""
    folder, name, frames = tracks / sequence.name, sequence.name, len(sequence.frames)
    path = folder / f"{name}_001.txt"
    predicted = read_table(path, 4, REMEDY)
    if len(predicted) != frames:
        raise ValueError(f"{path}: {len(predicted)} rows for {frames} frames; {REMEDY}")
    seconds = _read_times(folder / f"{name}_time.txt", frames)
    return overlaps(predicted, sequence), seconds, _read_status(folder / f"{name}_status.csv", frames)


def _resample(rows: list[dict[str, Any]], draws: int, seed: int) -> NDArray[np.int64]:
    """Which sequences each bootstrap draw takes, shape (draws, sequences)."""
    return np.random.default_rng(seed).integers(0, len(rows), (draws, len(rows)))


def _pooled(rows: list[dict[str, Any]], picks: NDArray[np.int64]) -> Array:
    """Pooled AO of each draw, shape (draws,)."""
    sums, frames = (np.array([row[key] for row in rows], dtype=np.float64) for key in ("overlap_sum", "frames"))
    return sums[picks].sum(1) / frames[picks].sum(1)


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


class Difference(NamedTuple):
    """A difference of pooled AO and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(scores_a: dict[str, Any], scores_b: dict[str, Any], draws: int, seed: int = SEED) -> Difference:
    """Pooled AO of `scores_a` minus that of `scores_b`, with a 95 % paired bootstrap interval over sequences.

    Both are what `run` writes, for the same set. Raises ValueError when their sequences or frames differ.
    """
    a, b = scores_a["sequences"], scores_b["sequences"]
    odd = sorted(a.keys() ^ b.keys()) or [name for name in a if a[name]["frames"] != b[name]["frames"]]
    if odd:
        raise ValueError(
            f"scores of {scores_a['model']} and {scores_b['model']} on {scores_a['set']} differ in the sequence "
            f"{odd[0]!r} or its frames, so they cannot be paired; score both on the same split"
        )
    names = [name for name in a if a[name]["frames"]]
    first, second = [a[name] for name in names], [b[name] for name in names]
    picks = _resample(first, draws, seed)
    low, high = _interval(_pooled(first, picks) - _pooled(second, picks))
    return Difference(scores_a["ao"] - scores_b["ao"], low, high)


def _class_means(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Mean AO of the sequences of each class, by name."""
    groups: dict[str, list[float]] = {}
    for row in rows.values():
        if row["frames"]:
            groups.setdefault(row["class"], []).append(row["ao"])
    return {name: float(np.mean(groups[name])) for name in sorted(groups)}


def score(tracks: Path, root: Path, draws: int) -> dict[str, Any]:
    """The scores of `tracks` (`<model>/<set>`) against the split at `root`, as `run` writes them.

    `frames` counts the scored frames; `status` counts every tracked frame. A sequence without scored frames has null
    scores and enters no mean. Raises FileNotFoundError and ValueError with file and remedy for what cannot be scored.
    """
    rows: dict[str, dict[str, Any]] = {}
    values, times, status = [], [], Counter[str]()
    for sequence in read_split(root):
        if not sequence.complete:
            raise ValueError(
                f"{sequence.frames[0].parent / 'groundtruth.txt'}: holds the first box only (a test split), so there "
                "is nothing to score against; score a val split, or hand the tracks to the benchmark's server"
            )
        found, seconds, counts = _read_track(tracks, sequence)
        rows[sequence.name] = {
            **_summary(found, seconds),
            "overlap_sum": float(found.sum()),
            "class": sequence.meta.get("object_class", "unknown"),
            "status": dict(counts),
        }
        values.append(found)
        times.extend([] if seconds is None else [seconds])
        status += counts
    scored = [row for row in rows.values() if row["frames"]]
    if not scored:
        raise ValueError(f"{root}: no frame after the first has a visible target, nothing to score; check cover.label")
    pooled, classes = np.concatenate(values), _class_means(rows)
    name = tracks.resolve()
    return {
        "set": name.name,
        "model": name.parent.name,
        "metric": "got10k-pooled",
        **_summary(pooled, np.concatenate(times) if times else None),
        "ao_interval": list(_interval(_pooled(scored, _resample(scored, draws, SEED)))),
        "sequences_count": len(rows),
        "ao_sequence_mean": float(np.mean([row["ao"] for row in scored])),
        "ao_class_mean": float(np.mean(list(classes.values()))),
        "status": dict(status),
        "curve": (pooled[:, None] > THRESHOLDS).mean(0).tolist(),
        "sequences": rows,
        "classes": classes,
    }


def run(tracks: Path, root: Path, out: Path, draws: int) -> None:
    """Score `tracks` against the split at `root` and write the scores to the JSON file `out`, see `score`."""
    provenance = Provenance("score", [tracks, root / "list.txt"])
    write_json(out, score(tracks, root, draws))
    provenance.write(out.with_name(f"{out.name}.provenance.json"), seed=SEED, draws=draws)
