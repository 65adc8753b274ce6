"""Claims about the tracker: batches, parts, what the model is asked and shown, and what a failure leaves behind."""

import csv
import json
from itertools import pairwise

import numpy as np
import pytest
from small_tracking import SIZE, boxes, settings
from toys import bare_sequence, brightest, toy_split

from r1track.core import config, files, prompts
from r1track.core.boxes import xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.errors import UserError
from r1track.core.sequences import read_split
from r1track.tracking import peers, score, track
from r1track.tracking.track_files import read_track


@pytest.fixture(scope="module")
def long_toy(tmp_path_factory):
    return toy_split(tmp_path_factory.mktemp("toy") / "long", sequences=6, length=24)


def test_the_region_widens_after_some_frames_without_an_answer_and_narrows_with_the_next(toy):
    answers = iter(["x", "[40, 36, 60, 56]", "x", "[]", "x", "x", "[40, 36, 60, 56]", "x", "x", "x", "x"])
    crops = []

    def ask(views):
        crops.append(views[0].crop)
        return [next(answers)]

    (done,) = track.follow(read_split(toy)[:1], ask, settings(batch=1, patience=3, widen=2.0))
    sides = [np.sqrt(box[2] * box[3]) for box in done.boxes[:-1]]
    factors = [round(crop.side / side) for crop, side in zip(crops, sides, strict=True)]
    assert factors == [4, 4, 4, 4, 4, 8, 8, 4, 4, 4, 8]
    expected = ["init", "held", "ok", "held", "absent", "held", "held", "ok", "held", "held", "held", "held"]
    assert done.statuses == expected


@pytest.mark.parametrize("templates", [1, 2])
def test_batches_and_prefixes_change_no_box_of_the_tiny_model(templates, long_toy, tmp_path):
    tracks = {}
    for batch, reuse in ((1, False), (1, True), (4, True), (8, True)):
        configured = config.resolve(
            {"task": {"templates": templates}, "track": {"batch": batch, "reuse": reuse, "refresh": 5}}
        )
        track.run(configured, "tiny", long_toy, tmp_path / f"{batch}{reuse}")
        tracks[batch, reuse] = {
            s.name: boxes(tmp_path / f"{batch}{reuse}", s.name).tolist() for s in read_split(long_toy)
        }
    assert all(track_boxes == tracks[1, False] for track_boxes in tracks.values())
    assert len({str(track_boxes) for track_boxes in tracks[1, False].values()}) == 6


def in_parts(folder, root, configured):
    """The folders in which a split is tracked in three parts by the tiny model."""
    places = [folder / str(part) for part in (1, 2, 3)]
    for part, place in enumerate(places, 1):
        track.run(configured, "tiny", root, place, part=part)
    return places


def test_parts_are_joined_to_the_bytes_of_a_whole(long_toy, tmp_path):
    configured = config.resolve({"track": {"batch": 4, "parts": 3}})
    track.run(configured, "tiny", long_toy, tmp_path / "whole")
    places = in_parts(tmp_path, long_toy, configured)
    assert [len([*place.glob("*/")]) for place in places] == [2, 2, 2]
    track.join(places, tmp_path / "joined")
    one, two = (files.hashes(tmp_path / name) for name in ("whole", "joined"))
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} <= {name for name in one if name.endswith("_time.txt")}
    whole, joined, *parts = (files.read_json(place / "provenance.json") for place in
                             (tmp_path / "whole", tmp_path / "joined", *places))  # fmt: skip
    same = ("stage", "settings", "inputs", "model", "start", "sequences", "frames")
    assert {key: joined[key] for key in same} == {key: whole[key] for key in same}
    assert joined["wall_seconds"] == pytest.approx(sum(part["wall_seconds"] for part in parts))
    assert joined["outputs"] == two
    with pytest.raises(UserError, match="its sequence is in another part, too; give each part once"):
        track.join([*places, places[0]], tmp_path / "again")


