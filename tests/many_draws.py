"""Ten thousand pairs whose pixels are not read: what tests look at is where their crops lie."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1track.core import config, prompts
from r1track.core.boxes import iou, xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.sequences import Sequence
from r1track.data import shards as shard_files


def distance_off(row: dict[str, Any]) -> float:
    """How far the search region of a pair is from the target, over the target's width or height; 0 where they touch."""
    (x, y, w, h), (left, top, side) = row["boxes"][1], row["crops"][1]
    return max((left - x - w) / w, (x - left - side) / w, (top - y - h) / h, (y - top - side) / h, 0.0)


@functools.cache
def kind(number: int) -> Sequence:
    """A sequence of 1920x1080 frames whose target has its own size and shape and is anywhere."""
    rng = np.random.default_rng(number)
    n, side, stretch = 150, np.exp(rng.uniform(np.log(40), np.log(400))), np.exp(rng.uniform(-0.2, 0.2))
    w, h = side * stretch, side / stretch
    corners = rng.uniform([0, 0], [1920 - w, 1080 - h], (n, 2))
    boxes = np.hstack([corners, np.tile([w, h], (n, 1))])
    nothing = np.zeros(n, bool)
    return Sequence("", (Path(),) * n, boxes, nothing, np.full(n, np.nan), nothing, {}, None)


def wide(folder: Path, layout: str) -> Sequence:
    return dataclasses.replace(kind(int(folder.name) % 500), name=folder.name)


def drawn(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[dict[str, Any]]:
    monkeypatch.setattr(shard_files, "read_sequence", wide)
    monkeypatch.setattr(shard_files, "read_size", lambda path: (1920, 1080))
    frame = np.zeros((1080, 1920, 3), np.uint8)
    monkeypatch.setattr(shard_files, "decode", lambda path, crops: (frame, 1))
    monkeypatch.setattr(Crop, "warp", lambda crop, frame, reduced: np.zeros((8, 8, 3), np.uint8))
    chosen = config.resolve(
        {"preset": "r1track-5k", "model": {"min_pixels": 10000}, "sample": {"policy": "matched", **changes}}
    )
    per_sequence = 10 if chosen.sample.policy == "matched" else 1
    parts = [(Path(str(k)), per_sequence) for k in range(10000 // per_sequence)]
    rows = list(shard_files.pairs(parts, "got10k", chosen))
    assert sum(isinstance(row, str) for row in rows) < 0.02 * len(rows)
    return [row for row in rows if isinstance(row, dict)]


def measured(rows: list[dict[str, Any]], which: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one image of every pair: the factor, and the crop's displacement in shares of the target and of the crop."""
    boxes, crops = (np.array([row[key][which] for row in rows]) for key in ("boxes", "crops"))
    size = np.sqrt(boxes[:, 2] * boxes[:, 3])
    shift = crops[:, :2] + crops[:, 2:] / 2 - boxes[:, :2] - boxes[:, 2:] / 2
    return crops[:, 2] / size, shift / size[:, None], shift / crops[:, 2:]


def check_labels(rows: list[dict[str, Any]], inside: float) -> None:
    answers, sizes = np.array([row["answer"] for row in rows]), np.array([[row["size"]] for row in rows])
    crops, truth = np.array([row["crops"][1] for row in rows]), np.array([row["boxes"][1] for row in rows])
    assert (answers[:, 2:] - answers[:, :2] >= 1).all()
    assert ((answers >= 0) & (answers <= sizes)).all()
    back = answers * crops[:, 2:] / sizes + np.tile(crops[:, :2], 2)
    assert (iou(back, xywh_to_xyxy(truth)) >= inside).all()
    for answer, (size,) in zip(answers[:500], sizes, strict=False):
        assert prompts.parse_box(prompts.numbers(answer), size=size) is not None
