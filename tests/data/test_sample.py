"""Sample: the pairs hold what they say, the draws follow what is stated, and the same seed cuts the same bytes."""

import dataclasses
import functools
import hashlib
import io
import json
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
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import yaml
from datasets import load_dataset
from PIL import Image
from scipy import stats

from r1track import plan
from r1track.core import config, files, prompts
from r1track.core import pairs as pairs_module
from r1track.core.boxes import area, clip, iou, xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.errors import UserError
from r1track.core.sequences import Sequence, read_split
from r1track.data import sample, toy
from r1track.data import shards as shard_files

FEW = {"pairs": 30, "val_pairs": 6, "val_share": 0.2, "shard_rows": 12, "max_gap": 8}


def settings(**changes: Any) -> config.Settings:
    return config.resolve({"preset": "demo", "sample": {**FEW, **changes}})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "train"
    toy.write_split(folder, "train", sequences=10, length=20, seed=3)
    return folder


@pytest.fixture(scope="module")
def pairs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "pairs"
    sample.run(settings(), root, out, processes=1)
    return out


def rows(folder: Path) -> list[dict[str, Any]]:
    return pairs_module.load(folder).remove_columns("images").to_list()


def manifest(out: Path, split: str = "train") -> dict[str, Any]:
    return files.read_json(out / "manifest.json")["splits"][split]


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


# Negatives.


def distance_off(row: dict[str, Any]) -> float:
    """How far the search region of a pair is from the target, over the target's width or height; 0 where they touch."""
    (x, y, w, h), (left, top, side) = row["boxes"][1], row["crops"][1]
    return max((left - x - w) / w, (x - left - side) / w, (top - y - h) / h, (y - top - side) / h, 0.0)


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


# The draws, over ten thousand pairs of each policy. Pixels are not read: what is tested is where the crops lie.


@functools.cache
def kind(number: int) -> Sequence:
    """A sequence of 1920x1080 frames whose target has its own size and shape and is anywhere."""
    rng = np.random.default_rng(number)
    n, side, stretch = 150, np.exp(rng.uniform(np.log(40), np.log(400))), np.exp(rng.uniform(-0.2, 0.2))
    w, h = side * stretch, side / stretch
    corners = rng.uniform([0, 0], [1920 - w, 1080 - h], (n, 2))
    boxes = np.hstack([corners, np.tile([w, h], (n, 1))])
    nothing = np.zeros(n, bool)
    return Sequence("", (Path(),) * n, boxes, nothing, np.full(n, np.nan), nothing, {}, None)


def wide(folder: Path, layout: str) -> Sequence:
    return dataclasses.replace(kind(int(folder.name) % 500), name=folder.name)


