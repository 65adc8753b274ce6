"""Stage `score`: tracks against true boxes, by GOT-10k's official metric and by one-pass evaluation (OTB, LaSOT).

`ao`, `sr50`, `sr75` and `curve` are GOT-10k's (toolkit got10k 0.1.3): the first frame is left out, predicted and true
boxes are limited to the image, frames with cover > 0 count, and the frames of all sequences are pooled. Success at a
threshold is strict: IoU above it. docs/tracking.md defines every figure. Boxes are x, y, w, h in pixels of the frame.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from r1track.core.boxes import Array, iou, xywh_to_xyxy
from r1track.core.errors import UserError
from r1track.core.files import json_text
from r1track.core.provenance import Provenance
from r1track.core.sequences import Sequence, detect, read_list, read_split
from r1track.core.statistics import BLOCK
from r1track.tracking.track_files import Track, read_track

log = logging.getLogger(__name__)
THRESHOLDS = np.linspace(0, 1, 101)
SEED = 0  # of the bootstrap, so that equal tracks have equal scores
FIGURES = ("success_auc", "precision_20px", "norm_precision_20pct")  # of one-pass evaluation
OVERLAPS, NEAR, NEAR_SHARE = np.linspace(0, 1, 21), 20, 0.2  # IoU; pixels; shares of the true sides
# Layouts whose toolkits count frames without a target in the total, as misses; the others leave such frames out.
MISSED = ("lasot", "tnl2k", "uav123")
LENGTHS = {100: "to 100 frames", 300: "101 to 300", 1000: "301 to 1000", 10**9: "above 1000"}

Interval = tuple[float, float] | None  # the ends of a 95 % bootstrap interval over sequences; one sequence has none


class Record(BaseModel):
    """A frozen part of a score file; a number in it is finite."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, allow_inf_nan=False)


class SequenceScore(Record):
    """The score of one sequence. AO and SR are None where no frame counts, speeds where no time is known.

    frames: those that count. overlap_sum: of their IoU. length: a name of LENGTHS. status: how many frames have each
    status, without the first frame. absent: frames without a target by the annotation, the first one left out;
    absent_found: those that have the status `absent`. The figures of one-pass evaluation are set in other layouts than
    GOT-10k's only. attributes: what makes it hard, see `attributes`.
    """

    ao: float | None
    sr50: float | None
    sr75: float | None
    frames: int
    fps: float | None
    fps_run: float | None
    overlap_sum: float
    class_name: str = Field(alias="class")
    length: str
    status: dict[str, int]
    absent: int = 0
    absent_found: int = 0
    success_auc: float | None = None
    precision_20px: float | None = None
    norm_precision_20pct: float | None = None
    attributes: list[str] = []


class GroupScore(Record):
    """The mean AO of a group of sequences, such as a class, and how many sequences it has."""

    ao: float
    ao_interval: Interval
    sequences: int


class Presence(Record):
    """How well a tracker tells that the target is not there. frames: without a target by the annotation, one or more.

    precision: share of the frames with the status `absent` that are such; None where no frame has it. recall: share of
    such frames that have it.
    """

    precision: float | None
    recall: float
    frames: int


