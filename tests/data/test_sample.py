"""Sample: the pairs hold what they say, and the same seed cuts the same bytes, whatever was interrupted."""

import io
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from datasets import load_dataset
from few_pairs import FEW, manifest, rows, settings
from PIL import Image

from r1track import plan
from r1track.core import config, files
from r1track.core import pairs as pairs_module
from r1track.core.boxes import xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.errors import UserError
from r1track.core.sequences import read_split
from r1track.data import sample
from r1track.data import shards as shard_files


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_and_any_folder_give_the_same_bytes(
    root: Path, pairs: Path, tmp_path: Path, processes: int
) -> None:
    elsewhere = shutil.copytree(root, tmp_path / "elsewhere")
    sample.run(settings(), elsewhere, tmp_path / "again", processes=processes)
    for split in ("train", "val"):
        assert files.hash_path(tmp_path / "again" / split) == files.hash_path(pairs / split)


def test_processes_are_started_by_what_is_found_by_its_name_alone() -> None:
    # A name that pickle must search for, as OpenCV's functions are, imports all of transformers where that is loaded.
    assert pickle.loads(pickle.dumps(shard_files.start)) is shard_files.start
    assert shard_files.start.__module__ == "r1track.data.shards"


def die() -> None:
    os._exit(1)


def test_a_process_that_dies_ends_the_stage_with_a_remedy(
    root: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(shard_files, "start", die)
        with pytest.raises(UserError, match=r"one of 2 processes .* died; .* give a smaller --processes\. The same"):
            sample.run(settings(), root, tmp_path / "pairs", processes=2)
    assert not (tmp_path / "pairs").exists()
    sample.run(settings(), root, tmp_path / "pairs", processes=2)
    assert files.hash_path(tmp_path / "pairs" / "train") == files.hash_path(pairs / "train")


def test_a_folder_without_a_list_gives_the_pairs_that_a_sorted_list_gives(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = shutil.copytree(root, tmp_path / "bare", ignore=shutil.ignore_patterns("list.txt"))
    (bare / ".cache").mkdir()
    assert sorted(sequence.name for sequence in read_split(root)) == [sequence.name for sequence in read_split(bare)]
    assert f"{bare}: there is no list.txt, so its" in caplog.text
    sample.run(settings(), bare, tmp_path / "pairs", 1)
    assert files.read_json(tmp_path / "pairs" / "manifest.json")["list"] is None
    (bare / "list.txt").write_text("".join(f"{sequence.name}\n" for sequence in read_split(bare)))
    sample.run(settings(), bare, tmp_path / "again", 1)
    assert files.hash_path(tmp_path / "pairs" / "train") == files.hash_path(tmp_path / "again" / "train")


def test_another_seed_cuts_other_bytes(root: Path, pairs: Path, tmp_path: Path) -> None:
    sample.run(settings().model_copy(update={"seed": 1}), root, tmp_path / "other", processes=1)
    assert files.hash_path(tmp_path / "other" / "train") != files.hash_path(pairs / "train")


def test_shards_are_read_by_datasets_as_they_are(pairs: Path, tmp_path: Path) -> None:
    dataset = load_dataset("parquet", data_dir=str(pairs), split="train", cache_dir=str(tmp_path))
    assert [p.name for p in sorted((pairs / "train").iterdir())] == [f"train-0000{k}.parquet" for k in range(3)]
    assert len(dataset) == 30
    assert dataset.features == pairs_module.FEATURES
    assert all(image.size == (84, 84) for image in dataset[0]["images"])


def test_held_out_pairs_come_from_other_sequences(pairs: Path) -> None:
    train, val = ({row["sequence"] for row in rows(pairs / name)} for name in ("train", "val"))
    assert train
    assert val
    assert not train & val


def test_pairs_are_spread_evenly_over_the_sequences(pairs: Path) -> None:
    counts = Counter(row["sequence"] for row in rows(pairs / "train"))
    assert sorted(counts.values()) == [3, 3, 4, 4, 4, 4, 4, 4]
    names = [f"s{k}" for k in range(7)]
    for wanted, size in ((0, 5), (3, 2), (7, 3), (40, 12), (40, 5), (5, 100)):
        shards = sample.deal(names, wanted, size)
        quotas = [quota for shard in shards for quota in shard]
        assert len({name for name, _ in quotas}) == len(quotas) == min(wanted, 7)
        assert sum(count for _, count in quotas) == wanted
        assert all(count in (wanted // 7, wanted // 7 + 1) for _, count in quotas)
        assert all(len(shard) == 1 or sum(count for _, count in shard) <= size for shard in shards)


def test_one_more_sequence_changes_no_pair_of_the_others(root: Path, tmp_path: Path) -> None:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    few, more = ([(folder, 4) for folder in folders[:n]] for n in (2, 3))
    cut_few, cut_more = (list(shard_files.pairs(parts, "got10k", settings())) for parts in (few, more))
    assert cut_few == cut_more[: len(cut_few)]


def test_the_answer_is_the_true_box_in_the_search_crop(root: Path, pairs: Path) -> None:
    sequences = {sequence.name: sequence for sequence in read_split(root)}
    for row in pairs_module.load(pairs / "train"):
        sequence, (first, second) = sequences[row["sequence"]], row["frames"]
        crops = [Crop(*crop, row["size"]) for crop in row["crops"]]
        for t, crop, image, box in zip(
            row["frames"], crops, row["images"], (row["template_box"], row["answer"]), strict=True
        ):
            assert np.allclose(box, np.clip(crop.to_crop(xywh_to_xyxy(sequence.boxes[t - 1])), 0, 84))
            shown = crop.cut(Image.open(sequence.frames[t - 1]))
            assert np.abs(np.asarray(shown, int) - np.asarray(image, int)).mean() < 4  # JPEG, once
        assert np.allclose(np.mean(np.reshape(row["template_box"], (2, 2)), axis=0), 42)
        assert 1 <= row["gap"] == second - first <= 8
        assert row["second_box"] is row["problem"] is None


def test_no_pair_shows_an_absent_or_hidden_target(root: Path, tmp_path: Path) -> None:
    sample.run(settings(pairs=200), root, tmp_path / "many")
    sequences = {sequence.name: sequence for sequence in read_split(root)}
    for row in rows(tmp_path / "many" / "train"):
        for frame in row["frames"]:
            sequence = sequences[row["sequence"]]
            assert not sequence.absent[frame - 1]
            assert sequence.visibility[frame - 1] >= 0.25
    assert manifest(tmp_path / "many")["rejected"]["target absent"] > 0


def test_the_manifest_names_every_shard_with_its_hash(pairs: Path) -> None:
    for name in ("train", "val"):
        split = manifest(pairs, name)
        assert split["shards"] == {p.name: files.hash_file(p) for p in (pairs / name).glob("*.parquet")}
        assert split["pairs"] == len(pairs_module.load(pairs / name))


def test_images_are_encoded_once_and_a_shared_template_is_the_same_bytes(pairs: Path) -> None:
    table = pairs_module.load(pairs / "train").with_format("arrow")[:].to_pylist()
    assert all(Image.open(io.BytesIO(image["bytes"])).format == "JPEG" for row in table for image in row["images"])
    templates = {(row["sequence"], row["frames"][0], row["images"][0]["bytes"]) for row in table}
    assert len(templates) < len(table) / 2


def test_the_workflow_refuses_a_run_without_held_out_pairs_at_once() -> None:
    with pytest.raises(config.ConfigError, match=r"sample\.val_pairs = 0: `merge` compares .*; give at least 1"):
        plan.make_plan(config.resolve({"sample": {"val_pairs": 0}}))


def test_what_cannot_be_sampled_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be split into training and held-out"):
        sample.split(["only"], 0.5, 0)
    with pytest.raises(ValueError, match=r"'target outside the crop'.*'pair given up: no usable frames'"):
        sample.run(settings(shift=500.0), root, tmp_path / "none")
    with pytest.raises(ValueError, match=r"give --root, or set sample\.hub"):
        sample.run(settings(), None, tmp_path / "none")
    first = shutil.copytree(root, tmp_path / "first")
    for truth in first.glob("*/groundtruth.txt"):
        truth.write_text("1,2,3,4\n")
    with pytest.raises(ValueError, match=r"Toy_Train_\d+: a pair needs two frames with a box each; .*sample\.exclude"):
        sample.run(settings(), first, tmp_path / "none")
    with pytest.raises(ValueError, match=r"no frames \(img/\*\.jpg, .*\); restore"):
        sample.run(settings(layout="otb"), root, tmp_path / "none", processes=1)
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match="run `r1track sample` first"):
        pairs_module.load(tmp_path)


def test_sequences_are_left_out_by_name_and_the_manifest_says_why(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = {"Toy_Train_000004": "wrong first frames", "Toy_Train_999999": "not there"}
    with caplog.at_level(logging.WARNING):
        sample.run(settings(exclude=left), root, tmp_path / "pairs", processes=1)
    assert "Toy_Train_999999" in caplog.text
    content = files.read_json(tmp_path / "pairs" / "manifest.json")
    assert content["excluded"] == {"Toy_Train_000004": "wrong first frames"}
    used = {name for split in content["splits"].values() for name in split["sequences"]}
    assert len(used) == 9
    assert "Toy_Train_000004" not in used


def unfinished(folder: Path) -> Iterator[Path]:
    return folder.glob(".pairs.partial/train/*.json")


def test_a_killed_run_goes_on_from_its_finished_shards(root: Path, pairs: Path, tmp_path: Path) -> None:
    wanted = {"preset": "demo", "sample": {**FEW, "pairs": 2400, "shard_rows": 40}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(wanted))
    command = [sys.executable, "-m", "r1track", "sample", "--config", file, "--root", root, "--processes", "2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = subprocess.Popen([*command, "--out", tmp_path / "pairs"], **quiet)
    deadline = time.time() + 60
    while len(list(unfinished(tmp_path))) < 2 and running.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    workers = psutil.Process(running.pid).children(recursive=True)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=10)[1] == []  # none of them stays behind
    done = {path.with_suffix(".parquet"): path.stat().st_mtime_ns for path in unfinished(tmp_path)}
    assert 2 <= len(done) < 8
    assert not (tmp_path / "pairs").exists()
    for path in done:
        os.utime(path, ns=(1, 1))
    chosen = config.resolve(wanted)
    sample.run(chosen, root, tmp_path / "pairs", processes=1)
    shards = list((tmp_path / "pairs" / "train").iterdir())
    assert len(shards) == 8
    assert sum(path.stat().st_mtime_ns == 1 for path in shards) == len(done)
    assert not list(tmp_path.glob(".pairs*"))
    sample.run(chosen, root, tmp_path / "whole", processes=2)
    assert files.hash_path(tmp_path / "whole" / "train") == files.hash_path(tmp_path / "pairs" / "train")


def test_what_a_run_of_other_settings_left_is_not_taken_up(root: Path, pairs: Path, tmp_path: Path) -> None:
    left = tmp_path / ".pairs.partial" / "train"
    left.mkdir(parents=True)
    (left / "train-00000.json").write_text("{}")
    sample.run(settings(), root, tmp_path / "pairs", processes=1)
    assert not left.exists()
    assert files.hash_path(tmp_path / "pairs" / "train") == files.hash_path(pairs / "train")
