"""Rewards: what an answer is worth, as named parts. The parser is the tracker's own.

Two schemes. `paper` is R1-Track's shaped GIoU (public repository at f585b82), exact on ordered boxes and bounded for
everything else; `iou` is the IoU itself, continuous, and its mean is what AO measures. Where the target is not in the
search region, IoU and GIoU are 1 for the answer `[]` and 0 for a box, in both schemes.
"""

from typing import Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from r1track.core import boxes, prompts

INVALID = -1.0
THINK_FLOOR, THINK_CEILING, THINK_SPAN = 128, 448, 64  # response tokens, with thinking


class Parts(TypedDict):
    """total: the reward. valid: 1 for a readable box, or for `[]` without a target, else 0. The others: terms of it."""

    total: float
    valid: float
    iou: float
    giou: float
    format: float
    length: float


def shape(giou: float) -> float:
    """R1-Track's shaping of GIoU: nothing below .4, a bonus above .75 and a larger one from .95; negatives stay."""
    if 0 < giou < 0.4:
        return 0.0
    return giou + (0.5 if giou >= 0.95 else 0.2 if giou > 0.75 else 0.0)


def score(
    answer: str,
    target: ArrayLike,
    *,
    scheme: Literal["paper", "iou"] = "paper",
    size: float = 336,
    think: bool = False,
    tokens: int | None = None,
) -> Parts:
    """The reward of one answer.

    target: true corners in pixels of the search crop; empty where it is not there. size: the crop's side. tokens: the
    answer's length in tokens; with `think` and the paper scheme, fewer than 128 make it invalid and more than 448 cost
    up to .1; None skips this.
    The total lies in [-1, 1.5] (`paper`), [-1.05, 1.55] (`paper` with `think`) or {-1} and [0, 1] (`iou`).
    """
    box, bonus, length = prompts.parse_box(answer, size=size, think=think), 0.0, 0.0
    present = np.size(target) > 0
    right = not present and prompts.denies(answer, think=think)
    valid = box is not None or right
    if scheme == "paper" and think:
        valid &= tokens is None or tokens >= THINK_FLOOR
        bonus, length = 0.05, -0.1 * min(1.0, max(0, (tokens or 0) - THINK_CEILING) / THINK_SPAN)
    if not valid:
        return Parts(total=INVALID, valid=0.0, iou=0.0, giou=0.0, format=0.0, length=0.0)
    iou = giou = float(right)
    if present and box is not None:
        iou, giou = float(boxes.iou(box, target)), float(boxes.giou(box, target))
    total = iou if scheme == "iou" else shape(giou) + (bonus + length)
    return Parts(total=total, valid=1.0, iou=iou, giou=giou, format=bonus, length=length)
