"""Sample: the pairs hold what they say, and the same seed cuts the same bytes."""

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from r1track import config, files, sample
from r1track import pairs as pairs_module
from r1track.boxes import xywh_to_xyxy
from r1track.crops import Crop
from r1track.sequences import read_split
from r1track.toy import world


def settings(**changes: object) -> config.Settings:
    few = {"pairs": 30, "val_pairs": 6, "val_share": 0.2, "shard_rows": 12, "max_gap": 8}
    return config.resolve({"preset": "demo", "sample": {**few, **changes}})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "train"
    world.write_split(folder, "train", sequences=10, length=20, seed=3)
    return folder


@pytest.fixture(scope="module")
def pairs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "pairs"
    sample.run(settings(), root, out)
    return out


def test_the_same_seed_cuts_the_same_bytes_and_another_seed_does_not(root: Path, pairs: Path, tmp_path: Path) -> None:
    sample.run(settings(), root, tmp_path / "again")
    assert files.hash_path(tmp_path / "again" / "train") == files.hash_path(pairs / "train")
    other = settings().model_copy(update={"seed": 1})
    sample.run(other, root, tmp_path / "other")
    assert files.hash_path(tmp_path / "other" / "train") != files.hash_path(pairs / "train")


def test_shards_are_read_by_datasets_as_they_are(pairs: Path, tmp_path: Path) -> None:
    rows = load_dataset("parquet", data_dir=str(pairs), split="train", cache_dir=str(tmp_path))
    assert len(list((pairs / "train").glob("*.parquet"))) == 3
    assert len(rows) == 30
    assert all(image.size == (84, 84) for image in rows[0]["images"])


def test_held_out_pairs_come_from_other_sequences(pairs: Path) -> None:
    train, val = (set(pairs_module.load(pairs / name)["sequence"]) for name in ("train", "val"))
    assert train
    assert val
    assert not train & val


def test_the_answer_is_the_true_box_in_the_search_crop(root: Path, pairs: Path) -> None:
    sequences = {sequence.name: sequence for sequence in read_split(root)}
    for row in pairs_module.load(pairs / "train"):
        sequence, (first, second) = sequences[row["sequence"]], row["frames"]
        x, y, side = row["crops"][1]
        crop = Crop(x, y, side, row["size"])
        truth = np.clip(crop.to_crop(xywh_to_xyxy(sequence.boxes[second - 1])), 0, 84)
        assert np.allclose(row["answer"], truth)
        cut = crop.cut(Image.open(sequence.frames[second - 1]))
        assert np.abs(np.asarray(cut, int) - np.asarray(row["images"][1], int)).mean() < 4  # JPEG, once
        centre = np.mean(np.reshape(row["template_box"], (2, 2)), axis=0)
        assert np.allclose(centre, 42)
        assert row["gap"] == second - first <= 8


def test_no_pair_shows_an_absent_or_hidden_target(root: Path, tmp_path: Path) -> None:
    sample.run(settings(pairs=200), root, tmp_path / "many")
    sequences = {sequence.name: sequence for sequence in read_split(root)}
    for row in pairs_module.load(tmp_path / "many" / "train"):
        for frame in row["frames"]:
            sequence = sequences[row["sequence"]]
            assert not sequence.absent[frame - 1]
            assert sequence.visibility[frame - 1] >= 0.25
    rejected = files.read_json(tmp_path / "many" / "manifest.json")["splits"]["train"]["rejected"]
    assert rejected["target absent"] > 0


def test_the_manifest_names_every_shard_with_its_hash(pairs: Path) -> None:
    found = files.read_json(pairs / "manifest.json")["splits"]
    for name in ("train", "val"):
        assert found[name]["shards"] == {p.name: files.hash_file(p) for p in (pairs / name).glob("*.parquet")}
        assert found[name]["pairs"] == len(pairs_module.load(pairs / name))


def test_images_are_encoded_once(pairs: Path) -> None:
    table = pairs_module.load(pairs / "train").with_format("arrow")[0]
    raw = table["images"][0].as_py()[0]["bytes"]
    assert Image.open(io.BytesIO(raw)).format == "JPEG"


def test_what_cannot_be_sampled_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be split into training and held-out"):
        sample.split(["only"], 0.5, 0)
    with pytest.raises(ValueError, match=r"only 0 of 30 pairs could be cut .*loosen sample"):
        sample.run(settings(shift=500.0), root, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match="run `r1track sample` first"):
        pairs_module.load(tmp_path)
