"""Claims about the reader of images: any form of a scene has the same pixels in every stage, or is refused by name."""

import io
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
from PIL import Image

from r1track.ability import questions
from r1track.core import config, images, schema
from r1track.core.crops import Crop
from r1track.core.errors import UserError
from r1track.core.sequences import read_sequence, read_split
from r1track.data import shards, toy
from r1track.tracking import track, video
from r1track.tracking.views import View

WIDTH, HEIGHT, BOX = 320, 240, [100.0, 80.0, 40.0, 40.0]
CROP = Crop.around(BOX, 4, 84)
ORIENTATION, TURNED = 0x0112, 6  # by a quarter, clockwise, when it is shown


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    ground = toy.make_ground(np.random.default_rng(1))
    return Image.fromarray(cv2.resize(ground, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = TURNED
    return tags


def deep(image: Image.Image, path: Path) -> None:
    """16 bits a channel, as OpenCV writes them."""
    cv2.imwrite(str(path), np.asarray(image)[..., ::-1].astype(np.uint16) * 256 + 200)


def deep_grey(image: Image.Image, path: Path, **options: object) -> None:
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256 + 200).save(path, **options)


def see_through(image: Image.Image, path: Path) -> None:
    image = image.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


def with_palette(image: Image.Image, path: Path, **options: object) -> None:
    image.quantize(256).save(path, **options)


# How the scene is saved, and the mean error of its pixels that the form itself brings; grey forms are compared in grey.
FORMS: dict[str, tuple[str, Callable[[Image.Image, Path], object], float]] = {
    "JPEG": (".jpg", lambda i, p: i.save(p, quality=95), 2),
    "JPEG, capitals": (".JPG", lambda i, p: i.save(p, "JPEG", quality=95), 2),
    "JPEG, long suffix": (".jpeg", lambda i, p: i.save(p, quality=95), 2),
    "JPEG, progressive": (".jpg", lambda i, p: i.save(p, quality=95, progressive=True), 2),
    "JPEG, turned by EXIF": (".jpg", lambda i, p: i.save(p, quality=95, exif=exif()), 2),
    "JPEG, CMYK": (".jpg", lambda i, p: i.convert("CMYK").save(p, quality=95), 3),
    "JPEG with a film behind it": (".jpg", lambda i, p: (i.save(p, quality=95), p.open("ab").write(b"x" * 5000)), 2),
    "PNG": (".png", lambda i, p: i.save(p), 0),
    "PNG in JPEG's name": (".jpg", lambda i, p: i.save(p, "PNG"), 0),
    "PNG of 16 bits": (".png", deep, 0),
    "PNG with alpha": (".png", see_through, 0),
    "PNG with a palette": (".PNG", with_palette, 6),
    "PNG with a palette, partly transparent": (".png", lambda i, p: with_palette(i, p, transparency=b"\0" * 9), 6),
    "PNG, turned by EXIF": (".png", lambda i, p: i.save(p, exif=exif()), 0),
    "WebP": (".webp", lambda i, p: i.save(p, quality=95), 3),
    "BMP": (".bmp", lambda i, p: i.save(p), 0),
    "grey JPEG": (".jpg", lambda i, p: i.convert("L").save(p, quality=95), 2),
    "grey PNG": (".png", lambda i, p: i.convert("L").save(p), 1),
    "grey PNG of 16 bits": (".png", deep_grey, 1),
    "grey PNG of 16 bits, turned by EXIF": (".png", lambda i, p: deep_grey(i, p, exif=exif()), 1),
}


def difference(one: Image.Image, other: Image.Image, grey: bool) -> float:
    pixels = [np.asarray(i.convert("L") if grey else i, int) for i in (one, other)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


def sampled(sequence_folder: Path) -> Image.Image:
    """The template crop of a pair."""
    sequence = read_sequence(sequence_folder, "got10k")
    (row,) = shards.cut(sequence, [((0, CROP), (1, CROP))], 0.25)
    assert isinstance(row, dict), row
    return Image.open(io.BytesIO(row["images"][0]["bytes"]))


def tracked(root: Path) -> Image.Image:
    """The search crop that a tracker sees."""
    crops = []

    def look(views: list[View]) -> list[str]:
        crops.extend(view.crop.cut(view.frame) for view in views)
        return ["none"] * len(views)

    settings = config.Settings(task=schema.Task(size=84), model=schema.Model(max_pixels=9500, min_pixels=7056))
    list(track.follow(read_split(root), look, settings))
    return crops[0]


def asked(path: Path, monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    """The picture of a question."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", path.parent / "cache")
    image = {"bytes": path.read_bytes(), "path": None}
    rows = {"image": [image], "question": ["which?"], "answer": ["red"]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    table.to_parquet(path.parent / "set" / "test.parquet")
    spec = schema.VqaSet(source=str(path.parent / "set"), items=1)
    return questions.load("mine", spec, 0, config.resolve({"preset": "demo"}).model)[0].picture()


@pytest.mark.parametrize("form", FORMS)
def test_the_same_scene_in_any_form_gives_the_same_crop_in_every_stage(
    form: str, scene: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix, save, error = FORMS[form]
    folder, grey = tmp_path / "split" / "clip", form.startswith("grey")
    folder.mkdir(parents=True)
    (tmp_path / "split" / "list.txt").write_text("clip\n")
    (folder / "groundtruth.txt").write_text("100,80,40,40\n" * 2)
    for number in (1, 2):
        save(scene, folder / f"frame_{number:04d}{suffix}")
    expected = CROP.cut(scene)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crops = sampled(folder), tracked(tmp_path / "split")
    upright = scene.transpose(Image.Transpose.ROTATE_270) if "EXIF" in form else scene
    picture = asked(folder / f"frame_0001{suffix}", monkeypatch)
    drawn = [image for image, _ in video.frames(folder)]
    assert len(drawn) == 2
    assert difference(crops[0], expected, grey) < error + 2  # the crop is a JPEG itself
    for image, right in ((crops[1], expected), (picture, upright), (drawn[0], upright)):
        assert (image.size, image.mode) == (right.size, "RGB")
        assert difference(image, right, grey) <= error
    assert images.read_size(folder / f"frame_0001{suffix}") == (WIDTH, HEIGHT)


def test_the_fast_decoder_has_the_pixels_of_the_slow_one(scene: Image.Image, tmp_path: Path) -> None:
    for quality, sampling in ((95, 0), (80, 2), (30, 2)):
        scene.save(tmp_path / "frame.jpg", quality=quality, subsampling=sampling)
        pixels, reduced = images.read_reduced(tmp_path / "frame.jpg", 1)
        assert reduced == 1
        assert (pixels[..., ::-1] == np.asarray(images.read_image(tmp_path / "frame.jpg"))).all()


def header(width: int, height: int, bits: int = 8) -> bytes:
    """A PNG that says it has so many pixels, and holds none of them."""
    chunk = lambda kind, data: (  # noqa: E731
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    )
    start = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.write_bytes(b""),
    "words": lambda p: p.write_text("not found"),
    "a page": lambda p: p.write_text("<!DOCTYPE html><title>404</title>"),
    "half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "without its last bytes": lambda p: p.write_bytes(p.read_bytes()[:-2]),
    "its first bytes": lambda p: p.write_bytes(p.read_bytes()[:40]),
    "without pixels": lambda p: p.write_bytes(header(64, 48)),
    "400 megapixels": lambda p: p.write_bytes(header(20_000, 20_000)),
    "100 megapixels": lambda p: p.write_bytes(header(10_000, 10_000)),
    "no extent": lambda p: p.write_bytes(header(0, 48)),
    "a program for a printer": lambda p: p.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
    "a pipe": lambda p: (p.unlink(), os.mkfifo(p)),
    "a device": lambda p: (p.unlink(), p.symlink_to("/dev/zero")),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "a link to nothing": lambda p: (p.unlink(), p.symlink_to("gone.jpg")),
    "too large a file": lambda p: os.truncate(p, images.LONGEST_FILE + 1),
}


@pytest.mark.parametrize("fault", UNREADABLE)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_image_is_refused_by_name_and_never_hangs(fault: str, scene: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "00000001.jpg"
    scene.save(path)
    UNREADABLE[fault](path)
    for read in (images.read_image, lambda p: images.read_reduced(p, 8), lambda p: next(video.frames(p.parent))):
        with pytest.raises(UserError, match=r"00000001\.jpg: cannot be decoded \(.+\); re(store|place)"):
            read(path)


def test_an_error_of_the_machine_is_no_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def fail(path: Path) -> bytes:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error"):
        images.read_image(tmp_path / "a.png")


OUTSIDE = {
    "an absolute path": lambda place: str(place / "secret.png"),
    "a path upwards": lambda place: "../secret.png",
    "a device": lambda place: "/dev/zero",
    "a link out": lambda place: "link.png",
    "nothing": lambda place: None,
    "a missing file": lambda place: "gone.png",
}


@pytest.mark.parametrize("fault", OUTSIDE)
def test_an_image_of_a_data_set_lies_inside_it(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    Image.new("RGB", (8, 8), "red").save(folder / "inside.png")
    (folder / "link.png").symlink_to("../secret.png")
    path = OUTSIDE[fault](tmp_path)
    with pytest.raises(UserError, match=r"a question.* (is .*, outside of .*set; copy|cannot be decoded)|gone\.png"):
        images.read_stored({"bytes": None, "path": path}, "a question", folder)
    data = (folder / "inside.png").read_bytes()
    for inside in ("inside.png", str(folder / "inside.png")):
        assert images.read_stored({"bytes": None, "path": inside}, "a question", folder) == data
    assert images.read_stored({"bytes": b"x", "path": "/dev/zero"}, "a question", folder) == b"x"
