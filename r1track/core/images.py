"""Images: the one reader of image files, for all stages.

Every form becomes RGB of 8 bits: of 16 bits the upper 8 are taken, alpha is ignored, palette, grey and CMYK are
converted. Frames of a data set stay as they are stored, as in GOT-10k's toolkit, since their boxes are about the stored
pixels. What people look at (question images, the input of `video`) is turned upright as its EXIF says.
"""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from r1track.core.errors import MissingFile, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # in any case
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # no others: one of Pillow's readers starts a program
LARGEST = 89_000_000  # pixels, near the number above which Pillow warns; a frame of 8K video has 33 million
LONGEST_FILE = 2**29  # bytes
DECODE = {k: getattr(cv2, f"IMREAD_REDUCED_COLOR_{k}") for k in (8, 4, 2)} | {1: cv2.IMREAD_COLOR}


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image, and it is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_bytes(path: Path, name: str) -> bytes:
    """The content of a regular file. Raises UserError, which begins with `name`, for no or a huge one."""
    if not path.is_file():
        raise MissingFile(f"{name} cannot be decoded (no regular file is there); restore it, or replace it")
    if path.stat().st_size > LONGEST_FILE:
        raise UserError(f"{name} cannot be decoded (more than {LONGEST_FILE} bytes); replace it")
    return path.read_bytes()


def read_stored(image: dict[str, Any] | None, name: str, folder: Path) -> bytes:
    """The bytes of an image of a data set: those in it, or of a file below `folder` or in the cache of `datasets`.

    image: its `bytes` and `path`, as stored; a path may be relative to `folder`. Raises UserError, with `name`, for
    an image that is null, missing or outside.
    """
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    if image and image["bytes"] is not None:
        return bytes(image["bytes"])
    if not image or not image["path"]:
        raise UserError(f"{name} cannot be decoded (it is null); download the set again, or take another revision")
    path = (folder / image["path"]).resolve()
    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    if not any(path.is_relative_to(place.resolve()) for place in (folder, *map(Path, caches))):
        raise UserError(f"{name} is {path}, outside of {folder}; copy it there, or take another set")
    return read_bytes(path, f"{name} ({path})")


def decode(data: bytes, name: str, *, upright: bool = False) -> Image.Image:
    """The pixels of an image file's bytes, RGB. Raises UserError, which begins with `name`, if they cannot be decoded.

    upright: whether to turn the image as its EXIF orientation says.
    """
    image = _open(data, name)
    try:
        image = ImageOps.exif_transpose(image) if upright else image
        image.info.pop("transparency", None)
        if image.mode.startswith("I"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged data
        raise _fault(name, error) from error


def read_image(path: Path, *, upright: bool = False) -> Image.Image:
    """The pixels of an image file, RGB, see `decode`. Raises UserError, with file and remedy, if it has none."""
    return decode(read_bytes(path, f"{path}:"), f"{path}:", upright=upright)


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file as stored, from its header. Raises as `read_image`."""
    return _open(read_bytes(path, f"{path}:"), f"{path}:").size


def read_reduced(path: Path, spare: float) -> tuple[cv2.typing.MatLike, int]:
    """As `read_image`, as a BGR array (height, width, 3) that is 1, 2, 4 or 8 times smaller, and that factor.

    spare: how many times smaller it may be. Only whole JPEG files can be: OpenCV decodes them faster than Pillow, but
    takes truncated ones for whole, and CMYK differently.
    """
    data = read_bytes(path, f"{path}:")
    image = _open(data, f"{path}:")
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and b"\xff\xd9" in data[-1024:]:
        reduced = next(k for k in DECODE if k <= spare or k == 1)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), DECODE[reduced] | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is not None:
            return pixels, reduced
    return cv2.cvtColor(np.asarray(decode(data, f"{path}:")), cv2.COLOR_RGB2BGR), 1


def _open(data: bytes, name: str) -> Image.Image:
    """The image with its header read; its pixels are decoded when they are needed."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise _fault(name, error) from error
    if image.width * image.height > LARGEST:
        raise UserError(f"{name} cannot be decoded ({image.width} x {image.height} pixels are too many); replace it")
    return image


def _fault(name: str, error: Exception) -> UserError:
    reason = f"no {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else str(error)
    return UserError(f"{name} cannot be decoded ({reason}); restore it, or replace it")