def drawn(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[dict[str, Any]]:
    monkeypatch.setattr(shard_files, "read_sequence", wide)
    monkeypatch.setattr(shard_files, "read_size", lambda path: (1920, 1080))
    frame = np.zeros((1080, 1920, 3), np.uint8)
    monkeypatch.setattr(shard_files, "decode", lambda path, crops: (frame, 1))
    monkeypatch.setattr(Crop, "warp", lambda crop, frame, reduced: np.zeros((8, 8, 3), np.uint8))
    chosen = config.resolve(
        {"preset": "r1track-5k", "model": {"min_pixels": 10000}, "sample": {"policy": "matched", **changes}}
    )
    per_sequence = 10 if chosen.sample.policy == "matched" else 1
    parts = [(Path(str(k)), per_sequence) for k in range(10000 // per_sequence)]
    rows = list(shard_files.pairs(parts, "got10k", chosen))
    assert sum(isinstance(row, str) for row in rows) < 0.02 * len(rows)
    return [row for row in rows if isinstance(row, dict)]


def measured(rows: list[dict[str, Any]], which: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one image of every pair: the factor, and the crop's displacement in shares of the target and of the crop."""
    boxes, crops = (np.array([row[key][which] for row in rows]) for key in ("boxes", "crops"))
    size = np.sqrt(boxes[:, 2] * boxes[:, 3])
    shift = crops[:, :2] + crops[:, 2:] / 2 - boxes[:, :2] - boxes[:, 2:] / 2
    return crops[:, 2] / size, shift / size[:, None], shift / crops[:, 2:]


def check_labels(rows: list[dict[str, Any]], inside: float) -> None:
    answers, sizes = np.array([row["answer"] for row in rows]), np.array([[row["size"]] for row in rows])
    crops, truth = np.array([row["crops"][1] for row in rows]), np.array([row["boxes"][1] for row in rows])
    assert (answers[:, 2:] - answers[:, :2] >= 1).all()
    assert ((answers >= 0) & (answers <= sizes)).all()
    back = answers * crops[:, 2:] / sizes + np.tile(crops[:, :2], 2)
    assert (iou(back, xywh_to_xyxy(truth)) >= inside).all()
    for answer, (size,) in zip(answers[:500], sizes, strict=False):
        assert prompts.parse_box(prompts.numbers(answer), size=size) is not None


def test_matched_draws_what_the_configuration_states(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn(monkeypatch, sizes=[112, 224, 336, 336, 448])
    check_labels(rows, 0.98)
    gaps = np.bincount([row["gap"] for row in rows], minlength=101)[1:]
    assert len(gaps) == 100
    assert stats.chisquare(gaps).pvalue > 1e-3
    assert all(row["gap"] == row["frames"][1] - row["frames"][0] for row in rows)
    factor, shift, _ = measured(rows, 0)
    assert np.abs(shift).max() < 1e-9
    assert ((factor >= 4) & (factor < 4.03)).all()  # the side is rounded up
    factor, shift, _ = measured(rows, 1)
    wanted = np.clip(stats.norm.ppf([0.05, 0.25, 0.5, 0.75, 0.95]), -2, 2)
    for values, deviation in ((shift[:, 0], 0.3), (shift[:, 1], 0.3), (np.log(factor / 4), 0.12)):
        assert np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]) == pytest.approx(wanted * deviation, abs=0.015)
        assert np.abs(values).max() < 2 * deviation + 0.01
    shares = Counter(row["size"] for row in rows)
    for size, share in {112: 0.2, 224: 0.2, 336: 0.4, 448: 0.2}.items():
        assert shares[size] / len(rows) == pytest.approx(share, abs=0.03)


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


def test_paper_draws_any_two_frames_and_moves_and_scales_both_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn(monkeypatch, policy="paper")
    check_labels(rows, 0.98)
    gaps = np.array([row["gap"] for row in rows])
    assert (gaps != 0).all()
    assert (gaps > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert np.abs(gaps).mean() == pytest.approx(151 / 3, rel=0.02)  # of two different numbers out of 150
    for which in (0, 1):
        factor, _, shift = measured(rows, which)
        assert stats.kstest(factor, stats.uniform(2, 6).cdf).statistic < 0.02
        for axis in (0, 1):
            assert stats.kstest(shift[:, axis], stats.uniform(-0.2, 0.4).cdf).statistic < 0.02


def test_a_stated_share_of_a_long_target_is_inside_its_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    slim = kind(1000)
    slim.boxes[:, 2:] = [500, 60]
    rng = np.random.default_rng(0)
    for inside in (0.8, 1.0):
        chosen = settings(inside=inside, shift=0.6)
        draws = [drawn for _ in range(300) for drawn in shard_files.draw(slim, chosen, rng, 4)]
        assert draws.count("target outside the crop") > 10
        for _, (t, crop) in (pair for pair in draws if not isinstance(pair, str)):
            whole = crop.to_crop(xywh_to_xyxy(slim.boxes[t]))
            assert area(clip(whole, 84, 84)) >= inside * area(whole)
    slim.boxes[:, 2:] = [400, 0.3]
    assert set(shard_files.draw(slim, settings(inside=0.1), rng, 4)) == {"target thinner than a pixel"}


def test_a_later_template_lies_between_the_two_frames(root: Path, tmp_path: Path) -> None:
    chosen = config.resolve({"preset": "demo", "sample": FEW, "task": {"templates": 2}})
    sample.run(chosen, root, tmp_path / "three")
    counts = Counter()
    for row in pairs_module.load(tmp_path / "three" / "train"):
        counts[len(row["images"])] += 1
        assert len(row["images"]) == len(row["frames"]) == len(row["crops"]) == len(row["boxes"])
        if row["second_box"] is None:
            continue
        first, second, later = row["frames"]
        assert first < later < second
        centre = np.mean(np.reshape(row["second_box"], (2, 2)), axis=0)
        assert np.allclose(centre, 42)
    assert counts[3] > counts[2] > 0  # neighbours have nothing between them


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


# What is damaged.


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
