"""Crops: the one geometry of cutting a square out of an image and of mapping boxes there and back.

Coordinates are continuous (pixel i covers [i, i + 1)) in the image and in the crop alike. A crop may reach over the
image's border; what lies outside is black.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from r1track.boxes import Array


@dataclass(frozen=True)
class Crop:
    """A square window of an image, shown at `size` x `size` pixels.

    x, y: the window's left top corner in image pixels. side: its side in image pixels. size: its side as shown.
    """

    x: float
    y: float
    side: float
    size: int

    @classmethod
    def around(cls, box_xywh: ArrayLike, factor: float, size: int) -> "Crop":
        """The window centred on a box, with side ceil(sqrt(w * h) * factor) (the trackers' convention, R1-Track's too).

        Raises ValueError for a box that is not finite or has no extent.
        """
        x, y, w, h = np.asarray(box_xywh, dtype=np.float64)
        if not (np.isfinite([x, y, w, h]).all() and w > 0 and h > 0):
            raise ValueError(
                f"cannot cut around the box {[float(v) for v in (x, y, w, h)]}: width and height must be > 0"
            )
        side = float(math.ceil(math.sqrt(w * h) * factor))
        return cls(float(x + w / 2 - side / 2), float(y + h / 2 - side / 2), side, size)

    @property
    def scale(self) -> float:
        """Crop pixels per image pixel."""
        return self.size / self.side

    def cut(self, image: Image.Image) -> Image.Image:
        """The window's pixels, size x size, resampled once, with antialiasing when it shrinks."""
        margin = math.ceil(max(1.0, 1 / self.scale)) + 1  # the filter looks this far beyond the window
        left, top = math.floor(self.x) - margin, math.floor(self.y) - margin
        right, bottom = math.ceil(self.x + self.side) + margin, math.ceil(self.y + self.side) + margin
        window = image.convert("RGB").crop((left, top, right, bottom))
        x, y = self.x - left, self.y - top
        return window.resize((self.size, self.size), Image.Resampling.BILINEAR, (x, y, x + self.side, y + self.side))

    def to_crop(self, box_xyxy: ArrayLike) -> Array:
        """Corners in the image, shape (..., 4), to corners in the crop."""
        return (np.asarray(box_xyxy, dtype=np.float64) - [self.x, self.y, self.x, self.y]) * self.scale

    def to_image(self, box_xyxy: ArrayLike) -> Array:
        """Corners in the crop, shape (..., 4), to corners in the image: the inverse of `to_crop`."""
        return np.asarray(box_xyxy, dtype=np.float64) / self.scale + [self.x, self.y, self.x, self.y]


def drift(box_xywh: ArrayLike, rng: np.random.Generator, *, shift: float, scale: float) -> Array:
    """The box as a tracker may hold it one step later: displaced and rescaled at random; x, y, w, h.

    shift: standard deviation of the centre's displacement, in shares of sqrt(w * h), cut off at two of them.
    scale: standard deviation of the logarithm of the size's change, cut off likewise.
    """
    x, y, w, h = np.asarray(box_xywh, dtype=np.float64)
    dx, dy, grow = np.clip(rng.standard_normal(3), -2, 2) * [shift, shift, scale]
    side, factor = math.sqrt(w * h), math.exp(grow)
    centre = np.array([x + w / 2 + dx * side, y + h / 2 + dy * side])
    extent = np.array([w, h]) * factor
    return np.concatenate([centre - extent / 2, extent])