def test_parts_of_other_settings_are_not_joined_and_there_are_no_more_than_asked_for(toy, tmp_path):
    for name, side in (("one", 4.0), ("two", 5.0)):
        track.run(
            config.resolve({"track": {"parts": 2, "min_side": side}}), "peer:static", toy, tmp_path / name, part=1
        )
    with pytest.raises(UserError, match=r"two: its settings are not those of \S+one; track it again"):
        track.join([tmp_path / "one", tmp_path / "two"], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    with pytest.raises(UserError, match=r"--part 2: track\.parts = 1; take one from 1 to that"):
        track.run(config.resolve({}), "peer:static", toy, tmp_path / "three", part=2)


def test_the_later_template_is_cut_from_a_found_frame_now_and_then(toy):
    seen = []

    def ask(views):
        seen.extend(views)
        return ["[40, 36, 60, 56]" if len(seen) != 3 else "x"] * len(views)

    configured = settings(batch=1, refresh=2)
    configured = configured.model_copy(update={"task": configured.task.model_copy(update={"templates": 2})})
    (done,) = track.follow(read_split(toy)[:1], ask, configured)
    laters = [view.later for view in seen]
    assert laters[0] is seen[0].template
    changed = [a is not b for a, b in pairwise(laters)]
    assert changed == [t % 2 == 0 and done.statuses[t - 1] == "ok" for t in range(2, 12)]
    assert done.statuses[3] == "held"  # so that one turn was left out
    assert sum(changed) >= 3
    crop = Crop.around(done.boxes[1], 4.0, SIZE)
    assert laters[1].box == pytest.approx(crop.to_crop(xywh_to_xyxy(done.boxes[1])))


def test_the_oracle_holds_the_box_where_the_target_is_absent_and_nowhere_else(long_toy, tmp_path):
    track.run(settings(), "peer:oracle", long_toy, tmp_path / "out")
    absent = 0
    for sequence in read_split(long_toy):
        statuses, tracked = read_track(tmp_path / "out", sequence.name).statuses, boxes(tmp_path / "out", sequence.name)
        for t in np.flatnonzero(sequence.absent):
            assert statuses[t] == "held"
            assert (tracked[t] == tracked[t - 1]).all()
        absent += sequence.absent.sum()
    assert absent > 0


def test_garbage_holds_the_box_and_is_counted_and_kept(toy, tmp_path, answer_with):
    garbage = 'I see "nothing",\nsorry'
    answer_with(lambda text, images: garbage)
    track.run(settings(), "some/model", toy, tmp_path / "out")
    scores = score.score(tmp_path / "out", toy, 100)
    assert scores.status == {"held": 4 * 11}
    for sequence in read_split(toy):
        with (tmp_path / "out" / sequence.name / f"{sequence.name}_status.csv").open(newline="") as stream:
            lines = list(csv.DictReader(stream))
        assert [row["frame"] for row in lines] == [str(t) for t in range(1, 13)]
        assert (lines[0]["status"], lines[0]["answer"]) == ("init", "")
        assert all((row["status"], row["answer"]) == ("held", garbage) for row in lines[1:])


def test_the_model_is_asked_with_template_and_search_crop_and_the_templates_box(toy, tmp_path, answer_with):
    requests = answer_with(lambda text, images: "[32, 32, 52, 52]")
    track.run(settings(batch=1), "some/model", toy, tmp_path / "out")
    crop = Crop.around(read_split(toy)[-1].boxes[0], 4, SIZE)
    expected = prompts.build(crop.to_crop(xywh_to_xyxy(read_split(toy)[-1].boxes[0])))
    assert all(len(images) == 2 and {image.size for image in images} == {(SIZE, SIZE)} for _, _, images, *_ in requests)
    assert expected in [question for question, *_ in requests]
    assert len(requests) == 4 * 11


def test_many_at_once_give_the_boxes_of_one_at_a_time(toy, tmp_path, answer_with):
    answer_with(lambda text, images: brightest(images))
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
    short = [f"short/{s.name}" for s in read_split(toy)]
    (root / "short").symlink_to(toy)
    (root / "long").symlink_to(long_toy / "Toy_Val_000005")
    (root / "list.txt").write_text("\n".join([*short, "long"]) + "\n")
    sizes = []
    oracle = peers.find("oracle")

    def ask(views):
        sizes.append(len(views))
        return oracle(views)

    done = list(track.follow(read_split(root), ask, settings(batch=2), reveal=True))
    assert sorted(len(t.boxes) for t in done) == [12, 12, 12, 12, 24]
    assert sizes == [2] * 33 + [1]  # the long one beside two short ones, then the others side by side


def test_the_search_region_lies_around_the_last_box_and_the_template_stays_the_first(toy):
    seen = []

    def ask(views):
        seen.extend(views)
        return ["[40, 36, 60, 56]"] * len(views)

    (done,) = track.follow(read_split(toy)[:1], ask, settings(batch=1))
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
    answer_with(lambda text, images: "<think>there</think><answer>[32, 32, 52, 52]</answer>")
    track.run(settings(think=True), "some/model", toy, tmp_path / "with")
    assert "held" not in score.score(tmp_path / "with", toy, 100).status
    answer_with(lambda text, images: "[32, 32, 52, 52]")
    track.run(settings(think=True), "some/model", toy, tmp_path / "without")
    assert set(score.score(tmp_path / "without", toy, 100).status) == {"held"}


def test_a_stopped_run_leaves_nothing_at_the_final_name_and_goes_on_with_what_is_missing(toy, tmp_path, answer_with):
    questions_asked = []

    def fail_late(text, images):
        questions_asked.append(text)
        if len(questions_asked) == 30:  # in the third of four sequences of 12 frames
            raise RuntimeError("out of memory")
        return brightest(images)

    answer_with(fail_late)
    out = tmp_path / "base" / "set"
    with pytest.raises(RuntimeError, match="out of memory"):
        track.run(settings(batch=1), "some/model", toy, out)
    assert [path.name for path in out.parent.iterdir()] == [".set.partial"]
    track.run(settings(batch=1), "some/model", toy, out)
    assert len(questions_asked) == 30 + 2 * 11
    assert [path.name for path in out.parent.iterdir()] == ["set"]
    answer_with(lambda text, images: brightest(images))
    track.run(settings(batch=1), "some/model", toy, tmp_path / "whole")
    for sequence in read_split(toy):
        assert (boxes(out, sequence.name) == boxes(tmp_path / "whole", sequence.name)).all()


def test_what_was_done_with_other_settings_is_not_taken_up(toy, tmp_path, answer_with):
    def fail(text, images):
        raise RuntimeError("stopped")

    answer_with(fail)
    with pytest.raises(RuntimeError):
        track.run(settings(), "some/model", toy, tmp_path / "set")
    (tmp_path / ".set.partial" / "Toy_Val_000001").mkdir()
    answer_with(lambda text, images: brightest(images))
    track.run(settings(min_side=5.0), "some/model", toy, tmp_path / "set")
    assert len(boxes(tmp_path / "set", "Toy_Val_000001")) == 12


def test_provenance_stands_beside_the_tracks(toy, tmp_path):
    track.run(settings(), "peer:static", toy, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (record["stage"], record["model"], record["frames"]) == ("track", "peer:static", 44)


def test_a_frame_that_cannot_be_decoded_is_named(tmp_path):
    bare_sequence(tmp_path / "set", "clip", [[10, 10, 20, 20]] * 3)
    with pytest.raises(ValueError, match=r"00000001\.jpg: cannot be decoded .*; restore it"):
        track.run(settings(), "peer:static", tmp_path / "set", tmp_path / "out")


def test_a_first_box_without_extent_is_refused_before_the_work(tmp_path):
    bare_sequence(tmp_path / "set", "clip", [[-1, -1, -1, -1], [10, 10, 20, 20]])
    with pytest.raises(ValueError, match=r"clip/groundtruth\.txt, line 1: .*no extent.*take the sequence out"):
        track.run(settings(), "peer:static", tmp_path / "set", tmp_path / "out")
