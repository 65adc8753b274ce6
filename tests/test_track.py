"""Claims about the tracker: the rules of motion, the batches, the peers and what a failure leaves behind."""

import csv
import json

import numpy as np
import pytest
from toys import REAL, bare_sequence, needs_real, toy_split

from r1track import config, models, peers, prompts, schema, score, track
from r1track.boxes import clip, xywh_to_xyxy
from r1track.crops import Crop
from r1track.sequences import read_split

SIZE = 84


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_split(tmp_path_factory.mktemp("toy") / "val")


@pytest.fixture(scope="module")
def long_toy(tmp_path_factory):
    return toy_split(tmp_path_factory.mktemp("toy") / "long", sequences=6, length=24)


@pytest.fixture
def answer_with(monkeypatch):
    """Let a function of (question, images) stand in for the model."""

    def install(function):
        def answer(loaded, questions, images, *, max_tokens, batch):
            assert loaded == "loaded"
            assert len(questions) == len(images) <= batch
            return [function(q, i) for q, i in zip(questions, images, strict=True)]

        monkeypatch.setattr(models, "load", lambda base, settings: "loaded")
        monkeypatch.setattr(models, "answer", answer)

    return install


def settings(batch=3, size=SIZE, think=False):
    return config.Settings(task=schema.Task(size=size, think=think), track=schema.Track(batch=batch))


