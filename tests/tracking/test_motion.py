"""Claims about the rules of motion: which box follows from an answer, and that it is in the image and not too small."""

import json

import numpy as np
import pytest

from r1track.core import prompts
from r1track.core.boxes import clip, xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.tracking import motion

CROP = Crop(-50, -10, 200, 100)  # two image pixels per crop pixel


MOVES = {  # the answer in the crop, the box and the status that follow
    "mapped from the crop to the image": ([30, 20, 40, 30], [10, 30, 20, 20], "ok"),
    "unreadable: the last image box is held": (None, [5, 5, 20, 20], "held"),
    "over the border, x from -30 to 50, y from 50 to 70: cropped, not shifted":
        ([10, 30, 50, 40], [0, 50, 50, 20], "clipped"),
    "over the border by less than a pixel": ([24.75, 30, 50, 40], [0, 50, 50, 20], "ok"),
    "a small side: widened around its centre, the other left alone": ([50, 20, 51, 30], [49, 30, 4, 20], "ok"),
    "wholly outside: a smallest box at the border": ([0, 0, 10, 3], [0, 0, 4, 4], "clipped"),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVES)
def test_an_answer_moves_the_box(case):
    answer, expected, expected_status = MOVES[case]
    box, status = motion.update_box([5, 5, 20, 20], answer, CROP, (100, 80), 4.0)
    assert box.tolist() == expected
    assert status == expected_status


@pytest.mark.parametrize("size", [(3, 80), (80, 3), (2, 2), (1, 1), (4, 4)])
def test_no_box_leaves_a_frame_that_is_smaller_than_the_smallest_side(size):
    for corners in ([0, 0, 1, 1], [-9, -9, 99, 99], [1, 1, 1, 1], [50, 50, 60, 60]):
        x, y, w, h = motion.clip_and_widen(corners, size, 4.0)
        assert min(x, y) >= 0
        assert x + w <= size[0]
        assert y + h <= size[1]
        assert (w, h) >= (min(4, size[0]), min(4, size[1]))


def test_whatever_is_answered_the_box_is_inside_the_image_and_not_too_small():
    rng = np.random.default_rng(0)
    for _ in range(100_000):
        answer = prompts.parse_box(json.dumps(rng.uniform(-8, 108, 4).round(1).tolist()), size=100)
        if answer is not None:
            crop = Crop(*rng.uniform(-150, 100, 2), rng.uniform(8, 300), 100)
            box, _ = motion.update_box([5, 5, 20, 20], answer, crop, (100, 80), 4.0)
            corners = xywh_to_xyxy(box)
            np.testing.assert_allclose(clip(corners, 100, 80), corners, atol=1e-9)
            assert (box[2:] >= 4 - 1e-9).all()
