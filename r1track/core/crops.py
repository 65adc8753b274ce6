"""Crops: the one geometry of cutting a square out of an image and of mapping boxes there and back.

Coordinates are continuous (pixel i covers [i, i + 1)) in the image and in the crop. Outside the image a crop is black.
It is cut by one affine warp, after a blur where the crop is the smaller one.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from r1track.core.boxes import Array
from r1track.core.config_errors import PATCH
from r1track.core.schema import Model


@dataclass(frozen=True)
class Crop:
    """A square window of an image, resized to `size` x `size` pixels."""

    x: float  # left, in image pixels
    y: float  # top
    side: float  # in image pixels
    size: int  # in crop pixels

    @classmethod
    def around(cls, box_xywh: ArrayLike, factor: float, size: int) -> "Crop":
        """The window around a finite box x, y, w, h, or ValueError; side ceil(sqrt(w * h) * factor), as in OSTrack."""
        x, y, w, h = np.asarray(box_xywh, dtype=np.float64)
        if not (np.isfinite([x, y, w, h]).all() and w > 0 and h > 0):
            box = [float(v) for v in (x, y, w, h)]
            raise ValueError(f"cannot cut around the box {box}: width and height must be > 0")
        side = float(math.ceil(math.sqrt(w * h) * factor))
        return cls(float(x + w / 2 - side / 2), float(y + h / 2 - side / 2), side, size)

    @property
    def scale(self) -> float:
        """Crop pixels per image pixel."""
        return self.size / self.side

    def cut(self, image: Image.Image) -> Image.Image:
        """The pixels of the window, as an RGB image of size x size."""
        return Image.fromarray(self.warp(np.asarray(image.convert("RGB"))))

    def warp(self, frame: cv2.typing.MatLike, reduced: int = 1) -> cv2.typing.MatLike:
        """As `cut`, from and to an array (height, width, 3); `frame` is `reduced` times smaller than the image."""
        step, x, y = 1 / self.scale / reduced, self.x / reduced, self.y / reduced
        # Antialiasing needs a triangle filter of half-width `step`, of variance step^2 / 6; the warp has one of 1 / 6.
        sigma = math.sqrt(max(0.0, (step**2 - 1) / 6))
        margin = math.ceil(3 * sigma) + 2
        left, top = max(0, math.floor(x) - margin), max(0, math.floor(y) - margin)
        extent = math.ceil(step * self.size) + 2 * margin
        window = frame[top : max(0, math.floor(y) + extent), left : max(0, math.floor(x) + extent)]
        if not window.size:
            return np.zeros((self.size, self.size, 3), np.uint8)
        if sigma:
            window = cv2.GaussianBlur(window, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
        matrix = np.array([[step, 0, x - left + step / 2 - 0.5], [0, step, y - top + step / 2 - 0.5]])
        return cv2.warpAffine(window, matrix, (self.size, self.size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)

    def to_crop(self, box_xyxy: ArrayLike) -> Array:
        """Boxes (x1, y1, x2, y2) in image pixels to crop pixels; shape (..., 4) kept."""
        return (np.asarray(box_xyxy, dtype=np.float64) - [self.x, self.y, self.x, self.y]) * self.scale

    def to_image(self, box_xyxy: ArrayLike) -> Array:
        """Boxes (x1, y1, x2, y2) in crop pixels to image pixels; shape (..., 4) kept. The inverse of `to_crop`."""
        return np.asarray(box_xyxy, dtype=np.float64) / self.scale + [self.x, self.y, self.x, self.y]


def fits(size: tuple[int, int]) -> bool:
    """Whether the image processor takes an image of `size` (width, height)."""
    return max(size) <= 200 * min(size)


def processed_size(size: tuple[int, int], model: Model) -> tuple[int, int]:
    """Width and height to which the image processor resizes an image of `size` (width, height): whole patches."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = smart_resize(size[1], size[0], PATCH, model.min_pixels, model.max_pixels)
    return width, height


def jitter_box(box_xywh: ArrayLike, rng: np.random.Generator, *, shift: float, scale: float) -> Array:
    """A box x, y, w, h with the error of a tracker's last box, whose parts are clipped at two standard deviations.

    shift: deviation of the centre along each axis, over sqrt(w * h). scale: deviation of the logarithm of the size.
    """
    x, y, w, h = np.asarray(box_xywh, dtype=np.float64)
    dx, dy, grow = np.clip(rng.standard_normal(3), -2, 2) * [shift, shift, scale]
    side, extent = math.sqrt(w * h), np.array([w, h]) * math.exp(grow)
    centre = np.array([x + w / 2 + dx * side, y + h / 2 + dy * side])
    return np.concatenate([centre - extent / 2, extent])
