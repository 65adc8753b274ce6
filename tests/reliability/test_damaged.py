"""Claims about damaged input: a hundred kinds, each refused by a message that names the file, or counted.

Everything else that a reader may do with a damaged file is a fault: a traceback, a hang, or a wrong number in silence.
"""

import io
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from r1track.ability import questions
from r1track.core import config, images, schema
from r1track.core.crops import Crop
from r1track.core.errors import UserError
from r1track.core.sequences import Sequence, read_split
from r1track.data import shards
from r1track.tracking import score, submit
from r1track.tracking.track_files import Track, write_track

Damage = bytes | Callable[[Path], object]
FRAMES = 4
ROWS = "".join(f"{10 + t},12,20,16\n" for t in range(FRAMES))


def picture(kind: str = "JPEG", size: tuple[int, int] = (64, 48)) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(stream, kind)
    return stream.getvalue()


JPEG, PNG, WEBP, BMP, GIF = (picture(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF"))


def png(width: int, height: int, bits: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    """A PNG with a header of our choice, right checksums, and these pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def replaced(by: Callable[[Path], object]) -> Callable[[Path], object]:
    """In place of the file stands what `by` makes."""
    return lambda path: (path.unlink(missing_ok=True), by(path))


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


# What may stand in place of any file.
NO_FILE: dict[str, Damage] = {
    "a pipe": replaced(os.mkfifo),
    "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a folder": replaced(Path.mkdir),
    "a link to nothing": replaced(lambda path: path.symlink_to("nowhere")),
    "a link to itself": replaced(lambda path: path.symlink_to(path.name)),
}
FRAME: dict[str, Damage] = {
    **NO_FILE,
    "empty": b"",
    "one byte": b"\xff",
    "words": b"not found\n",
    "a page": b"<!DOCTYPE html><title>404</title>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "a JPEG's first bytes": JPEG[:20],
    "half a JPEG": cut(JPEG, 0.5),
    "a JPEG without its end": JPEG[:-2],
    "a JPEG with zeros for its end": cut(JPEG, 0.7) + bytes(200),
    "a JPEG without its start": JPEG[2:],
    "half a PNG": cut(PNG, 0.5),
    "a PNG with a wrong checksum": PNG[:60] + b"\0\1\2\3" + PNG[64:],
    "a PNG of its header": png(64, 48),
    "a PNG of 400 megapixels": png(20_000, 20_000),
    "a PNG of a line of a billion": png(10**9, 1),
    "a PNG without height": png(64, 0),
    "a PNG of 3 bits": png(64, 48, bits=3),
    "a PNG of an unknown colour": png(64, 48, colour=5),
    "half a WebP": cut(WEBP, 0.5),
    "half a BMP": cut(BMP, 0.5),
    "a BMP of a huge width": BMP[:18] + struct.pack("<i", 2**30) + BMP[22:],
    "half a GIF": cut(GIF, 0.5),
    "a program for a printer": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "an icon": picture("ICO"),
    "a TIFF": picture("TIFF"),
    "zeros": bytes(10_000),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A split of one clip, with everything that a clip may have."""
    folder = tmp_path / "split" / "clip"
    folder.mkdir(parents=True)
    for t in range(FRAMES):
        (folder / f"{t + 1:08d}.jpg").write_bytes(JPEG)
    (folder / "groundtruth.txt").write_text(ROWS)
    for name, row in (("absence", "0\n"), ("cover", "8\n"), ("cut_by_image", "0\n")):
        (folder / f"{name}.label").write_text(row * FRAMES)
    (folder / "meta_info.ini").write_text("[METAINFO]\nobject_class: dog\nresolution: (64, 48)\n")
    (folder / "nlp.txt").write_text("a red ball\n")
    (tmp_path / "split" / "list.txt").write_text("clip\n")
    return tmp_path / "split"


def spoil(path: Path, damage: Damage) -> None:
    path.write_bytes(damage) if isinstance(damage, bytes) else damage(path)


@pytest.mark.parametrize("kind", FRAME)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_frame_is_counted_by_sample_and_refused_by_name_elsewhere(kind: str, root: Path) -> None:
    (sequence,) = read_split(root)
    spoil(sequence.frames[1], FRAME[kind])
    began = time.monotonic()
    with pytest.raises(UserError, match=r"00000002\.jpg: cannot be decoded"):
        images.read_image(sequence.frames[1])
    crop = Crop.around(sequence.boxes[0], 4, 28)
    (whole, reason) = shards.cut(sequence, [((0, crop), (2, crop)), ((0, crop), (1, crop))], 0.25)
    assert isinstance(whole, dict)
    assert reason == f"frame cannot be decoded: {sequence.frames[1]}"
    assert time.monotonic() - began < 5


LATIN, WIDE = "grün".encode("latin-1"), "10,12,20,16\n".encode("utf-16-le")
# By the file: what is put there.
ANNOTATION: dict[str, dict[str, Damage]] = {
    "list.txt": {
        **{name: damage for name, damage in NO_FILE.items() if name != "a folder"},
        "empty": b"",
        "blank lines": b"\n \n\n",
        "a sequence that is gone": b"clip\nother\n",
        "a name twice": b"clip\nclip\n",
        "a path upwards": b"../split/clip\n",
        "the split itself": b"./\n",
        "an absolute path": b"/etc\n",
        "a zero byte": b"cl\0ip\n",
        "a control sequence": b"\x1b[2Jclip\n",
        "Latin-1": LATIN,
        "a name without end": b"a" * 100_000,
        "bytes of a picture": JPEG,
        "wide letters without a mark": "clip\n".encode("utf-16-le"),
    },
    "clip/groundtruth.txt": {
        **NO_FILE,
        "empty": b"",
        "a row less": ROWS.split("\n", 1)[1].encode(),
        "a row more": (ROWS + "1,2,3,4\n").encode(),
        "a blank line between": ROWS.replace("\n", "\n\n", 1).encode(),
        "words": ROWS.replace("12", "twelve", 1).encode(),
        "three columns": ROWS.replace(",16", "", 1).encode(),
        "five columns": ROWS.replace(",16", ",16,1", 1).encode(),
        "an empty field": ROWS.replace("12", "", 1).encode(),
        "a comma at the end": ROWS.replace("16", "16,", 1).encode(),
        "semicolons": ROWS.replace(",", ";").encode(),
        "NaN": ROWS.replace("12", "nan", 1).encode(),
        "infinity": ROWS.replace("20", "inf", 1).encode(),
        "1e200": ROWS.replace("20", "1e200", 1).encode(),
        "more digits than a number has": ROWS.replace("20", "9" * 400, 1).encode(),
        "hexadecimal": ROWS.replace("20", "0x14", 1).encode(),
        "underscores": ROWS.replace("20", "2_0", 1).encode(),
        "digits of another script": ROWS.replace("20", "٢٠", 1).encode(),
        "a decimal comma": ROWS.replace(",", " ").replace("12", "12,5", 1).encode(),
        "Latin-1": LATIN + ROWS.encode(),
        "wide letters without a mark": WIDE,
        "wide letters, cut": b"\xff\xfe" + WIDE[:-1],
        "bytes of a picture": JPEG,
        "too large": replaced(lambda path: (path.touch(), os.truncate(path, 2**27))),
    },
    "clip/absence.label": {
        **NO_FILE,
        "a row less": b"0\n" * 3,
        "two": b"0\n0\n2\n0\n",
        "half": b"0\n0\n0.5\n0\n",
        "a word": b"0\n0\nno\n0\n",
    },
    "clip/cover.label": {
        "nine": b"8\n9\n8\n8\n",
        "minus one": b"8\n-1\n8\n8\n",
        "NaN": b"8\nnan\n8\n8\n",
        "Latin-1": LATIN,
    },
    "clip/cut_by_image.label": {"two columns": b"0,0\n" * 4, "a row more": b"0\n" * 5},
    "clip/meta_info.ini": {"Latin-1": LATIN, "a device": NO_FILE["a device"], "bytes of a picture": JPEG},
    "clip/nlp.txt": {"Latin-1": LATIN, "a pipe": NO_FILE["a pipe"], "a book": b"a red ball " * 10_000},
    "clip/full_occlusion.txt": {"a row less": b"0,0,0", "a word": b"0,0,no,0", "two": b"0,0,2,0"},
    "clip/00000003.jpg": {"missing": Path.unlink},
    "clip/frame_5.jpg": {"named otherwise": JPEG},
    "clip/00000007.jpg": {"a gap before it": JPEG},
}


@pytest.mark.parametrize(("file", "kind"), [(file, kind) for file, kinds in ANNOTATION.items() for kind in kinds])
def test_damaged_annotation_is_refused_by_name(file: str, kind: str, root: Path) -> None:
    spoil(root / file, ANNOTATION[file][kind])
    named = "00000004.jpg: follows frame 2" if kind == "missing" else Path(file).name
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        read_split(root)
    assert named in str(caught.value) or (
        Path(file).name == "groundtruth.txt" and "clip: no frames" in str(caught.value)
    )
    assert time.monotonic() - began < 5


STATUS = "frame,status,answer\n" + "".join(f"{t},ok,x\n" for t in range(1, FRAMES + 1))
TRACK: dict[str, dict[str, Damage]] = {
    "clip/clip_001.txt": {
        **NO_FILE,
        "a row less": ROWS.split("\n", 1)[1].encode(),
        "NaN": ROWS.replace("12", "nan", 1).encode(),
        "1e200": ROWS.replace("12", "1e200", 1).encode(),
        "three columns": ROWS.replace(",16", "", 1).encode(),
        "Latin-1": LATIN,
    },
    "clip/clip_time.txt": {
        "a row less": b"0.1\n" * 3,
        "a word": b"0.1\nfast\n0.1\n0.1\n",
        "columns": b"1,1\n1\n1\n1\n",
    },
    "clip/clip_status.csv": {
        "a row less": STATUS.rsplit("\n", 2)[0].encode(),
        "no header": STATUS.split("\n", 1)[1].encode(),
        "an open quote": STATUS.replace("x", '"x', 1).encode(),
        "rows cut short": STATUS.replace(",x", "").encode(),
        "Latin-1": STATUS.replace("x", "ü", 1).encode("latin-1"),
    },
}


@pytest.mark.parametrize(("file", "kind"), [(file, kind) for file, kinds in TRACK.items() for kind in kinds])
def test_a_damaged_track_is_refused_by_name(file: str, kind: str, root: Path, tmp_path: Path) -> None:
    (sequence,) = read_split(root)
    tracks = tmp_path / "model" / "set"
    write_track(tracks, track_of(sequence))
    assert score.score(tracks, root, 100).ao == 1
    spoil(tracks / file, TRACK[file][kind])
    with pytest.raises(UserError, match=Path(file).name):
        score.score(tracks, root, 100)


def track_of(sequence: Sequence) -> Track:
    n = len(sequence.frames)
    return Track(sequence.name, sequence.boxes, np.full(n, 0.1), ["init", *["ok"] * (n - 1)], [""] * n)


ZIPS = {
    "empty": lambda data: b"",
    "words": lambda data: b"not found",
    "cut": lambda data: cut(data, 0.5),
    "another byte in a file": lambda data: data[:200] + bytes([data[200] ^ 255]) + data[201:],
    "a picture": lambda data: JPEG,
}


@pytest.mark.parametrize("kind", ZIPS)
def test_a_damaged_zip_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in submit.NAMES:
            rows = "".join(f"{x:.3f},2.000,3.000,4.000\n" for x in np.random.default_rng(0).uniform(0, 99, 50))
            archive.writestr(f"{name}/{name}_001.txt", rows)
            archive.writestr(f"{name}/{name}_time.txt", "0.1\n" * 50)
    submit.verify(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(ZIPS[kind]((tmp_path / "a.zip").read_bytes()))
    with pytest.raises(UserError, match=r"a\.zip: cannot be read .*; run `r1track submit` again"):
        submit.verify(tmp_path / "a.zip")


QUESTIONS = {  # what stands in the column image of the second row
    "null": None,
    "neither bytes nor path": {"bytes": None, "path": None},
    "no bytes": {"bytes": b"", "path": None},
    "words": {"bytes": b"not found", "path": None},
    "half a picture": {"bytes": cut(JPEG, 0.5), "path": None},
    "400 megapixels": {"bytes": png(20_000, 20_000), "path": None},
    "too narrow": {"bytes": picture("PNG", (603, 3)), "path": None},
    "a file of the machine": {"bytes": None, "path": "/etc/hostname"},
    "a device": {"bytes": None, "path": "/dev/zero"},
    "a path upwards": {"bytes": None, "path": "../outside.png"},
    "a missing file": {"bytes": None, "path": "gone.png"},
}


@pytest.mark.parametrize("kind", QUESTIONS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_question_is_refused_with_its_set_and_number(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "outside.png").write_bytes(PNG)
    pictures = [{"bytes": PNG, "path": None}, QUESTIONS[kind]]
    rows = [{"image": image, "question": "colour?", "answer": "red"} for image in pictures]
    text = datasets.Value("string")
    form = datasets.Features({"image": datasets.Image(), "question": text, "answer": text}).arrow_schema
    (tmp_path / "set").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows, form), tmp_path / "set" / "test.parquet")
    spec = schema.VqaSet(source=str(tmp_path / "set"), items=2)
    with pytest.raises(UserError, match=r"vqa\.sets\.mine: image of question 1 "):
        questions.load("mine", spec, 0, config.resolve({"preset": "demo"}).model)


def test_these_are_a_hundred_kinds() -> None:
    tables = (*ANNOTATION.values(), *TRACK.values(), FRAME, ZIPS, QUESTIONS)
    assert sum(len(table) for table in tables) >= 100
