"""Negatives: as many as stated, their search regions beside the target, and nothing else is changed by them."""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from few_pairs import manifest, rows, settings
from many_draws import check_labels, distance_off, drawn, kind, measured
from PIL import Image

from r1track.core import files
from r1track.core import pairs as pairs_module
from r1track.core.crops import Crop
from r1track.core.sequences import read_split
from r1track.data import sample, toy
from r1track.data import shards as shard_files


@pytest.fixture(scope="module")
def mixed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pairs of 8 sequences, a fifth of them negatives, and 24 held-out ones of two."""
    out = tmp_path_factory.mktemp("mixed") / "pairs"
    sample.run(settings(pairs=200, val_pairs=24, negatives=0.2), root, out, 1, ["easyr1", "sharegpt"])
    return out


def test_the_stated_share_of_every_sequence_is_negatives_and_the_seed_decides_which(
    root: Path, mixed: Path, tmp_path: Path
) -> None:
    counts = Counter(row["sequence"] for row in rows(mixed / "train") if not row["answer"])
    assert [*counts.values()] == [5] * 8  # of 25
    held_out = Counter(row["sequence"] for row in rows(mixed / "val") if not row["answer"])
    assert len(held_out) == 2
    assert set(held_out.values()) <= {2, 3}  # of 12
    assert manifest(mixed)["negatives"] == 40
    assert manifest(mixed, "val")["negatives"] == sum(held_out.values())
    sample.run(settings(pairs=200, val_pairs=24, negatives=0.2), root, tmp_path / "again", processes=2)
    assert files.hash_path(tmp_path / "again" / "train") == files.hash_path(mixed / "train")


def test_the_search_region_of_a_negative_never_reaches_the_target_and_has_its_centre_in_the_frame(
    root: Path, mixed: Path
) -> None:
    sequences = {sequence.name: sequence for sequence in read_split(root)}
    for row in pairs_module.load(mixed / "train"):
        if row["answer"]:
            assert distance_off(row) == 0
            continue
        sequence, (first, second) = sequences[row["sequence"]], row["frames"]
        assert distance_off(row) >= 0.1
        assert row["boxes"][1] == sequence.boxes[second - 1].tolist()
        assert first < second
        crop = Crop(*row["crops"][1], row["size"])
        assert 0 <= crop.x + crop.side / 2 <= toy.WIDTH
        assert 0 <= crop.y + crop.side / 2 <= toy.HEIGHT
        shown = crop.cut(Image.open(sequence.frames[second - 1]))
        assert np.abs(np.asarray(shown, int) - np.asarray(row["images"][1], int)).mean() < 4


def test_without_negatives_the_pairs_are_those_of_before_there_were_any(pairs: Path) -> None:
    table = rows(pairs / "train")
    assert all(row["answer"] for row in table)
    assert manifest(pairs)["negatives"] == 0
    drawn = [[row["frames"], np.round(row["crops"], 3).tolist(), np.round(row["answer"], 3).tolist()] for row in table]
    assert hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16] == "a603361f06185ecb"


def test_a_pair_whose_frame_has_no_room_beside_the_target_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_files, "read_size", lambda path: (1920, 1080))
    full = dataclasses.replace(kind(1), boxes=np.tile([660.0, 240.0, 600.0, 600.0], (150, 1)))
    pair = ((0, Crop.around(full.boxes[0], 4, 336)), (9, Crop.around(full.boxes[9], 4, 336)))
    assert shard_files.move_off(full, pair, np.random.default_rng(0)) is None


def test_a_damaged_frame_is_counted_with_negatives_too(root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(root / "Toy_Train_000001", tmp_path / "Toy_Train_000001")
    for path in folder.glob("*.jpg"):
        path.write_bytes(b"")
    cut = list(shard_files.pairs([(folder, 4)], "got10k", settings(negatives=0.9)))
    assert len(cut) == 4
    assert all(str(row).startswith("frame cannot be decoded: ") for row in cut)


def test_negatives_are_exported_as_an_empty_list(mixed: Path) -> None:
    answers = [row["answer"] for row in rows(mixed / "train")]
    for form in ("easyr1", "sharegpt"):
        table = load_dataset("parquet", data_dir=str(mixed.with_name(f"pairs-{form}")), split="train").to_list()
        texts = [row["answer"] if form == "easyr1" else row["messages"][1]["content"] for row in table]
        assert [text == "[]" for text in texts] == [not answer for answer in answers]


def test_negatives_lie_beside_the_target_wherever_the_frame_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn(monkeypatch, negatives=0.1)
    negatives = [row for row in rows if not row["answer"]]
    check_labels([row for row in rows if row["answer"]], 0.98)
    assert all(distance_off(row) >= 0.1 for row in negatives)
    targets = {row["sequence"]: max(row["boxes"][1][2:]) for row in rows}
    small = [name for name, side in targets.items() if side < 200]  # there is room in every frame
    counts = Counter(row["sequence"] for row in negatives)
    assert {counts[name] for name in small} == {1}  # of ten
    assert len(negatives) / len(rows) == pytest.approx(0.1, abs=0.01)
    factor, shift, _ = measured(negatives, 1)
    assert np.quantile(np.log(factor / 4), [0.05, 0.5, 0.95]) == pytest.approx([-0.197, 0, 0.197], abs=0.03)
    assert np.abs(shift).max(1).min() > 2