class Scores(Record):
    """The scores of a model on a set, as they stand in scores/<model>/<set>.json; docs/tracking.md defines each."""

    set: str
    model: str
    metric: Literal["got10k-pooled", "ope"]
    ao: float
    sr50: float
    sr75: float
    frames: int
    fps: float | None
    fps_run: float | None
    ao_interval: Interval
    presence: Presence | None = None  # where no frame is absent, and of tracks without statuses
    success_auc: float | None = None
    success_auc_interval: Interval = None
    precision_20px: float | None = None
    precision_20px_interval: Interval = None
    norm_precision_20pct: float | None = None
    norm_precision_20pct_interval: Interval = None
    sequences_count: int
    sequences_failed: int
    ao_sequence_mean: float
    ao_class_mean: float
    status: dict[str, int]
    curve: list[float] = Field(min_length=len(THRESHOLDS), max_length=len(THRESHOLDS))  # success at 0, .01, ..., 1
    sequences: dict[str, SequenceScore]
    classes: dict[str, GroupScore]
    lengths: dict[str, GroupScore]
    attributes: dict[str, GroupScore] = {}  # of the sequences that have each; files of earlier versions have none

    def as_json(self) -> dict[str, Any]:
        """The content of the file; figures that are not defined for the set's layout are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def limit(boxes_xywh: Array, size: tuple[int, int]) -> Array:
    """Boxes of shape (n, 4), limited to an image of (width, height) as the got10k toolkit does it, on a copy.

    The left top corner moves into the image and the extent stays (x = -10, w = 50 becomes x = 0, w = 50); then the box
    is cut at the right and lower border. The tracker itself crops boxes instead; official figures need this rule.
    """
    extent = np.array(size, dtype=np.float64)
    corner = np.clip(boxes_xywh[:, :2], 0, extent)
    return np.concatenate([corner, np.clip(boxes_xywh[:, 2:], 0, extent - corner)], axis=1)


def overlaps(predicted: Array, sequence: Sequence) -> Array:
    """The IoU of each of the k frames that count, shape (k,). Frames of unknown visibility count.

    predicted: a box for every frame, shape (n, 4); the first is the given box, and its frame does not count.
    """
    size = sequence.resolution()
    values = iou(xywh_to_xyxy(limit(predicted, size)), xywh_to_xyxy(limit(sequence.boxes, size)))
    return values[1:][~(sequence.visibility[1:] <= 0)]


def one_pass(predicted: Array, sequence: Sequence, layout: str) -> dict[str, float]:
    """The figures of one-pass evaluation (OTB 2015, LaSOT 2019) by name, as in FIGURES; empty where no frame counts.

    success_auc: the mean over 21 thresholds of the share of frames with a greater IoU. The precisions: the share of
    frames whose centres are at most 20 pixels, or .2 of the true sides, apart. Boxes are not limited to the image. The
    first frame counts, as in both toolkits; they put the true box there, here it is the box that `track` started from.
    predicted: a box for every frame, shape (n, 4). layout: of the set, see r1track/core/sequences.py.
    """
    seen = ~sequence.absent
    guess, truth, total = predicted[seen], sequence.boxes[seen], len(seen) if layout in MISSED else seen.sum()
    gap = guess[:, :2] + guess[:, 2:] / 2 - truth[:, :2] - truth[:, 2:] / 2
    gap[(guess[:, 2:] <= 0).any(1)] = np.inf  # the boxes of a failed sequence are zeros: they are near nothing
    success = (iou(xywh_to_xyxy(guess), xywh_to_xyxy(truth))[:, None] > OVERLAPS).sum(0).mean()
    near, near_share = np.hypot(*gap.T) <= NEAR, np.hypot(*(gap / truth[:, 2:]).T) <= NEAR_SHARE
    counts = zip(FIGURES, (success, near.sum(), near_share.sum()), strict=True)
    return {name: float(count / total) for name, count in counts} if seen.any() else {}


def attributes(sequence: Sequence) -> list[str]:
    """What makes a sequence hard, by its annotation: those attributes that one of its frames has.

    Fast motion is LaSOT's (table of attributes; Fan et al. 2019), scale change and occlusion those of OTB (Wu et al.
    2015), aspect change and out of view those of UAV123 (Mueller et al. 2016); docs/tracking.md has them in words.
    Frames without a target have no size and no motion.
    """
    sides = np.where(sequence.absent[:, None], np.nan, sequence.boxes[:, 2:])
    area, aspect = sides.prod(1), sides[:, 0] / sides[:, 1]
    motion = np.hypot(*np.diff(sequence.boxes[:, :2] + sides / 2, axis=0).T)
    frames = {
        "fast motion": motion > np.sqrt(area[:-1]),
        "scale change": np.abs(np.log2(area / area[0])) > 1,
        "aspect change": np.abs(np.log2(aspect / aspect[0])) > 1,
        "occlusion": (sequence.visibility < 1) & ~sequence.absent,
        "out of view": sequence.absent | sequence.cut,
    }
    return [name for name, have in frames.items() if have.any()]


def _pooled_figures(overlaps: Array, seconds: list[Array]) -> dict[str, Any]:
    """AO, SR.50 and SR.75 (None without frames) and frames per second (None without times).

    overlaps: IoU of all frames that count, shape (k,). seconds: of each sequence, shape (n,). `fps` is the official
    one: the mean of 1/t, first frames included. `fps_run`: the frames over the sum of their seconds.
    """
    times = np.concatenate(seconds)
    times = times[times > 0]
    columns = {"ao": overlaps, "sr50": overlaps > 0.5, "sr75": overlaps > 0.75, "fps": 1 / times}
    means = {name: float(values.mean()) if len(values) else None for name, values in columns.items()}
    return {**means, "frames": len(overlaps), "fps_run": float(len(times) / times.sum()) if len(times) else None}


def _resampled(columns: Array, draws: int, seed: int = SEED) -> Array:
    """The sum of each column over the sequences that each bootstrap draw takes, shape (k, draws).

    columns: k figures of n sequences, shape (k, n). The draws are made in blocks, of the same numbers as all at once.
    """
    random, count = np.random.default_rng(seed), columns.shape[1]
    sums, block = np.empty((len(columns), draws)), max(1, BLOCK // count)
    for start in range(0, draws, block):
        picks = random.integers(0, count, (min(block, draws - start), count))
        for column, total in zip(columns, sums, strict=True):
            total[start : start + block] = column[picks].sum(1)
    return sums


def _sums(sequences: Iterable[SequenceScore]) -> Array:
    """The sums of overlaps, and the frames that count, of n sequences: shape (2, n)."""
    return np.array([(sequence.overlap_sum, sequence.frames) for sequence in sequences], dtype=np.float64).T.copy()


def _interval(values: Array, count: int) -> Interval:
    """The interval from the bootstrap's draws over `count` sequences."""
    low, high = np.percentile(values, [2.5, 97.5])
    return (float(low), float(high)) if count > 1 else None


