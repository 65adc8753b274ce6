"""Claims about the score: the official metric, against a slow implementation from its description."""

import json
import statistics
import tracemalloc

import numpy as np
import pytest
from toys import bare_sequence
from tracks import SIZE, scored, write_track

from r1track.tracking import score


def slow_limit(box):
    """As got10k.md has it: the corner shifted into the image, then the extent cut at the far border."""
    x, y, w, h = box
    x, y = min(max(x, 0), SIZE[0]), min(max(y, 0), SIZE[1])
    return x, y, min(max(w, 0), SIZE[0] - x), min(max(h, 0), SIZE[1] - y)


def slow_iou(one, two):
    ax, ay, aw, ah = slow_limit(one)
    bx, by, bw, bh = slow_limit(two)
    shared = max(0, min(ax + aw, bx + bw) - max(ax, bx)) * max(0, min(ay + ah, by + bh) - max(ay, by))
    union = aw * ah + bw * bh - shared
    return shared / union if union else 0.0


@pytest.fixture
def world(tmp_path):
    """Five sequences of three classes with covered and absent frames, boxes over the border, and tracks for them."""
    rng = np.random.default_rng(7)
    root, tracks, data = tmp_path / "set", tmp_path / "tracks" / "someone" / "toy-val", {}
    for number, (length, kind) in enumerate(((9, "dog"), (30, "dog"), (14, "cat"), (2, "cat"), (21, "bird"))):
        truth = np.column_stack([rng.uniform(-15, 60, (length, 2)), rng.uniform(8, 50, (length, 2))])
        cover = rng.integers(0, 9, length)
        cover[:2] = 5
        truth[cover == 0] = -1
        guess = (truth + rng.normal(0, 6, (length, 4))).round(3)
        guess[0] = truth[0]
        name = f"seq{number}"
        bare_sequence(root, name, truth.round(4), cover=cover, kind=kind)
        statuses = ["init", *rng.choice(["ok", "held", "clipped"], length - 1)]
        seconds = rng.uniform(0.01, 0.5, length).round(8)
        write_track(tracks, name, guess, seconds, statuses)
        data[name] = (truth.round(4), guess, cover, seconds, statuses, kind)
    return root, tracks, data


def test_the_pooled_metric_equals_a_slow_implementation_of_its_description(world):
    root, tracks, data = world
    figures = scored(tracks, root, 100)
    pooled, speeds = [], []
    for name, (truth, guess, cover, seconds, _, _) in data.items():
        values = [slow_iou(g, t) for g, t, c in list(zip(guess, truth, cover, strict=True))[1:] if c > 0]
        row = figures["sequences"][name]
        assert row["frames"] == len(values)
        assert row["ao"] == pytest.approx(statistics.mean(values), abs=1e-12)
        assert row["overlap_sum"] == pytest.approx(sum(values), abs=1e-12)
        assert row["sr50"] == sum(v > 0.5 for v in values) / len(values)
        pooled += values
        speeds += [1 / s for s in seconds]
    assert figures["ao"] == pytest.approx(statistics.mean(pooled), abs=1e-12)
    assert figures["sr50"] == pytest.approx(sum(v > 0.5 for v in pooled) / len(pooled), abs=1e-12)
    assert figures["sr75"] == pytest.approx(sum(v > 0.75 for v in pooled) / len(pooled), abs=1e-12)
    assert figures["frames"] == len(pooled)
    assert figures["fps"] == pytest.approx(statistics.mean(speeds))
    expected = [sum(v > t for v in pooled) / len(pooled) for t in np.linspace(0, 1, 101)]
    assert figures["curve"] == pytest.approx(expected, abs=1e-12)
    assert figures["curve"][75] == figures["sr75"]


def test_means_over_sequences_and_classes_stand_under_their_own_names(world):
    root, tracks, data = world
    figures = scored(tracks, root, 100)
    ao = {name: row["ao"] for name, row in figures["sequences"].items()}
    assert figures["ao_sequence_mean"] == pytest.approx(statistics.mean(ao.values()))
    classes = {
        kind: statistics.mean(ao[name] for name in data if data[name][-1] == kind) for kind in ("bird", "cat", "dog")
    }
    assert {name: group["ao"] for name, group in figures["classes"].items()} == pytest.approx(classes)
    assert {name: group["sequences"] for name, group in figures["classes"].items()} == {"bird": 1, "cat": 2, "dog": 2}
    assert {name: group["ao_interval"] for name, group in figures["classes"].items() if name != "cat"} == {
        "bird": None, "dog": pytest.approx(sorted([ao["seq0"], ao["seq1"]]))  # a quarter of the draws takes one twice
    }  # fmt: skip
    assert figures["ao_class_mean"] == pytest.approx(statistics.mean(classes.values()))
    assert len({round(figures[key], 9) for key in ("ao", "ao_sequence_mean", "ao_class_mean")}) == 3


