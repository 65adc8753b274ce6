"""Boxes: IoU, GIoU, and the conversion between the two forms of a box.

Every box is a float array of shape (..., 4), or ValueError is raised. `xywh` is left, top, width, height; `xyxy` is
left, top, right, bottom. Coordinates are continuous: pixel i covers [i, i + 1), so the width is x2 - x1.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _boxes(boxes: ArrayLike) -> Array:
    array = np.asarray(boxes, dtype=np.float64)
    if array.shape[-1:] != (4,):
        raise ValueError(f"a box array must have shape (..., 4), not {array.shape}")
    return array


def xywh_to_xyxy(boxes: ArrayLike) -> Array:
    """From x, y, w, h to x1, y1, x2, y2; shape (..., 4) kept."""
    array = _boxes(boxes)
    return np.concatenate([array[..., :2], array[..., :2] + array[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes: ArrayLike) -> Array:
    """From x1, y1, x2, y2 to x, y, w, h; shape (..., 4) kept."""
    array = _boxes(boxes)
    return np.concatenate([array[..., :2], array[..., 2:] - array[..., :2]], axis=-1)


def area(boxes_xyxy: ArrayLike) -> Array:
    """Area of boxes x1, y1, x2, y2, shape (...); 0 for an empty box and where x2 < x1 or y2 < y1."""
    array = _boxes(boxes_xyxy)
    return np.prod(np.clip(array[..., 2:] - array[..., :2], 0, None), axis=-1)


def _overlap(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array, Array, Array]:
    a, b = _boxes(first), _boxes(second)
    shared = area(np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], axis=-1))
    union = area(a) + area(b) - shared
    return a, b, union, np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def iou(first_xyxy: ArrayLike, second_xyxy: ArrayLike) -> Array:
    """Intersection over union of boxes x1, y1, x2, y2, broadcast over leading axes; 0 where both are empty."""
    return _overlap(first_xyxy, second_xyxy)[-1]


def giou(first_xyxy: ArrayLike, second_xyxy: ArrayLike) -> Array:
    """Generalised IoU (Rezatofighi et al., 2019), in [-1, 1]: `iou` minus the part of the hull that neither covers."""
    a, b, union, overlap = _overlap(first_xyxy, second_xyxy)
    hull = area(np.concatenate([np.minimum(a[..., :2], b[..., :2]), np.maximum(a[..., 2:], b[..., 2:])], axis=-1))
    return overlap - np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)


def clip(boxes_xyxy: ArrayLike, width: float, height: float) -> Array:
    """Boxes x1, y1, x2, y2 clipped to [0, width] x [0, height]; shape (..., 4) kept."""
    limits = np.array([width, height, width, height], dtype=np.float64)
    return np.clip(_boxes(boxes_xyxy), 0, limits)
