"""Claims about the score: the official metric, against a slow implementation from its description."""

import json
import math
import statistics
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from toys import bare_sequence

from r1track.core.sequences import read_split
from r1track.tracking import score

SIZE = (100, 80)


def scored(tracks, root, draws):
    """The figures of a score file."""
    return score.score(tracks, root, draws).as_json()


def write_track(tracks, name, boxes, seconds=None, status=None):
    folder = tracks / name
    folder.mkdir(parents=True)
    np.savetxt(folder / f"{name}_001.txt", boxes, fmt="%.3f", delimiter=",")
    if seconds is not None:
        np.savetxt(folder / f"{name}_time.txt", seconds, fmt="%.8f")
    if status is not None:
        lines = [f"{t},{s},\n" for t, s in enumerate(status, 1)]
        (folder / f"{name}_status.csv").write_text("frame,status,answer\n" + "".join(lines))


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


def test_presence_is_precision_and_recall_of_the_status_absent_against_the_labels(tmp_path):
    """Two sequences: of 5 absent frames 2 are called so, and of 3 frames that are called so 2 are absent."""
    box, statuses = [10, 10, 20, 20], {"a": "init ok absent absent held ok", "b": "init ok held absent failed ok"}
    for name, cover in {"a": [8, 8, 0, 0, 0, 8], "b": [8, 8, 0, 8, 0, 8]}.items():
        truth = [box if eighths else [-1] * 4 for eighths in cover]
        folder = bare_sequence(tmp_path / "set", name, truth, cover=cover)
        (folder / "absence.label").write_text("".join(f"{int(eighths == 0)}\n" for eighths in cover))
        write_track(tmp_path / "t" / "s", name, [box] * 6, status=statuses[name].split())
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 100)
    assert figures["presence"] == {"precision": pytest.approx(2 / 3), "recall": pytest.approx(2 / 5), "frames": 5}
    counts = {name: (row["absent"], row["absent_found"]) for name, row in figures["sequences"].items()}
    assert counts == {"a": (3, 2), "b": (2, 0)}
    for name in statuses:
        status = tmp_path / "t" / "s" / name / f"{name}_status.csv"
        status.write_text(status.read_text().replace("absent", "held"))
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 100)
    assert figures["presence"] == {"precision": None, "recall": 0.0, "frames": 5}


@pytest.mark.parametrize("reason", ["full_occlusion", "out_of_view"])
def test_lasots_two_labels_count_as_absent(reason, tmp_path):
    folder = tmp_path / "set" / "cat" / "cat-1"
    (folder / "img").mkdir(parents=True)
    for t in range(1, 5):
        Image.new("RGB", SIZE).save(folder / "img" / f"{t:08d}.jpg")
    (folder / "groundtruth.txt").write_text("10,10,20,20\n" * 4)
    (folder / f"{reason}.txt").write_text("0,0,1,1")
    (tmp_path / "set" / "list.txt").write_text("cat/cat-1\n")
    write_track(tmp_path / "t" / "s", "cat-1", [[10, 10, 20, 20]] * 4, status=["init", "absent", "absent", "ok"])
    assert scored(tmp_path / "t" / "s", tmp_path / "set", 100)["presence"] == {
        "precision": 0.5, "recall": 0.5, "frames": 2,
    }  # fmt: skip


def test_presence_is_null_where_no_frame_is_absent_or_a_track_has_no_statuses(tmp_path):
    box = [10, 10, 20, 20]
    bare_sequence(tmp_path / "all", "a", [box] * 3)
    write_track(tmp_path / "t" / "all", "a", [box] * 3, status=["init", "ok", "absent"])
    assert scored(tmp_path / "t" / "all", tmp_path / "all", 100)["presence"] is None
    bare_sequence(tmp_path / "some", "a", [box, [-1] * 4, box], cover=[8, 0, 8])
    write_track(tmp_path / "t" / "some", "a", [box] * 3)
    assert scored(tmp_path / "t" / "some", tmp_path / "some", 100)["presence"] is None


