"""Claims about one-pass evaluation of OTB's and LaSOT's layouts, against a slow implementation of its description."""

import math
import statistics

import numpy as np
import pytest
from PIL import Image
from tracks import SIZE, scored, write_track

from r1track.tracking import score


def slow_one_pass(truth, guess, absent, missed):
    """Success AUC and both precisions of a sequence, frame by frame, from the toolkits' description."""
    success, near, near_share, total = [0] * 21, 0, 0, 0
    for (x, y, w, h), (u, v, p, q), gone in zip(truth, guess, absent, strict=True):
        total += missed or not gone
        if gone:
            continue
        shared = max(0, min(x + w, u + p) - max(x, u)) * max(0, min(y + h, v + q) - max(y, v))
        overlap = shared / (w * h + p * q - shared)
        success = [count + (overlap > t / 20) for t, count in enumerate(success)]
        right, down = u + (p - 1) / 2 - x - (w - 1) / 2, v + (q - 1) / 2 - y - (h - 1) / 2
        near += math.sqrt(right**2 + down**2) <= 20
        near_share += math.sqrt((right / w) ** 2 + (down / h) ** 2) <= 0.2
    return sum(success) / 21 / total, near / total, near_share / total


def other_layout(root, name, layout, truth, absent=()):
    """A sequence in OTB's or LaSOT's layout, with empty frames."""
    folder = root / name
    (folder / "img").mkdir(parents=True)
    for t in range(len(truth)):
        (folder / "img" / f"{t + 1:08d}.jpg").touch()
    Image.new("RGB", SIZE).save(folder / "img" / "00000001.jpg")
    if layout == "otb":
        np.savetxt(folder / "groundtruth_rect.txt", np.add(truth, [1, 1, 0, 0]), fmt="%.4f", delimiter="\t")
    else:
        np.savetxt(folder / "groundtruth.txt", truth, fmt="%.4f", delimiter=",")
        for k, file in enumerate(("full_occlusion.txt", "out_of_view.txt")):
            (folder / file).write_text(",".join(str(int(gone and t % 2 == k)) for t, gone in enumerate(absent)))
    with (root / "list.txt").open("a") as stream:
        stream.write(f"{name}\n")


@pytest.mark.parametrize("layout", ["otb", "lasot"])
def test_other_layouts_are_scored_as_a_slow_implementation_of_one_pass_evaluation(layout, tmp_path):
    rng = np.random.default_rng(3)
    expected = {}
    for name, length in (("cat-1", 60), ("cat-2", 25), ("dog-1", 40)):
        truth = np.column_stack([rng.uniform(-15, 60, (length, 2)), rng.uniform(8, 50, (length, 2))]).round(4)
        guess = (truth + rng.normal(0, 9, (length, 4)) * [1, 1, 0.3, 0.3]).round(3)
        guess[:, 2:] = np.maximum(guess[:, 2:], 1)
        absent = (rng.random(length) < 0.2) & (np.arange(length) > 0) if layout == "lasot" else np.zeros(length, bool)
        other_layout(tmp_path / "set", name, layout, truth, absent)
        write_track(tmp_path / "t" / "s", name, guess)
        expected[name] = slow_one_pass(truth, guess, absent, layout == "lasot")
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 300)
    assert figures["metric"] == "ope"
    keys = ("success_auc", "precision_20px", "norm_precision_20pct")
    for name, values in expected.items():
        assert [figures["sequences"][name][key] for key in keys] == pytest.approx(values, abs=1e-12)
    for k, key in enumerate(keys):
        values = [row[k] for row in expected.values()]
        assert figures[key] == pytest.approx(statistics.mean(values), abs=1e-12)
        low, high = figures[f"{key}_interval"]
        assert min(values) - 1e-9 <= low < figures[key] < high <= max(values) + 1e-9
        assert 0.05 < figures[key] < 0.95
    if layout == "lasot":
        assert set(figures["classes"]) == {"cat", "dog"}  # by the sequences' names


def test_a_perfect_track_misses_only_the_last_threshold_and_frames_without_a_target_where_they_count(tmp_path):
    truth = [[10.0, 10, 20, 20]] * 10
    absent = [False] * 8 + [True] * 2
    for layout, name, share in (("otb", "a", 1), ("lasot", "b", 0.8)):
        other_layout(tmp_path / layout, name, layout, truth, absent)
        write_track(tmp_path / "t" / layout, name, truth)
        figures = scored(tmp_path / "t" / layout, tmp_path / layout, 100)
        assert figures["success_auc"] == pytest.approx(share * 20 / 21)
        assert figures["precision_20px"] == figures["norm_precision_20pct"] == pytest.approx(share)


def test_both_precisions_hold_at_their_very_thresholds(tmp_path):
    truth = [[100.0, 100, 50, 100]] * 5
    guess = [[x, y, 50, 100] for x, y in ((112, 116), (112, 116.1), (110, 100), (110.1, 100), (100, 120))]
    other_layout(tmp_path / "set", "a", "otb", truth)
    write_track(tmp_path / "t" / "s", "a", guess)
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 100)
    assert figures["precision_20px"] == pytest.approx(4 / 5)
    assert figures["norm_precision_20pct"] == pytest.approx(2 / 5)


def test_a_sequence_that_never_started_is_near_nothing(tmp_path):
    other_layout(tmp_path / "set", "a", "otb", [[1.0, 1, 8, 8]] * 3)
    write_track(tmp_path / "t" / "s", "a", [[0, 0, 0, 0]] * 3, status=["init", "failed", "failed"])
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 100)
    assert [figures[key] for key in score.FIGURES] == [0, 0, 0]
    assert figures["ao"] == 0
    assert figures["sequences_failed"] == 1
