"""Frames: each is decoded once and no larger than needed, and what is damaged is counted by its reason or refused."""

import io
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from few_pairs import FEW, manifest, settings
from PIL import Image

from r1track.core.crops import Crop
from r1track.core.errors import UserError
from r1track.data import sample, toy
from r1track.data import shards as shard_files


def test_a_frame_is_decoded_once_for_all_pairs_that_show_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, decode = [], shard_files.decode

    def counted(path: Path, crops: Any) -> Any:
        read.append(path)
        return decode(path, crops)

    monkeypatch.setattr(shard_files, "decode", counted)
    folder = next(path for path in sorted(root.iterdir()) if path.is_dir())
    rows = [row for row in shard_files.pairs([(folder, 24)], "got10k", settings()) if isinstance(row, dict)]
    assert len(rows) == 24
    assert len(read) == len(set(read)) == len({t for row in rows for t in row["frames"]})


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A sequence of three real images of 640x480, its target 120 pixels large."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "big"
    folder.mkdir()
    for t in range(3):
        ground = cv2.resize(toy.make_ground(rng), (640, 480), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(ground).save(folder / f"{t + 1:08d}.jpg", quality=92)
    (folder / "groundtruth.txt").write_text("200,150,120,120\n" * 3)
    return folder


def three(folder: Path) -> list[Any]:
    """Pairs of the first two frames, rejections included."""
    sequence = shard_files.read_sequence(folder, "got10k")
    return list(shard_files.cut(sequence, [tuple((t, Crop.around(sequence.boxes[t], 4, 84)) for t in (0, 1))], 0.25))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "cut short": (halve, "frame cannot be decoded"),
    "cut short by two bytes": (lambda p: p.write_bytes(p.read_bytes()[:-2]), "frame cannot be decoded"),
    "empty": (lambda p: p.write_bytes(b""), "frame cannot be decoded"),
    "text": (lambda p: p.write_text("not found"), "frame cannot be decoded"),
    "another resolution": (lambda p: Image.open(p).resize((64, 48)).save(p), "target outside the image"),
    "a box beyond it": (
        lambda p: p.with_name("groundtruth.txt").write_text("200,150,120,120\n700,150,120,120\n9,9,9,9\n"),
        "target outside the image",
    ),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_frame_is_counted_by_its_reason_and_gives_no_pair(big: Path, fault: str) -> None:
    assert isinstance(three(big)[0], dict)
    damage, reason = DAMAGE[fault]
    damage(big / "00000002.jpg")
    (rejection,) = three(big)
    assert rejection.startswith(reason)
    assert "decoded" not in rejection or rejection.endswith("00000002.jpg")


def test_a_frame_of_another_resolution_is_cut_by_its_own_pixels(big: Path) -> None:
    frame = Image.open(big / "00000002.jpg").crop((0, 0, 400, 320))
    frame.save(big / "00000002.jpg", quality=95)
    (row,) = three(big)
    shown = np.asarray(Image.open(io.BytesIO(row["images"][1]["bytes"])), int)
    crop = Crop(*row["crops"][1], 84)
    assert np.abs(shown - np.asarray(crop.cut(frame), int)).mean() < 4
    assert shown[:, -10:].max() < 30  # beyond the smaller image


def test_frames_are_decoded_no_larger_than_their_crops_need(big: Path) -> None:
    path = big / "00000001.jpg"
    frame = Image.open(path)
    for side, reduced in ((84, 1), (180, 1), (190, 2), (420, 4), (2000, 8)):
        crop = Crop(300 - side / 2, 220 - side / 2, side, 84)
        pixels, factor = shard_files.decode(path, [crop])
        assert factor == reduced
        assert pixels.shape[:2] == (480 // reduced, 640 // reduced)
        shown = crop.warp(pixels, factor)[..., ::-1]
        assert np.abs(shown.astype(int) - np.asarray(crop.cut(frame), int)).mean() < 1
    assert shard_files.decode(path, [Crop(0, 0, 2000, 84), Crop(0, 0, 190, 84)])[1] == 2  # the finest crop decides
    frame.save(big / "00000001.png")
    assert shard_files.decode(big / "00000001.png", [Crop(0, 0, 2000, 84)])[1] == 1


def test_too_many_rejections_stop_the_stage_and_say_why(root: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(root, tmp_path / "damaged")
    for path in damaged.glob("*/0000000[1-3].jpg"):
        halve(path)
    with pytest.raises(ValueError, match=r"draws rejected .*sample\.max_rejected = 0\.1 .*; mend the data, or loosen"):
        sample.run(settings(max_rejected=0.1), damaged, tmp_path / "none", processes=1)
    assert not (tmp_path / "none").exists()
    sample.run(settings(), damaged, tmp_path / "some", processes=1)
    split = manifest(tmp_path / "some")
    assert split["pairs"] < 30
    assert sum(count for reason, count in split["rejected"].items() if "damaged" in reason and ".jpg" in reason) > 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_usable_pair_is_an_error(split: str, root: Path, tmp_path: Path) -> None:
    """All frames of its sequences are damaged, and any number of rejections is allowed."""
    damaged = shutil.copytree(root, tmp_path / "damaged")
    names = [folder.name for folder in sorted(damaged.iterdir()) if folder.is_dir()]
    train, val = sample.split(names, FEW["val_share"], settings().seed)
    for name in train if split == "train" else val:
        for path in (damaged / name).glob("*.jpg"):
            halve(path)
    with pytest.raises(UserError, match=rf"{split}: no pair could be made; rejected draws: .*\.jpg.*; mend the data"):
        sample.run(settings(max_rejected=19.0), damaged, tmp_path / "none", processes=1)
    assert not (tmp_path / "none").exists()