def test_sequences_are_grouped_by_their_length(tmp_path):
    for name, length in (("a", 100), ("b", 101), ("c", 301)):
        truth = [[0, 0, 10, 10]] * length
        bare_sequence(tmp_path / "set", name, truth)
        write_track(tmp_path / "t" / "s", name, [[0, 0, 10, {"a": 10, "b": 5, "c": 2}[name]]] * length)
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 100)["lengths"]
    assert {name: group["ao"] for name, group in figures.items()} == pytest.approx(
        {"to 100 frames": 1, "101 to 300": 0.5, "301 to 1000": 0.2}
    )


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


STILL = [[20.0, 20, 20, 20]] * 5
HARD = {
    "nothing": ([*STILL[:3], [39, 20, 20, 20], [39, 20, 20, 20]], {}, []),  # by 19 pixels, below its size of 20
    "fast": ([*STILL[:3], [32, 37, 20, 20], [32, 37, 20, 20]], {}, ["fast motion"]),  # by 20.8
    "fast by its own size": ([[20, 20, 40, 10], [20, 20, 40, 10], [20, 41, 40, 10]], {}, ["fast motion"]),
    "twice": ([*STILL, [20, 20, 20, 40]], {}, []),  # twice the area and half the aspect are the limits themselves
    "larger": ([*STILL, [20, 20, 29, 29]], {}, ["scale change"]),
    "smaller": ([*STILL, [20, 20, 14, 14]], {}, ["scale change"]),
    "wider": ([*STILL, [20, 20, 29, 14]], {}, ["aspect change"]),
    "taller": ([*STILL, [20, 20, 14, 29]], {}, ["aspect change"]),
    "hidden": (STILL, {"cover": [8, 8, 7, 8, 8]}, ["occlusion"]),
    "seen": (STILL, {"cover": [8] * 5}, []),
    "cut": (STILL, {"cut_by_image": [0, 0, 0, 1, 0]}, ["out of view"]),
    "gone and far away": ([*STILL[:2], [-1, -1, -1, -1], [80, 60, 20, 20]], {"absence": [0, 0, 1, 0]}, ["out of view"]),
}


@pytest.mark.parametrize("name", HARD)
def test_attributes_are_found_from_the_annotation(tmp_path, name):
    truth, labels, expected = HARD[name]
    folder = bare_sequence(tmp_path / "set", "a", truth)
    for label, values in labels.items():
        (folder / f"{label}.label").write_text("".join(f"{value}\n" for value in values))
    (sequence,) = read_split(tmp_path / "set")
    assert score.attributes(sequence) == expected


def test_ao_by_attribute_is_the_mean_over_the_sequences_that_have_it(tmp_path):
    for name, height in {"fast": 10, "larger": 20, "hidden": 5, "cut": 20}.items():
        truth, labels, _ = HARD[name]
        truth = [*truth[:-1], [20, 20, 29, 29]] if name == "cut" else truth
        folder = bare_sequence(tmp_path / "set", name, truth)
        for label, values in labels.items():
            (folder / f"{label}.label").write_text("".join(f"{value}\n" for value in values))
        guess = np.array(truth, dtype=float)
        guess[1:, 3] *= height / 20
        write_track(tmp_path / "t" / "s", name, guess)
    figures = scored(tmp_path / "t" / "s", tmp_path / "set", 100)
    assert {name: (group["ao"], group["sequences"]) for name, group in figures["attributes"].items()} == {
        "fast motion": (pytest.approx(0.5), 1), "occlusion": (pytest.approx(0.25), 1),
        "out of view": (pytest.approx(1), 1), "scale change": (pytest.approx(1), 2),
    }  # fmt: skip
    assert figures["sequences"]["cut"]["attributes"] == ["scale change", "out of view"]


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


def test_a_set_in_got10ks_layout_has_no_figures_of_one_pass_evaluation(world):
    root, tracks, _ = world
    figures = scored(tracks, root, 100)
    assert figures["metric"] == "got10k-pooled"
    assert not set(score.FIGURES) & set(figures)