@pytest.mark.parametrize(
    ("seconds", "fps", "fps_run"),
    [
        ({"a": [1, 0.1, 0.1, 0.1]}, 7.75, 4 / 1.3),
        ({"a": [3, 0.5, 0.25], "b": [1, 0.25, 0]}, (1 / 3 + 2 + 4 + 1 + 4) / 5, 5 / 5),  # 0: it was not tracked
        ({"a": [0, 0, 0]}, None, None),
    ],
)
def test_speed_is_that_of_the_got10k_toolkit_with_first_frames(tmp_path, seconds, fps, fps_run):
    """The toolkit's `_evaluate`: the mean of 1 / times over all times above 0 of all sequences."""
    for name, times in seconds.items():
        truth = [[0, 0, 10, 10]] * len(times)
        bare_sequence(tmp_path / "set", name, truth)
        write_track(tmp_path / "t" / "s", name, truth, times)
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 100)
    assert figures["fps"] == pytest.approx(fps)
    assert figures["fps_run"] == pytest.approx(fps_run)


def test_statuses_are_summed_without_the_first_frames(world):
    root, tracks, data = world
    figures = scored(tracks, root, 100)
    every = [status for *_, statuses, _ in data.values() for status in statuses[1:]]
    assert figures["status"] == {status: every.count(status) for status in set(every)}


def test_thresholds_are_strict(tmp_path):
    truth = [[0, 0, 10, 10]] * 4
    bare_sequence(tmp_path / "set", "a", truth)
    write_track(tmp_path / "t" / "a-set", "a", [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 7.5], [0, 0, 10, 10]])
    figures = scored(tmp_path / "t" / "a-set", tmp_path / "set", 100)
    assert figures["sr50"] == pytest.approx(2 / 3)
    assert figures["sr75"] == pytest.approx(1 / 3)
    assert figures["curve"][100] == 0
    assert figures["ao"] == pytest.approx(0.75)


def test_official_limiting_shifts_where_cropping_would_cut_and_leaves_its_input_alone():
    boxes = np.array([[-10.0, 20, 50, 30], [90, 70, 50, 30], [10, 10, -4, 5]])
    before = boxes.copy()
    assert score.limit(boxes, SIZE).tolist() == [[0, 20, 50, 30], [90, 70, 10, 10], [10, 10, 0, 5]]
    assert (boxes == before).all()


def test_frames_of_unknown_visibility_count(tmp_path):
    bare_sequence(tmp_path / "set", "a", [[0, 0, 10, 10]] * 4, cover=[0, 0, 0, 0])
    write_track(tmp_path / "t" / "s", "a", [[0, 0, 10, 10]] * 4)
    assert scored(tmp_path / "t" / "s", tmp_path / "set", 100)["frames"] == 3


def test_the_interval_holds_the_ao_and_one_sequence_has_none(world):
    root, tracks, _ = world
    figures = scored(tracks, root, 2000)
    low, high = figures["ao_interval"]
    assert low < figures["ao"] < high
    (root / "list.txt").write_text("seq0\n")
    alone = score.score(tracks, root, 2000)
    assert 0 < alone.ao < 1
    assert alone.ao_interval is alone.classes["dog"].ao_interval is None
    assert score.paired_difference(alone, alone, 2000) == (0, None, None)


@pytest.mark.parametrize("block", [1, 7, 50, 10**6])
def test_draws_in_blocks_are_those_of_all_at_once(monkeypatch, block):
    monkeypatch.setattr(score, "BLOCK", block)
    columns = np.random.default_rng(1).random((2, 7))
    picks = np.random.default_rng(score.SEED).integers(0, 7, (40, 7))
    assert (score._resampled(columns, 40) == columns[:, picks].sum(2)).all()


def test_the_memory_of_a_bootstrap_does_not_grow_with_sequences_times_draws():
    """All at once, picks and picked values alone have 2 x 8 x 4000 x 2000 bytes = 128 MB."""
    sequences, draws = 4000, 2000
    columns = np.random.default_rng(1).random((2, sequences))
    tracemalloc.start()
    try:
        score._resampled(columns, draws)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 8 * score.BLOCK + 8 * 2 * (sequences + draws) + 10**6


def test_a_model_differs_from_itself_by_nothing_and_from_a_worse_one_by_their_aos(world, tmp_path):
    root, tracks, data = world
    worse = tmp_path / "tracks" / "worse" / "toy-val"
    for name, (truth, *_) in data.items():
        write_track(worse, name, np.tile(truth[0], (len(truth), 1)))
    a, b = score.score(tracks, root, 100), score.score(worse, root, 100)
    assert score.paired_difference(a, a, 500, 0) == (0, 0, 0)
    gain = score.paired_difference(a, b, 2000, 0)
    assert gain.value == a.ao - b.ao
    assert 0 < gain.low < gain.value < gain.high
    loss = score.paired_difference(b, a, 2000, 0)
    assert loss == pytest.approx((-gain.value, -gain.high, -gain.low))


