"""Images: the one reader of image files, for all stages. Raises UserError, with file and remedy, for what is no image.

Every form becomes RGB of 8 bits: the upper 8 of 16 bits, no alpha, palette, grey and CMYK converted. Frames of a data
set stay as they are stored, as their boxes are about these pixels. What people look at is turned as its EXIF says.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from r1track.core.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # in any case
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # no others: one of Pillow's readers starts a program
LARGEST = 89_000_000  # pixels, near the number above which Pillow warns; a frame of 8K video has 33 million
LONGEST_FILE = 2**29  # bytes
DECODE = {k: getattr(cv2, f"IMREAD_REDUCED_COLOR_{k}") for k in (8, 4, 2)} | {1: cv2.IMREAD_COLOR}


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image, and it is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_image(path: Path, *, upright: bool = False) -> Image.Image:
    """The pixels of an image file, RGB; upright: turned as its EXIF says. UserError for what cannot be decoded."""
    with _naming(f"{path}:"):
        return _decode(_read(path), upright)


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file as stored, from its header. Raises as `read_image`."""
    with _naming(f"{path}:"):
        return _open(_read(path)).size


def read_reduced(path: Path, spare: float) -> tuple[cv2.typing.MatLike, int]:
    """As `read_image`, as a BGR array (height, width, 3) 1, 2, 4 or 8 times smaller (`spare` at most), and the factor.

    Only whole JPEG files are: OpenCV decodes them faster than Pillow, but takes truncated ones for whole.
    """
    with _naming(f"{path}:"):
        data = _read(path)
        image = _open(data)
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and b"\xff\xd9" in data[-1024:]:
            reduced = next(k for k in DECODE if k <= spare or k == 1)
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), DECODE[reduced] | cv2.IMREAD_IGNORE_ORIENTATION)
            if pixels is not None:
                return pixels, reduced
        return cv2.cvtColor(np.asarray(_decode(data)), cv2.COLOR_RGB2BGR), 1


def decode(data: bytes, name: str) -> Image.Image:
    """The pixels of the bytes of an image file, RGB, upright. Raises UserError, which begins with `name`."""
    with _naming(name):
        return _decode(data, upright=True)


def as_rgb(data: bytes, name: str) -> tuple[bytes, tuple[int, int]]:
    """The bytes of an image file of 8 bits, RGB or grey, as they are, else of a PNG with what `decode` gives; its size.

    Other readers than this one, such as that of `datasets`, decode them to the same pixels.
    """
    image, stream = decode(data, name), io.BytesIO()
    if _open(data).mode in ("RGB", "L"):
        return data, image.size
    image.save(stream, "PNG")
    return stream.getvalue(), image.size


def read_stored(image: dict[str, Any] | None, name: str, folder: Path) -> bytes:
    """The `bytes` of a data set's image, or of its `path`, in `folder` or a cache of `datasets`. Raises as `decode`."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    if image and image["bytes"] is not None:
        return bytes(image["bytes"])
    places = (folder, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    with _naming(name):
        if not image or not image["path"]:
            raise OSError("it is null")
        path = (folder / image["path"]).resolve()
        if not any(path.is_relative_to(Path(place).resolve()) for place in places):
            raise OSError(f"{path} is outside of {folder}")
        return _read(path)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Let a fault of an image, but none of the machine, be a UserError that begins with `name`."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged data
        if isinstance(error, OSError) and error.errno:
            raise
        reason = f"no {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{name} cannot be decoded ({reason}); restore it, or replace it") from error


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise OSError(f"no regular file is at {path}")  # a pipe or a device would be read for ever
    if path.stat().st_size > LONGEST_FILE:
        raise OSError(f"more than {LONGEST_FILE} bytes")
    return path.read_bytes()


def _open(data: bytes) -> Image.Image:
    """The image with its header read; its pixels are decoded when they are needed."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > LARGEST:
        raise OSError(f"{image.width} x {image.height} pixels are too many")
    return image


def _decode(data: bytes, upright: bool = False) -> Image.Image:
    image = _open(data)
    image = ImageOps.exif_transpose(image) if upright else image
    image.info.pop("transparency", None)
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
