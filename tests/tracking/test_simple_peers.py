"""Claims about the oracle, the first box and the template matcher among the peers."""

import csv
import itertools

import numpy as np
import pytest
from small_tracking import boxes, settings
from toys import REAL, bare_sequence, needs_real, toy_split

from r1track.core.sequences import read_split
from r1track.tracking import peers, score, track
from r1track.tracking.track_files import read_track


def test_an_oracle_that_fails_in_bursts_keeps_its_target(tmp_path):
    """One answer in ten is nonsense, in bursts of five; holding the box in the image was measured to keep AO at .93."""
    root = toy_split(tmp_path / "val", sequences=16, length=60, seed=3)
    rng, oracle, left = np.random.default_rng(0), peers.find("oracle"), {}
    nonsense = itertools.cycle(["", "[1, 2]", "the box", "[9, 9, 1, 1]", "[1e999, 0, 1, 1]", "[100, 120, 80, 2, 5]"])
    answered = failed = 0

    def ask(views):
        nonlocal answered, failed
        answers = oracle(views)
        for k, view in enumerate(views):
            answered += 1
            if not left.get(view.template) and rng.random() < 1 / 45:
                left[view.template] = 5
            if left.get(view.template):
                failed, answers[k] = failed + 1, next(nonsense)
                left[view.template] -= 1
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "find", lambda name: ask)
        track.run(settings(batch=16, size=336), "peer:oracle", root, tmp_path / "out")
    assert 0.08 < failed / answered < 0.12
    scores = score.score(tmp_path / "out", root, 100)
    assert len(scores.sequences) == 16
    assert scores.ao >= 0.92


def test_the_oracle_has_an_ao_above_nine_tenths(toy, tmp_path):
    track.run(settings(), "peer:oracle", toy, tmp_path / "out")
    scores = score.score(tmp_path / "out", toy, 100)
    assert scores.ao > 0.9
    assert scores.status.get("held", 0) == 0


def test_the_static_peer_equals_the_first_box_on_every_frame(toy, tmp_path):
    track.run(settings(), "peer:static", toy, tmp_path / "out")
    for sequence in read_split(toy):
        np.testing.assert_allclose(
            boxes(tmp_path / "out", sequence.name), np.tile(sequence.boxes[0], (12, 1)), atol=0.00051
        )  # fmt: skip


def test_the_template_matcher_follows_its_target_and_keeps_its_size(toy, tmp_path):
    track.run(settings(), "peer:template", toy, tmp_path / "out")
    track.run(settings(), "peer:static", toy, tmp_path / "static")
    assert score.score(tmp_path / "out", toy, 100).ao > score.score(tmp_path / "static", toy, 100).ao + 0.1
    for sequence in read_split(toy):
        is_ok = np.array(read_track(tmp_path / "out", sequence.name).statuses) == "ok"
        unclipped = boxes(tmp_path / "out", sequence.name)[is_ok]
        np.testing.assert_allclose(unclipped[:, 2:], np.tile(sequence.boxes[0, 2:], (len(unclipped), 1)), atol=1.01)


def test_peers_answer_without_thinking_whatever_the_model_does(toy, tmp_path):
    track.run(settings(think=True), "peer:oracle", toy, tmp_path / "out")
    assert score.score(tmp_path / "out", toy, 100).ao > 0.9


def test_the_oracle_is_refused_where_the_truth_is_withheld(tmp_path):
    folder = bare_sequence(tmp_path / "set", "clip", [[10, 10, 20, 20]] * 3)
    (folder / "groundtruth.txt").write_text("10,10,20,20\n")
    with pytest.raises(ValueError, match="first box only; the oracle needs all"):
        track.run(settings(), "peer:oracle", tmp_path / "set", tmp_path / "out")


def test_an_unknown_peer_is_refused_with_those_that_are_known(toy, tmp_path):
    with pytest.raises(ValueError, match=r"peer:kalman: no such peer; take one of peer:static, peer:template"):
        track.run(settings(), "peer:kalman", toy, tmp_path / "out")


def test_only_the_oracle_is_shown_the_truth(toy):
    def ask(views):
        assert all(view.true_box is None for view in views)
        return [""] * len(views)

    assert len(list(track.follow(read_split(toy), ask, settings(batch=4)))) == 4


@needs_real
def test_on_real_clips_the_peers_score_what_is_known_of_them(tmp_path):
    with (REAL / "baselines.csv").open() as stream:
        known = [(r["tracker"], r["sequence"], float(r["AO"])) for r in csv.DictReader(stream)]
    scores = {}
    for name in ("static", "template", "oracle"):
        track.run(settings(size=336, batch=6), f"peer:{name}", REAL, tmp_path / name)
        scores[name] = score.score(tmp_path / name, REAL, 1000)
    static = {sequence: ao for tracker, sequence, ao in known if tracker == "static_first_box"}
    assert {name: row.ao for name, row in scores["static"].sequences.items()} == pytest.approx(static, abs=1e-3)
    assert scores["oracle"].ao >= 0.97
    # The known matcher differs in details that are not recorded, and one lost target decides a clip: pooled, roughly.
    frames = {name: row.frames for name, row in scores["template"].sequences.items()}
    ncc = sum(ao * frames[sequence] for tracker, sequence, ao in known if tracker == "ncc_crop4x336")
    assert scores["template"].ao == pytest.approx(ncc / sum(frames.values()), abs=0.06)
    assert scores["template"].ao > scores["static"].ao
