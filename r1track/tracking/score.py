"""Stage `score`: what tracks are worth, by the official GOT-10k metric and by the means that others report.

`ao`, `sr50`, `sr75` and `curve` are the official ones (got10k toolkit 0.1.3): the first frame is left out, prediction
and truth are limited to the image, frames with cover > 0 count, and the frames of all sequences are pooled. Success at
a threshold is strict. `ao_sequence_mean` averages the sequences' AO; `classes` and `lengths` average it within groups,
`ao_class_mean` then over classes (mAO of the GOT-10k paper). A score on val is not comparable with published test ones.
A set in another layout has the figures of one-pass evaluation (OTB, LaSOT) besides: means over sequences of `one_pass`.
"""

import csv
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from r1track.core.boxes import Array, iou, xywh_to_xyxy
from r1track.core.files import Provenance, write_json
from r1track.core.sequences import Sequence, detect, read_list, read_split, read_table

THRESHOLDS = np.linspace(0, 1, 101)
SEED = 0  # of the bootstrap, so that equal tracks have equal scores
REMEDY = "run `r1track track` again"
FIGURES = ("success_auc", "precision_20px", "norm_precision_20pct")  # of one-pass evaluation
OVERLAPS, NEAR, NEAR_SHARE = np.linspace(0, 1, 21), 20, 0.2  # IoU; pixels; shares of the true sides
# Layouts whose toolkits count frames without a target, which nothing can hit, in the total; others leave them out.
MISSED = ("lasot", "tnl2k", "uav123")
LENGTHS = {100: "to 100 frames", 300: "101 to 300", 1000: "301 to 1000", 10**9: "above 1000"}


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


def one_pass(predicted: Array, sequence: Sequence, layout: str) -> dict[str, float]:
    """Success AUC, precision at 20 pixels and normalised precision at .2 of a sequence; empty where no frame counts.

    success_auc: mean over 21 thresholds of the share of frames with a greater IoU. The precisions: share of frames in
    which the centres are at most that far apart. Not limited to the image. The first frame counts, as in the toolkits
    of OTB and LaSOT; they put the true box there, here stands what `track` started from. predicted: as for `overlaps`.
    """
    seen = ~sequence.absent
    guess, truth, total = predicted[seen], sequence.boxes[seen], len(seen) if layout in MISSED else seen.sum()
    gap = guess[:, :2] + guess[:, 2:] / 2 - truth[:, :2] - truth[:, 2:] / 2
    gap[(guess[:, 2:] <= 0).any(1)] = np.inf  # a sequence that was never started is near nothing
    success = (iou(xywh_to_xyxy(guess), xywh_to_xyxy(truth))[:, None] > OVERLAPS).sum(0).mean()
    near, near_share = np.hypot(*gap.T) <= NEAR, np.hypot(*(gap / truth[:, 2:]).T) <= NEAR_SHARE
    found = zip(FIGURES, (success, near.sum(), near_share.sum()), strict=True)
    return {name: float(value / total) for name, value in found} if seen.any() else {}


def _read_times(path: Path, frames: int) -> Array | None:
    """Seconds of every frame, where the tracker wrote them."""
    if not path.is_file():
        return None
    seconds = read_table(path, 1, REMEDY)[:, 0]
    if len(seconds) != frames:
        raise ValueError(f"{path}: {len(seconds)} rows for {frames} frames; {REMEDY}")
    return seconds


def _read_status(path: Path, frames: int) -> Counter[str]:
    """How often each status stands in a status file; empty where the tracker wrote none."""
    if not path.is_file():
        return Counter()
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if len(rows) != frames or any(row.get("status") is None for row in rows):
        raise ValueError(f"{path}: expected frame,status,answer for {frames} frames, found {len(rows)} rows; {REMEDY}")
    return Counter(row["status"] for row in rows if row["status"] != "init")


def _summary(values: Array, times: list[Array]) -> dict[str, Any]:
    """AO, SR.50, SR.75 (null without frames) and frames per second, null without times.

    `fps` is the official one: the mean of 1/t, without first frames. `fps_run`: frames over all seconds, with starts.
    """
    known, every = len(values) > 0, np.concatenate([*times, np.empty(0)])
    own = np.concatenate([*(each[1:] for each in times), np.empty(0)])
    return {
        "ao": float(values.mean()) if known else None,
        "sr50": float((values > 0.5).mean()) if known else None,
        "sr75": float((values > 0.75).mean()) if known else None,
        "frames": len(values),
        "fps": float((1 / own[own > 0]).mean()) if own.any() else None,
        "fps_run": float((every > 0).sum() / every.sum()) if every.any() else None,
    }