def test_pairing_keeps_what_all_sequences_share(world):
    """A constant gain has an interval of no width, however much the sequences differ among themselves."""
    root, tracks, _ = world
    a = score.score(tracks, root, 100)
    worse = a.as_json()
    for row in worse["sequences"].values():
        row["overlap_sum"] -= 0.125 * row["frames"]
    worse["ao"] -= 0.125
    assert score.paired_difference(a, score.Scores.model_validate(worse), 500, 0) == pytest.approx(
        (0.125, 0.125, 0.125)
    )


def test_scores_of_different_sequences_cannot_be_paired(world):
    root, tracks, _ = world
    a = score.score(tracks, root, 100)
    (root / "list.txt").write_text("seq0\nseq1\n")
    with pytest.raises(ValueError, match=r"differ in the sequence 'seq2'.*score both on the same split"):
        score.paired_difference(a, score.score(tracks, root, 100), 500, 0)


def test_the_file_is_named_after_model_and_set_and_has_provenance_beside_it(world, tmp_path):
    root, tracks, _ = world
    out = tmp_path / "scores" / "someone" / "toy-val.json"
    score.run(tracks, root, out, 100)
    figures = json.loads(out.read_text())
    assert figures == scored(tracks, root, 100)
    assert score.Scores.model_validate(figures) == score.score(tracks, root, 100)
    assert (figures["model"], figures["set"], figures["metric"]) == ("someone", "toy-val", "got10k-pooled")
    assert (figures["sequences_count"], len(figures["curve"])) == (5, 101)
    assert json.loads((out.parent / "toy-val.json.provenance.json").read_text())["stage"] == "score"


def test_several_runs_are_named_and_the_first_is_scored(world, tmp_path, caplog):
    root, tracks, _ = world
    before = score.score(tracks, root, 100)
    (tracks / "seq1" / "seq1_002.txt").write_text("0,0,1,1\n" * 30)
    score.run(tracks, root, tmp_path / "scores.json", 100)
    assert "holds several runs of the tracker; the first of each sequence is scored" in caplog.text
    assert json.loads((tmp_path / "scores.json").read_text())["ao"] == before.ao


def test_a_sequence_without_scored_frames_has_null_scores_and_enters_no_mean(tmp_path):
    truth = [[0, 0, 10, 10]] * 3
    bare_sequence(tmp_path / "set", "a", truth)
    bare_sequence(tmp_path / "set", "b", truth, cover=[8, 0, 0], kind="cat")
    for name in "ab":
        write_track(tmp_path / "t" / "s", name, truth)
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 100)
    assert figures["sequences"]["b"]["ao"] is None
    assert figures["ao"] == figures["ao_sequence_mean"] == figures["ao_class_mean"] == 1
    assert figures["classes"] == {"dog": {"ao": 1, "ao_interval": None, "sequences": 1}}


FAULTS = {
    "missing track": ("seq1_001.txt", None, r"seq1_001\.txt: no such file; run `r1track track` again"),
    "short track": ("seq1_001.txt", "1,2,3,4\n" * 29, r"seq1_001\.txt: 29 rows for 30 frames; run"),
    "infinite box": ("seq1_001.txt", "1,2,3,4\n1,2,inf,4\n", r"seq1_001\.txt, line 2: .*finite.*'1,2,inf,4'; run"),
    "semicolons": ("seq1_001.txt", "1;2;3;4\n", r"seq1_001\.txt, line 1: expected 4 finite numbers"),
    "short times": ("seq1_time.txt", "0.1\n" * 5, r"seq1_time\.txt: 5 rows for 30 frames; run"),
    "short status": (
        "seq1_status.csv",
        "frame,status,answer\n1,init,\n",
        r"seq1_status\.csv: 1 rows for 30 frames; run",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_tracks_are_refused_with_file_and_remedy(world, fault):
    root, tracks, _ = world
    name, text, message = FAULTS[fault]
    path = tracks / "seq1" / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        score.score(tracks, root, 100)


def test_a_set_whose_truth_is_withheld_cannot_be_scored(world):
    root, tracks, _ = world
    (root / "seq2" / "groundtruth.txt").write_text("1,2,3,4\n")
    with pytest.raises(ValueError, match=r"seq2.groundtruth\.txt: holds the first box only .*score a val split"):
        score.score(tracks, root, 100)


def test_a_set_where_nothing_is_visible_cannot_be_scored(tmp_path):
    bare_sequence(tmp_path / "set", "a", [[0, 0, 10, 10]] * 3, cover=[8, 0, 0])
    write_track(tmp_path / "t" / "s", "a", [[0, 0, 10, 10]] * 3)
    with pytest.raises(ValueError, match=r"nothing to score; check cover\.label"):
        score.score(tmp_path / "t" / "s", tmp_path / "set", 100)


def test_a_set_in_got10ks_layout_has_no_figures_of_one_pass_evaluation(world):
    root, tracks, _ = world
    figures = scored(tracks, root, 100)
    assert figures["metric"] == "got10k-pooled"
    assert not set(score.FIGURES) & set(figures)