class Difference(NamedTuple):
    """A difference of pooled AO and the ends of its 95 % interval, None where there is one sequence."""

    value: float
    low: float | None
    high: float | None


def paired_difference(scores_a: Scores, scores_b: Scores, draws: int, seed: int = SEED) -> Difference:
    """Pooled AO of `scores_a` minus that of `scores_b`, with a 95 % paired bootstrap interval over sequences.

    Raises UserError when the two are not of the same sequences and frames.
    """
    a, b = scores_a.sequences, scores_b.sequences
    unpaired = sorted(a.keys() ^ b.keys()) or [name for name in a if a[name].frames != b[name].frames]
    names = [name for name in a if a[name].frames]
    if unpaired:
        raise UserError(
            f"scores of {scores_a.model} and {scores_b.model} on {scores_a.set} differ in the sequence "
            f"{unpaired[0]!r} or its frames, so they cannot be paired; score both on the same split"
        )
    if not names:
        raise UserError(f"scores of {scores_a.model} on {scores_a.set}: sequences: none has a frame that counts")
    (first, frames), (second, _) = (_sums(sequences[name] for name in names) for sequences in (a, b))
    first, second, frames = _resampled(np.array([first, second, frames]), draws, seed)
    change = _interval(first / frames - second / frames, len(names))
    return Difference(scores_a.ao - scores_b.ao, *(change or (None, None)))


def _mean(values: list[Any], draws: int) -> tuple[float, Interval]:
    """The mean of a figure over sequences, and its bootstrap interval."""
    array = np.array([values], dtype=np.float64)
    return float(array.mean()), _interval(_resampled(array, draws)[0] / len(values), len(values))


def _groups(sequences: list[SequenceScore], field: str, draws: int) -> dict[str, GroupScore]:
    """Mean AO of the sequences that have the same value of a field, or the same one among its values, by that value."""
    groups = defaultdict[str, list[float | None]](list)
    for sequence in sequences:
        value = getattr(sequence, field)
        for name in value if isinstance(value, list) else [value]:
            groups[name].append(sequence.ao)
    scores = {name: (*_mean(values, draws), len(values)) for name, values in sorted(groups.items())}
    return {name: GroupScore(ao=ao, ao_interval=ends, sequences=n) for name, (ao, ends, n) in scores.items()}


def _presence(sequences: Iterable[SequenceScore]) -> Presence | None:
    """Precision and recall over the frames of all sequences; None where no frame is absent or none has a status."""
    counts = [(row.absent, row.absent_found, row.status.get("absent", 0)) for row in sequences if row.status]
    frames, right, said = np.sum(counts, 0, dtype=int).tolist() if counts else (0, 0, 0)
    return Presence(precision=right / said if said else None, recall=right / frames, frames=frames) if frames else None