def _read_track(tracks: Path, sequence: Sequence) -> tuple[Array, Array | None, Counter[str]]:
    """A sequence's boxes, seconds and statuses."""
    folder, name, frames = tracks / sequence.name, sequence.name, len(sequence.frames)
    path = folder / f"{name}_001.txt"
    predicted = read_table(path, 4, REMEDY)
    if len(predicted) != frames:
        raise ValueError(f"{path}: {len(predicted)} rows for {frames} frames; {REMEDY}")
    seconds = _read_times(folder / f"{name}_time.txt", frames)
    return predicted, seconds, _read_status(folder / f"{name}_status.csv", frames)


def _resample(count: int, draws: int, seed: int = SEED) -> NDArray[np.int64]:
    """Which of `count` sequences each bootstrap draw takes, shape (draws, count)."""
    return np.random.default_rng(seed).integers(0, count, (draws, count))


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
    picks = _resample(len(first), draws, seed)
    low, high = _interval(_pooled(first, picks) - _pooled(second, picks))
    return Difference(scores_a["ao"] - scores_b["ao"], low, high)


def _mean(rows: list[dict[str, Any]], key: str, draws: int) -> dict[str, Any]:
    """The mean of a figure over sequences, with its bootstrap interval."""
    values = np.array([row[key] for row in rows])
    spread = _interval(values[_resample(len(values), draws)].mean(1))
    return {key: float(values.mean()), f"{key}_interval": list(spread)}


def _groups(rows: list[dict[str, Any]], kind: str, draws: int) -> dict[str, dict[str, Any]]:
    """Mean AO of the sequences of each group, such as a class, by its name."""
    names = sorted({row[kind] for row in rows})
    groups = {name: [row for row in rows if row[kind] == name] for name in names}
    return {name: {**_mean(group, "ao", draws), "sequences": len(group)} for name, group in groups.items()}


def score(tracks: Path, root: Path, draws: int) -> dict[str, Any]:
    """The scores of `tracks` (`<model>/<set>`) against the split at `root`, as `run` writes them.

    `frames` counts the scored frames; `status` counts every tracked frame. A sequence without scored frames has null
    scores and enters no mean. Raises FileNotFoundError and ValueError with file and remedy for what cannot be scored.
    """
    rows: dict[str, dict[str, Any]] = {}
    values, times, status = [], [], Counter[str]()
    layout = detect(next(iter(read_list(root).values())))
    for sequence in read_split(root):
        if not sequence.complete:
            raise ValueError(
                f"{sequence.frames[0].parent / 'groundtruth.txt'}: holds the first box only (a test split), so there "
                "is nothing to score against; score a val split, or hand the tracks to the benchmark's server"
            )
        predicted, seconds, counts = _read_track(tracks, sequence)
        found, clock = overlaps(predicted, sequence), [] if seconds is None else [seconds]
        kind = sequence.name.rpartition("-")[0] if layout == "lasot" else "unknown"
        rows[sequence.name] = {
            **_summary(found, clock),
            "overlap_sum": float(found.sum()),
            "class": sequence.meta.get("object_class", kind),
            "length": next(name for most, name in LENGTHS.items() if len(predicted) <= most),
            "status": dict(counts),
            **(one_pass(predicted, sequence, layout) if layout != "got10k" else {}),
        }
        values.append(found)
        times.extend(clock)
        status += counts
    scored = [row for row in rows.values() if row["frames"]]
    if not scored:
        raise ValueError(f"{root}: no frame after the first has a visible target, nothing to score; check cover.label")
    passes = [row for row in rows.values() if "success_auc" in row]
    pooled, classes = np.concatenate(values), _groups(scored, "class", draws)
    name = tracks.resolve()
    return {
        "set": name.name,
        "model": name.parent.name,
        "metric": "ope" if passes else "got10k-pooled",
        **_summary(pooled, times),
        "ao_interval": list(_interval(_pooled(scored, _resample(len(scored), draws)))),
        **{key: value for name in FIGURES if passes for key, value in _mean(passes, name, draws).items()},
        "sequences_count": len(rows),
        "sequences_failed": sum("failed" in row["status"] for row in rows.values()),
        "ao_sequence_mean": float(np.mean([row["ao"] for row in scored])),
        "ao_class_mean": float(np.mean([group["ao"] for group in classes.values()])),
        "status": dict(status),
        "curve": (pooled[:, None] > THRESHOLDS).mean(0).tolist(),
        "sequences": rows,
        "classes": classes,
        "lengths": _groups(scored, "length", draws),
    }


def run(tracks: Path, root: Path, out: Path, draws: int) -> None:
    """Score `tracks` against the split at `root` and write the scores to the JSON file `out`, see `score`."""
    provenance = Provenance("score", {"tracks": tracks, "list": root / "list.txt"})
    write_json(out, score(tracks, root, draws))
    notes = {"settings": {"score": {"draws": draws}}}
    provenance.write(out.with_name(f"{out.name}.provenance.json"), seed=SEED, notes=notes)