def rows(out, name):
    with (out / name / f"{name}_status.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def boxes(out, name):
    return np.loadtxt(out / name / f"{name}_001.txt", delimiter=",")


def wander(question, images):
    """An answer that depends on nothing but the search image: its brightest quarter."""
    gray = np.asarray(images[1].convert("L"), dtype=float)
    quarters = [gray[y : y + 42, x : x + 42].mean() for y in (0, 42) for x in (0, 42)]
    y, x = divmod(int(np.argmax(quarters)), 2)
    return prompts.numbers([14 + 12 * x, 14 + 12 * y, 56 + 12 * x, 56 + 12 * y])


CROP = Crop(-50, -10, 200, 100)  # two image pixels per crop pixel


def moved(answer, min_side=4.0):
    return track.move([5, 5, 20, 20], answer, CROP, (100, 80), min_side)


def test_an_answer_is_mapped_from_the_crop_to_the_image():
    box, status = moved([30, 20, 40, 30])
    assert box.tolist() == [10, 30, 20, 20]
    assert status == "ok"


def test_an_unreadable_answer_holds_the_last_image_box():
    box, status = moved(None)
    assert box.tolist() == [5, 5, 20, 20]
    assert status == "held"


def test_a_box_over_the_border_is_cropped_and_not_shifted():
    box, status = moved([10, 30, 50, 40])  # x from -30 to 50, y from 50 to 70
    assert box.tolist() == [0, 50, 50, 20]
    assert status == "clipped"


def test_a_box_over_the_border_by_less_than_a_pixel_is_not_called_clipped():
    box, status = moved([24.75, 30, 50, 40])
    assert box.tolist() == [0, 50, 50, 20]
    assert status == "ok"


def test_a_small_side_is_widened_around_its_centre_and_the_other_is_left_alone():
    box, _ = moved([50, 20, 51, 30])
    assert box.tolist() == [49, 30, 4, 20]


def test_a_box_wholly_outside_becomes_a_smallest_box_at_the_border():
    box, status = moved([0, 0, 10, 3])
    assert box.tolist() == [0, 0, 4, 4]
    assert status == "clipped"


def test_whatever_is_answered_the_box_is_inside_the_image_and_not_too_small():
    rng = np.random.default_rng(0)
    for _ in range(5000):
        answer = prompts.parse_box(json.dumps(rng.uniform(-8, 108, 4).round(1).tolist()), size=100)
        if answer is not None:
            crop = Crop(*rng.uniform(-150, 100, 2), rng.uniform(8, 300), 100)
            box, _ = track.move([5, 5, 20, 20], answer, crop, (100, 80), 4.0)
            corners = xywh_to_xyxy(box)
            np.testing.assert_allclose(clip(corners, 100, 80), corners, atol=1e-9)
            assert (box[2:] >= 4 - 1e-9).all()


def test_the_oracle_has_an_ao_above_nine_tenths(toy, tmp_path):
    track.run(settings(), "peer:oracle", toy, tmp_path / "out")
    scores = score.score(tmp_path / "out", toy, 100)
    assert scores["ao"] > 0.9
    assert scores["status"].get("held", 0) == 0


def test_the_oracle_holds_the_box_where_the_target_is_absent_and_nowhere_else(long_toy, tmp_path):
    track.run(settings(), "peer:oracle", long_toy, tmp_path / "out")
    absent = 0
    for sequence in read_split(long_toy):
        held = np.array([row["status"] == "held" for row in rows(tmp_path / "out", sequence.name)])
        found = boxes(tmp_path / "out", sequence.name)
        for t in np.flatnonzero(sequence.absent):
            assert held[t]
            assert (found[t] == found[t - 1]).all()
        absent += sequence.absent.sum()
    assert absent > 0


def test_the_static_peer_equals_the_first_box_on_every_frame(toy, tmp_path):
    track.run(settings(), "peer:static", toy, tmp_path / "out")
    for sequence in read_split(toy):
        np.testing.assert_allclose(
            boxes(tmp_path / "out", sequence.name), np.tile(sequence.boxes[0], (12, 1)), atol=0.00051
        )  # fmt: skip


def test_the_template_matcher_follows_its_target_and_keeps_its_size(toy, tmp_path):
    track.run(settings(), "peer:template", toy, tmp_path / "out")
    track.run(settings(), "peer:static", toy, tmp_path / "static")
    assert score.score(tmp_path / "out", toy, 100)["ao"] > score.score(tmp_path / "static", toy, 100)["ao"] + 0.1
    for sequence in read_split(toy):
        status = [row["status"] for row in rows(tmp_path / "out", sequence.name)]
        unclipped = boxes(tmp_path / "out", sequence.name)[np.array(status) == "ok"]
        np.testing.assert_allclose(unclipped[:, 2:], np.tile(sequence.boxes[0, 2:], (len(unclipped), 1)), atol=1.01)


def test_garbage_holds_the_box_and_is_counted_and_kept(toy, tmp_path, answer_with):
    garbage = 'I see "nothing",\nsorry'
    answer_with(lambda question, images: garbage)
    track.run(settings(), "some/model", toy, tmp_path / "out")
    scores = score.score(tmp_path / "out", toy, 100)
    assert scores["status"] == {"held": 4 * 11}
    for sequence in read_split(toy):
        found = rows(tmp_path / "out", sequence.name)
        assert [row["frame"] for row in found] == [str(t) for t in range(1, 13)]
        assert (found[0]["status"], found[0]["answer"]) == ("init", "")
        assert all((row["status"], row["answer"]) == ("held", garbage) for row in found[1:])


def test_the_model_is_asked_with_template_and_search_crop_and_the_templates_box(toy, tmp_path, answer_with):
    asked = []
    answer_with(lambda question, images: asked.append((question, images)) or "[32, 32, 52, 52]")
    track.run(settings(batch=1), "some/model", toy, tmp_path / "out")
    crop = Crop.around(read_split(toy)[-1].boxes[0], 4, SIZE)
    expected = prompts.build(crop.to_crop(xywh_to_xyxy(read_split(toy)[-1].boxes[0])))
    assert all(len(images) == 2 and {image.size for image in images} == {(SIZE, SIZE)} for _, images in asked)
    assert expected in [question for question, _ in asked]
    assert len(asked) == 4 * 11


def test_many_at_once_give_the_boxes_of_one_at_a_time(toy, tmp_path, answer_with):
    answer_with(wander)
    for batch in (1, 3, 8):
        track.run(settings(batch=batch), "some/model", toy, tmp_path / str(batch))
    names = [sequence.name for sequence in read_split(toy)]
    alone = [(tmp_path / "1" / name / f"{name}_001.txt").read_bytes() for name in names]
    assert len(set(alone)) == len(alone)
    for batch in ("3", "8"):
        assert [(tmp_path / batch / name / f"{name}_001.txt").read_bytes() for name in names] == alone


def test_sequences_of_unequal_length_are_replaced_as_they_end(toy, long_toy, tmp_path):
    root = tmp_path / "mixed"
    root.mkdir()
    short = [f"../short/{s.name}" for s in read_split(toy)]
    (tmp_path / "short").symlink_to(toy)
    (root / "list.txt").write_text("\n".join([*short, str(long_toy / "Toy_Val_000005")]) + "\n")
    sizes = []
    oracle = peers.find("oracle")

    def ask(views):
        sizes.append(len(views))
        return oracle(views)

    task = settings().task
    done = list(track.follow(read_split(root), ask, task, batch=2, min_side=4.0, reveal=True))
    assert sorted(len(t.boxes) for t in done) == [12, 12, 12, 12, 24]
    assert sizes == [2] * 33 + [1]  # the long one beside two short ones, then the others side by side


def test_the_search_region_lies_around_the_last_box_and_the_template_stays_the_first(toy):
    seen = []

    def ask(views):
        seen.extend(views)
        return ["[40, 36, 60, 56]"] * len(views)

    (done,) = track.follow(read_split(toy)[:1], ask, settings().task, batch=1, min_side=4.0)
    assert [view.crop for view in seen] == [Crop.around(box, 4, SIZE) for box in done.boxes[:-1]]
    assert len({view.crop for view in seen}) == 11
    assert all(view.template is seen[0].template for view in seen)


def test_every_frame_has_a_time_and_the_first_is_the_initialisation(toy, tmp_path):
    track.run(settings(), "peer:static", toy, tmp_path / "out")
    for sequence in read_split(toy):
        seconds = np.loadtxt(tmp_path / "out" / sequence.name / f"{sequence.name}_time.txt")
        assert seconds.shape == (12,)
        assert (seconds > 0).all()


def test_thinking_answers_are_read_inside_their_tags_only(toy, tmp_path, answer_with):
    answer_with(lambda question, images: "<think>there</think><answer>[32, 32, 52, 52]</answer>")
    track.run(settings(think=True), "some/model", toy, tmp_path / "with")
    assert "held" not in score.score(tmp_path / "with", toy, 100)["status"]
    answer_with(lambda question, images: "[32, 32, 52, 52]")
    track.run(settings(think=True), "some/model", toy, tmp_path / "without")
    assert set(score.score(tmp_path / "without", toy, 100)["status"]) == {"held"}


def test_peers_answer_without_thinking_whatever_the_model_does(toy, tmp_path):
    track.run(settings(think=True), "peer:oracle", toy, tmp_path / "out")
    assert score.score(tmp_path / "out", toy, 100)["ao"] > 0.9


def test_a_failed_run_leaves_nothing_at_the_final_name_and_no_remains(toy, tmp_path, answer_with):
    left = iter(range(20))

    def fail_late(question, images):
        if next(left) == 19:
            raise RuntimeError("out of memory")
        return "[32, 32, 52, 52]"

    answer_with(fail_late)
    with pytest.raises(RuntimeError, match="out of memory"):
        track.run(settings(batch=1), "some/model", toy, tmp_path / "base" / "set")
    assert list((tmp_path / "base").iterdir()) == []


def test_provenance_stands_beside_the_tracks(toy, tmp_path):
    track.run(settings(), "peer:static", toy, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (record["stage"], record["base"], record["frames"]) == ("track", "peer:static", 44)


def test_a_frame_that_cannot_be_decoded_is_named(tmp_path):
    bare_sequence(tmp_path / "set", "clip", [[10, 10, 20, 20]] * 3)
    with pytest.raises(ValueError, match=r"00000001\.jpg: cannot be decoded .*; restore it"):
        track.run(settings(), "peer:static", tmp_path / "set", tmp_path / "out")


def test_a_first_box_without_extent_is_refused_before_the_work(tmp_path):
    bare_sequence(tmp_path / "set", "clip", [[-1, -1, -1, -1], [10, 10, 20, 20]])
    with pytest.raises(ValueError, match=r"clip/groundtruth\.txt, line 1: .*no extent.*take the sequence out"):
        track.run(settings(), "peer:static", tmp_path / "set", tmp_path / "out")


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
        assert all(view.truth is None for view in views)
        return [""] * len(views)

    assert len(list(track.follow(read_split(toy), ask, settings().task, batch=4, min_side=4.0))) == 4


@needs_real
def test_on_real_clips_the_peers_score_what_is_known_of_them(tmp_path):
    with (REAL / "baselines.csv").open() as stream:
        known = [(r["tracker"], r["sequence"], float(r["AO"])) for r in csv.DictReader(stream)]
    scores = {}
    for name in ("static", "template", "oracle"):
        track.run(settings(size=336, batch=6), f"peer:{name}", REAL, tmp_path / name)
        scores[name] = score.score(tmp_path / name, REAL, 1000)
    static = {sequence: ao for tracker, sequence, ao in known if tracker == "static_first_box"}
    assert {n: s["ao"] for n, s in scores["static"]["sequences"].items()} == pytest.approx(static, abs=1e-3)
    assert scores["oracle"]["ao"] >= 0.97
    # The known matcher differs in details that are not recorded, and one lost target decides a clip: pooled, roughly.
    frames = {n: s["frames"] for n, s in scores["template"]["sequences"].items()}
    ncc = sum(ao * frames[sequence] for tracker, sequence, ao in known if tracker == "ncc_crop4x336")
    assert scores["template"]["ao"] == pytest.approx(ncc / sum(frames.values()), abs=0.06)
    assert scores["template"]["ao"] > scores["static"]["ao"]
