"""Motion: the tracker's few rules about where to look, and where a target is taken to be after an answer."""

import numpy as np
from numpy.typing import ArrayLike

from r1track.core.boxes import Array, clip, xyxy_to_xywh
from r1track.core.crops import Crop
from r1track.core.schema import Settings

UNSEEN = ("held", "absent")  # statuses of frames in which the target was not found
NOTABLE = 1.0  # pixels that clipping must move a border by before the frame is called clipped


def update_box(
    last: ArrayLike, answer: ArrayLike | None, crop: Crop, size: tuple[int, int], min_side: float
) -> tuple[Array, str]:
    """The rules of motion: the new box (x, y, w, h in the image) and the frame's status.

    last: the box before, x, y, w, h. answer: corners in pixels of the search crop, None where none could be read: then
    the last box is held. size: width and height of this frame. An answer is cropped to the image, never shifted; a side
    shorter than `min_side` is widened around its centre, which moves no further than keeps that side in the image.
    """
    if answer is None:
        return np.asarray(last, dtype=np.float64), "held"
    raw = crop.to_image(answer)
    status = "clipped" if np.abs(clip(raw, *size) - raw).max() > NOTABLE else "ok"
    return clip_and_widen(raw, size, min_side), status


def clip_and_widen(corners: ArrayLike, size: tuple[int, int], min_side: float) -> Array:
    """Corners in the image as a box x, y, w, h that is inside of it and has no side shorter than `min_side`."""
    box = clip(corners, *size)
    extent, limit = box[2:] - box[:2], np.array(size, dtype=np.float64)
    centre = np.clip((box[:2] + box[2:]) / 2, min_side / 2, limit - min_side / 2)
    small = extent < min_side
    low, high = np.where(small, centre - min_side / 2, box[:2]), np.where(small, centre + min_side / 2, box[2:])
    return xyxy_to_xywh(np.concatenate([low, high]))


def search_region(last: ArrayLike, status: list[str], settings: Settings) -> Crop:
    """Where to look for the target: around its last box (x, y, w, h), wider when it has not been found for long.

    status: of the frames before. The target may have left the region in the meantime, and is then not found in it.
    """
    lost = status[-settings.track.patience :]
    widened = len(lost) == settings.track.patience and all(each in UNSEEN for each in lost)
    factor = settings.task.search_factor * (settings.track.widen if widened else 1.0)
    return Crop.around(last, factor, settings.task.size)
