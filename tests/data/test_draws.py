"""The draws follow what the configuration states, over ten thousand pairs of each policy."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from few_pairs import FEW, settings
from many_draws import check_labels, drawn, kind, measured
from scipy import stats

from r1track.core import config
from r1track.core import pairs as pairs_module
from r1track.core.boxes import area, clip, xywh_to_xyxy
from r1track.data import sample
from r1track.data import shards as shard_files


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
