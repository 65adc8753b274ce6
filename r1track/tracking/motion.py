"""Motion: where the tracker looks for the target, and how an answer moves its box.

Boxes are x, y, w, h in frame pixels, shape (4,), unless a name says that they are corners: x1, y1, x2, y2.
"""

import numpy as np
from numpy.typing import ArrayLike

from r1track.core.boxes import Array, clip, xyxy_to_xywh
from r1track.core.crops import Crop
from r1track.core.schema import Settings

UNSEEN = ("held", "absent")  # statuses of frames in which the target was not found
NOTABLE = 1.0  # pixels that clipping must move a border by before the frame is called clipped


def update_box(
    last_box: ArrayLike, corners: ArrayLike | None, crop: Crop, size: tuple[int, int], min_side: float
) -> tuple[Array, str]:
    """The target's new box, and the status of the frame: `ok`, `clipped` or `held`.

    corners: the answer, in pixels of the search region `crop`; None for an unreadable one, which keeps the last box.
    size: width and height of the frame. The box is cropped to the frame and widened as `clip_and_widen` says.
    """
    if corners is None:
        return np.asarray(last_box, dtype=np.float64), "held"
    in_frame = crop.to_image(corners)
    status = "clipped" if np.abs(clip(in_frame, *size) - in_frame).max() > NOTABLE else "ok"
    return clip_and_widen(in_frame, size, min_side), status


def clip_and_widen(corners: ArrayLike, size: tuple[int, int], min_side: float) -> Array:
    """The box of `corners` (in frame pixels), cropped to the frame and never shifted.

    size: width and height of the frame. A side shorter than `min_side`, or than a smaller frame, is widened around its
    centre; at the border the centre moves inwards, just as far as the widened side needs.
    """
    box, limit = clip(corners, *size), np.array(size, dtype=np.float64)
    half = np.minimum(min_side, limit) / 2
    centre, small = np.clip((box[:2] + box[2:]) / 2, half, limit - half), box[2:] - box[:2] < 2 * half
    low, high = np.where(small, centre - half, box[:2]), np.where(small, centre + half, box[2:])
    return xyxy_to_xywh(np.concatenate([low, high]))


def search_region(last_box: ArrayLike, statuses: list[str], settings: Settings) -> Crop:
    """The square in which the target is looked for: around its last box.

    statuses: of all frames before this one. After track.patience frames without the target, the square is wider by the
    factor track.widen, because the target may have left it.
    """
    recent = statuses[-settings.track.patience :]
    lost = len(recent) == settings.track.patience and all(status in UNSEEN for status in recent)
    factor = settings.task.search_factor * (settings.track.widen if lost else 1.0)
    return Crop.around(last_box, factor, settings.task.size)
