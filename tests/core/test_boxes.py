"""Claims about boxes: IoU and GIoU against counted pixels and closed forms."""

import numpy as np
import pytest

from r1track.core import boxes

GRID = 24


def random_boxes(rng, count):
    """Ordered corner boxes on whole pixels of the grid, some of them without extent."""
    corners = rng.integers(0, GRID + 1, (count, 2, 2))
    return np.sort(corners, axis=1).reshape(count, 4)


def painted(box):
    mask = np.zeros((GRID, GRID), bool)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = True
    return mask


def test_iou_and_giou_equal_counted_pixels():
    rng = np.random.default_rng(1)
    for a, b in zip(random_boxes(rng, 400), random_boxes(rng, 400), strict=True):
        one, two = painted(a), painted(b)
        hull = painted([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
        shared, union = (one & two).sum(), (one | two).sum()
        iou = shared / union if union else 0.0
        giou = iou - ((hull.sum() - union) / hull.sum() if hull.any() else 0.0)
        assert boxes.iou(a, b) == pytest.approx(iou, abs=1e-12)
        assert boxes.giou(a, b) == pytest.approx(giou, abs=1e-12)


def test_giou_of_two_unit_squares_follows_the_closed_form_of_their_distance():
    for distance in (0.0, 0.25, 1.0, 1.5, 9.0):
        square, moved = [0, 0, 1, 1], [distance, 0, 1 + distance, 1]
        shared = max(0.0, 1 - distance)
        expected = shared / (2 - shared) - (max(0.0, distance - 1) / (1 + distance))
        assert boxes.giou(square, moved) == pytest.approx(expected)


def test_a_box_inside_another_has_the_share_of_its_area_as_iou_and_as_giou():
    assert boxes.iou([0, 0, 10, 10], [2, 2, 7, 6]) == pytest.approx(0.2)
    assert boxes.giou([0, 0, 10, 10], [2, 2, 7, 6]) == pytest.approx(0.2)


def test_equal_boxes_have_exactly_one_and_boxes_that_touch_exactly_zero():
    box = np.array([0.1, 0.2, 33.7, 41.9])
    assert boxes.iou(box, box) == 1.0
    assert boxes.giou(box, box) == 1.0
    assert boxes.iou([0, 0, 1.1, 1], [1.1, 0, 2, 1]) == 0.0


def test_boxes_without_extent_and_unordered_corners_overlap_nothing():
    assert boxes.iou([3, 3, 3, 3], [3, 3, 3, 3]) == 0.0
    assert boxes.iou([10, 10, 0, 0], [0, 0, 10, 10]) == 0.0
    assert boxes.area([10, 10, 0, 0]) == 0.0


def test_leading_axes_broadcast():
    rng = np.random.default_rng(2)
    many, few = random_boxes(rng, 5)[:, None], random_boxes(rng, 7)[None]
    table = boxes.giou(many, few)
    assert table.shape == (5, 7)
    assert table[3, 4] == boxes.giou(many[3, 0], few[0, 4])
    assert boxes.iou(many, few).shape == (5, 7)


def test_the_two_forms_are_inverse_and_have_no_shift_by_one():
    assert boxes.xywh_to_xyxy([10, 20, 30, 40]).tolist() == [10, 20, 40, 60]
    box = np.random.default_rng(3).normal(0, 50, (6, 2, 4))
    np.testing.assert_allclose(boxes.xyxy_to_xywh(boxes.xywh_to_xyxy(box)), box)


def test_clipping_crops_and_never_shifts():
    assert boxes.clip([-30, 50, 50, 110], 100, 80).tolist() == [0, 50, 50, 80]


def test_an_array_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 4\), not \(5,\)"):
        boxes.iou([1, 2, 3, 4, 5], [1, 2, 3, 4])