def _score_sequence(track: Track, sequence: Sequence, layout: str) -> tuple[SequenceScore, Array]:
    """The score of a sequence, and the IoU of each of its frames that count."""
    values = overlaps(track.boxes, sequence)
    class_name = sequence.name.rpartition("-")[0] if layout == "lasot" else "unknown"
    found = [status == "absent" and absent for status, absent in zip(track.statuses, sequence.absent, strict=False)]
    return SequenceScore(
        **_pooled_figures(values, [track.seconds]),
        overlap_sum=float(values.sum()),
        class_name=sequence.meta.get("object_class", class_name),
        length=next(name for most, name in LENGTHS.items() if len(track.boxes) <= most),
        status=Counter(status for status in track.statuses if status != "init"),
        absent=int(sequence.absent[1:].sum()),
        absent_found=sum(found),
        **(one_pass(track.boxes, sequence, layout) if layout != "got10k" else {}),
        attributes=attributes(sequence),
    ), values


def score(tracks: Path, root: Path, draws: int) -> Scores:
    """The scores of `tracks` (`<model>/<set>`) against the split at `root`.

    draws: of the bootstrap. A sequence of which no frame counts enters no mean.
    Raises UserError, with file and remedy, for what cannot be scored.
    """
    rows, values, seconds = dict[str, SequenceScore](), list[Array](), list[Array]()
    layout = detect(next(iter(read_list(root).values())))
    for sequence in read_split(root):
        if not sequence.complete:
            raise UserError(
                f"{sequence.frames[0].parent / 'groundtruth.txt'}: holds the first box only (a test split), so there "
                "is nothing to score against; score a val split, or hand the tracks to the benchmark's server"
            )
        track = read_track(tracks, sequence.name, len(sequence.frames))
        rows[sequence.name], frame_values = _score_sequence(track, sequence, layout)
        values.append(frame_values)
        seconds.append(track.seconds)
    scored = [row for row in rows.values() if row.frames]
    if not scored:
        raise UserError(f"{root}: no frame after the first has a visible target, nothing to score; check cover.label")
    passes, one_pass_means = [row for row in rows.values() if row.success_auc is not None], dict[str, Any]()
    for name in FIGURES if passes else ():
        one_pass_means[name], one_pass_means[f"{name}_interval"] = _mean([getattr(row, name) for row in passes], draws)
    pooled, classes, folder = np.concatenate(values), _groups(scored, "class_name", draws), tracks.resolve()
    return Scores(
        set=folder.name,
        model=folder.parent.name,
        metric="ope" if passes else "got10k-pooled",
        **_pooled_figures(pooled, seconds),
        ao_interval=_interval(np.divide(*_resampled(_sums(scored), draws)), len(scored)),
        presence=_presence(rows.values()),
        **one_pass_means,
        sequences_count=len(rows),
        sequences_failed=sum("failed" in row.status for row in rows.values()),
        ao_sequence_mean=float(np.mean([row.ao for row in scored if row.ao is not None])),
        ao_class_mean=float(np.mean([group.ao for group in classes.values()])),
        status=sum((Counter(row.status) for row in rows.values()), Counter[str]()),
        curve=(pooled[:, None] > THRESHOLDS).mean(0).tolist(),
        sequences=rows,
        classes=classes,
        lengths=_groups(scored, "length", draws),
        attributes=_groups(scored, "attributes", draws),
    )


def run(tracks: Path, root: Path, out: Path, draws: int) -> None:
    """Score `tracks` against the split at `root` and write the scores to the JSON file `out`, see `score`."""
    provenance = Provenance("score", {"tracks": tracks, "list": root / "list.txt"})
    notes = {"settings": {"score": {"draws": draws}}}
    if any(tracks.glob("*/*_002.txt")):
        log.warning("%s: holds several runs of the tracker; the first of each sequence is scored", tracks)
    with provenance.result_file(out, seed=SEED, notes=notes) as temp_path:
        temp_path.write_text(json_text(score(tracks, root, draws).as_json()), encoding="utf-8")
