"""Claims about which predictor answers, and what it is asked: starting from a text, and third-party models."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from toys import toy_split

from r1track.core import config, generation, models, prompts, schema
from r1track.core.boxes import iou, xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.sequences import read_split
from r1track.data import toy as toy_world
from r1track.tracking import predictors, score, track
from r1track.tracking.track_files import read_track

SIZE = 84


@pytest.fixture
def toy(tmp_path):
    return toy_split(tmp_path / "val")


def settings(**changes):
    return config.Settings(task=schema.Task(size=SIZE), track=schema.Track(reuse=False, **changes))


def grounds(text):
    return text.startswith(prompts.GROUND_HEAD)


def located(text, size, **model):
    adapted = schema.Settings(model=schema.Model(**model))
    ((_, box),) = predictors.ground(
        lambda questions, images, tokens: [text], [Image.new("RGB", size)], ["dog"], adapted
    )
    return None if box is None else box.tolist()


@pytest.mark.parametrize("size", [(192, 144), (100, 80), (640, 360), (1921, 1083), (30, 500)])
def test_coordinates_are_mapped_from_what_the_processor_shows_to_the_image(size):
    limits = {"min_pixels": 3136, "max_pixels": 313600}
    processor = models.load_processor(models.TINY, schema.Model(**limits))
    _, rows, columns = processor.image_processor(images=[Image.new("RGB", size)], return_tensors="pt")[
        "image_grid_thw"
    ][0]
    width, height = int(columns) * 14, int(rows) * 14
    corners = np.array([width // 4, height // 4, width // 2, height // 2])
    box = located(prompts.numbers(corners), size, **limits)
    assert xywh_to_xyxy(box) == pytest.approx(corners * np.tile(np.array(size) / (width, height), 2))


@pytest.mark.parametrize(
    "text",
    [
        "[28, 28, 56, 84]",
        '{"bbox_2d": [28, 28, 56, 84]}',
        '[{"bbox_2d": [28, 28, 56, 84], "label": "dog"}]',
        prompts.ground_answer([28, 28, 56, 84], "dog"),
    ],
)
def test_bare_lists_and_json_and_fenced_answers_are_read(text):
    assert located(text, (112, 112)) == pytest.approx([28, 28, 28, 56])


def test_a_box_over_the_border_is_cropped_and_a_tiny_one_is_widened():
    assert located("[110, 50, 115, 60]", (112, 112)) == pytest.approx([108, 50, 4, 10])


@pytest.mark.parametrize("text", ["there is no dog", "[]", "[1, 2]", "[56, 28, 28, 84]", "[28, 28, 56, 300]"])
def test_an_answer_without_a_box_finds_none(text):
    assert located(text, (112, 112)) is None


def overlaps(images, names, boxes):
    """IoU of what the demo's base finds by its name and its true box x, y, w, h; 0 where it finds nothing."""
    adapted = predictors.settings_for(config.resolve({"preset": "demo"}), "tiny")
    _, answer = predictors.load_predictor(adapted, "tiny")
    groundings = predictors.ground(answer, images, names, adapted)
    pairs = zip(groundings, boxes, strict=True)
    return [0.0 if box is None else float(iou(xywh_to_xyxy(box), xywh_to_xyxy(true))) for (_, box), true in pairs]


def test_the_tiny_base_finds_a_named_object_that_is_alone():
    rng = np.random.default_rng(5)
    clips = [toy_world.make(rng, 1, 0, False, toy_world.make_ground(rng)) for _ in range(24)]
    images = [Image.fromarray(clip.frame(0)) for clip in clips]
    assert np.mean(overlaps(images, [clip.description for clip in clips], [clip.box(0) for clip in clips])) > 0.7


def test_a_description_finds_the_target_in_four_of_five_sequences_of_the_demo(tmp_path):
    toy = config.resolve({"preset": "demo"}).toy
    toy_world.write_split(tmp_path / "val", "val", sequences=toy.val_sequences, length=toy.length, seed=toy.seed)
    clips = read_split(tmp_path / "val")
    images = [Image.open(clip.frames[0]) for clip in clips]
    values = overlaps(images, [clip.text for clip in clips], [clip.boxes[0] for clip in clips])
    assert np.mean(np.array(values) > 0.5) >= 0.8


def truthful(root):
    """A model that knows where the described targets are, in what `wide` shows of the first frames."""
    boxes = {s.text: s.boxes[0] for s in read_split(root)}

    def answer(text, images):
        if not grounds(text):
            return "[32, 32, 52, 52]"
        name = text.removeprefix(prompts.GROUND_HEAD).removesuffix(prompts.GROUND_TAIL)
        return prompts.numbers(xywh_to_xyxy(boxes[name]) * SHOWN) if name in boxes else "I see none"

    return answer


def describe(root, words):
    for sequence, text in zip(read_split(root), words, strict=True):
        file = root / sequence.name / "nlp.txt"
        file.unlink() if text is None else file.write_text(text)


SHOWN = [196 / 192, 140 / 144] * 2


def wide():
    """Settings by which a toy frame of 192 x 144 is shown as 196 x 140."""
    return settings(batch=3).model_copy(update={"model": schema.Model(min_pixels=27000, max_pixels=28000)})


def test_a_described_target_is_tracked_from_where_it_was_found(toy, tmp_path, answer_with):
    describe(toy, ["red dog", "blue cat", "green cow", "old hen"])
    requests = answer_with(truthful(toy))
    track.run(wide(), "some/model", toy, tmp_path / "out", "text")
    first = [grounds(text) for _, text, *_ in requests]
    assert first == [True] * 4 + [False] * 4 * 11  # all first frames before the first search region
    for sequence in read_split(toy):
        tracked = np.loadtxt(tmp_path / "out" / sequence.name / f"{sequence.name}_001.txt", delimiter=",")
        shown = np.floor(xywh_to_xyxy(sequence.boxes[0]) * SHOWN + 0.5)
        assert xywh_to_xyxy(tracked[0]) == pytest.approx(shown / SHOWN, abs=0.002)
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["start"] == "text"


def test_a_first_frame_too_narrow_for_the_model_fails_its_own_sequence_only(toy, tmp_path, answer_with, caplog):
    names = [sequence.name for sequence in read_split(toy)]
    honest = truthful(toy)
    Image.new("RGB", (805, 4)).save(toy / names[1] / "00000001.jpg")
    Image.new("RGB", (4, 801)).save(toy / names[2] / "00000001.jpg")
    requests = answer_with(honest)
    track.run(wide(), "some/model", toy, tmp_path / "out", "text")
    assert sum(grounds(text) for _, text, *_ in requests) == 2
    for name, size in zip(names[1:3], ("805, 4", "4, 801"), strict=True):
        assert f"{name}: not tracked, scored as zero: its first frame has ({size}) pixels, too narrow" in caplog.text
    assert score.score(tmp_path / "out", toy, 100).sequences_failed == 2


def test_a_target_that_is_not_found_fails_its_own_sequence_only(toy, tmp_path, answer_with, caplog):
    describe(toy, ["red dog", None, "green cow", "old hen"])
    honest = truthful(toy)
    answer_with(lambda text, images: 'nothing, "sorry"' if "cow" in text else honest(text, images))
    with caplog.at_level(logging.INFO):
        track.run(wide(), "some/model", toy, tmp_path / "out", "text")
    names = [sequence.name for sequence in read_split(toy)]
    for name, fails, answer in zip(names, (False, True, True, False), ("", "", 'nothing, "sorry"', ""), strict=True):
        result = read_track(tmp_path / "out", name)
        assert (result.statuses[1:] == ["failed"] * 11) == fails
        assert result.answers[0] == answer
    assert f"{names[1]}: not tracked, scored as zero: it has no description" in caplog.text
    assert f"{names[2]}: not tracked, scored as zero: no box of 'green cow' in 'nothing" in caplog.text
    assert "2 of 4 described targets were found" in caplog.text
    scores = score.score(tmp_path / "out", toy, 100)
    assert scores.sequences_failed == 2
    assert scores.status["failed"] == 22
    assert [scores.sequences[name].ao == 0 for name in names] == [False, True, True, False]
    assert scores.sequences[names[1]].fps is None
    assert scores.fps > 0


def test_a_failed_sequence_is_not_asked_again_when_a_killed_run_goes_on(toy, tmp_path, answer_with):
    describe(toy, [None, "blue cat", "green cow", "old hen"])
    honest = truthful(toy)

    def die(text, images):
        if not grounds(text):
            raise RuntimeError("killed")
        return "none" if "blue" in text else honest(text, images)

    answer_with(die)
    with pytest.raises(RuntimeError, match="killed"):
        track.run(wide(), "some/model", toy, tmp_path / "out", "text")
    requests = answer_with(honest)
    track.run(wide(), "some/model", toy, tmp_path / "out", "text")
    assert [text for _, text, *_ in requests if grounds(text)] == [
        prompts.GROUND_HEAD + name + prompts.GROUND_TAIL for name in ("green cow", "old hen")
    ]
    assert score.score(tmp_path / "out", toy, 100).sequences_failed == 2


def test_what_the_configuration_starts_from_may_be_overruled_and_peers_start_from_boxes(toy):
    text = settings(start="text")
    assert predictors.settings_for(text, "some/model").track.start == "text"
    assert predictors.settings_for(text, "some/model", "box").track.start == "box"
    assert predictors.settings_for(text, "peer:static").track.start == "box"
    assert predictors.settings_for(settings(), "peer:static", "text").track.start == "box"


FORM = "Look: {search} Where is what {template} shows at {box}?"


def extra(**changes):
    return settings(extra={"mine": schema.Extra(model="someone/model", **changes)})


def test_the_extra_model_is_asked_with_its_own_prompt_template_and_order(toy, tmp_path, answer_with):
    requests = answer_with(lambda text, images: '```json\n[{"bbox_2d": [32, 32, 52, 52], "label": "it"}]\n```')
    adapted = extra(prompt=FORM, max_tokens=99, revision="abc")
    track.run(
        adapted.model_copy(update={"track": adapted.track.model_copy(update={"reuse": True})}),
        "extra:mine",
        toy,
        tmp_path / "out",
    )
    question, text, _, tokens, loaded = requests[0]
    assert loaded == "someone/model@abc"
    assert [part["type"] for part in question[0]["content"]] == ["text", "image", "text", "image", "text"]
    crops = [Crop.around(sequence.boxes[0], 4, SIZE) for sequence in read_split(toy)]
    boxes = [crop.to_crop(xywh_to_xyxy(s.boxes[0])) for crop, s in zip(crops, read_split(toy), strict=True)]
    assert text in [f"Look:  Where is what  shows at {prompts.numbers(box)}?" for box in boxes]
    assert tokens == 99
    assert len({images[1].tobytes() for _, _, images, *_ in requests}) == 4  # templates, one per sequence
    assert len({images[0].tobytes() for _, _, images, *_ in requests}) > 4
    assert set(score.score(tmp_path / "out", toy, 100).status) <= {"ok", "clipped"}


@pytest.mark.parametrize("think", [False, True])
def test_the_extra_models_answers_are_read_with_or_without_thoughts(think, toy, tmp_path, answer_with):
    plain, thought = "[32, 32, 52, 52]", "<think>there</think>\n<answer>[32, 32, 52, 52]</answer>"
    for k, answer in enumerate((plain, thought)):
        answer_with(lambda text, images, answer=answer: answer)
        track.run(extra(think=think), "extra:mine", toy, tmp_path / str(k))
        assert ("held" in score.score(tmp_path / str(k), toy, 100).status) == (think != (answer == thought))


@pytest.mark.parametrize(("answer", "status"), [("[32, 32, 52, 52]", "ok"), ("[]", "absent")])
@pytest.mark.parametrize("think", [False, True])
def test_what_follows_a_complete_answer_is_ignored_as_where_decoding_stops_there(
    think, answer, status, toy, tmp_path, answer_with
):
    """As over prefixes (`generation.Decoder.ended`), so that no model is scored by where its decoding stops."""
    text = prompts.thoughtful("as <answer>[x1, y1, x2, y2]</answer>", answer) if think else answer
    answer_with(lambda *_: f"{text}.\n\nThe target has not moved from [1, 2, 3, 4].")
    track.run(extra(think=think), "extra:mine", toy, tmp_path / "out")
    for sequence in read_split(toy):
        read = read_track(tmp_path / "out", sequence.name)
        assert set(read.statuses[1:]) == {status}
        assert set(read.answers[1:]) == {f"{text}.\n\nThe target has not moved from [1, 2, 3, 4]."}


OURS = (
    "{template}" + prompts.TEMPLATE_HEAD + "{box}" + prompts.SEARCH_HEAD.format("second")
    + "{search}" + prompts.QUESTION + prompts.ANSWER_PLAIN
)  # fmt: skip


@pytest.mark.parametrize("template", [None, OURS])
def test_the_extra_model_with_our_question_or_our_words_as_its_template_is_tracked_as_any_other(
    template, toy, tmp_path
):
    """The tiny model: the template encodes each question whole, our own question is encoded over prefixes."""
    adapted = config.resolve({"track": {"extra": {"mine": {"model": "tiny", "prompt": template, "max_tokens": 16}}}})
    for name in ("extra:mine", "tiny"):
        track.run(adapted, name, toy, tmp_path / name)
    for sequence in read_split(toy):
        one, two = (
            (tmp_path / m / sequence.name / f"{sequence.name}_001.txt").read_bytes() for m in ("extra:mine", "tiny")
        )
        assert one == two


def test_an_extra_model_that_is_not_named_is_refused():
    with pytest.raises(ValueError, match=r"track\.extra: there is no 'other', only \['mine'\]; name its folder"):
        predictors.settings_for(extra(), "extra:other")
    with pytest.raises(ValidationError, match="'grpo' is the name of another model of a run; give another name"):
        schema.Track(extra={"grpo": schema.Extra()})


@pytest.mark.parametrize("prompt", ["{template}{search}", "{search}{box}", "{template}{template}{search}{box}"])
def test_a_prompt_template_without_its_places_is_refused(prompt):
    with pytest.raises(ValidationError, match="once; write it where it belongs"):
        schema.Extra(model="m", prompt=prompt)


@pytest.mark.parametrize("batch", [1, 3])
def test_tracks_with_drafts_are_those_without_in_half_the_passes(batch, toy, monkeypatch):
    """Four sequences, so that with a batch of 3 one begins beside others; the first frame has no draft."""
    adapted = predictors.settings_for(config.resolve({"track": {"batch": batch}}), "tiny")
    loaded, passes = models.load("tiny", adapted.model), []
    forward = loaded.model.forward
    monkeypatch.setattr(models, "load", lambda *_: loaded)
    monkeypatch.setattr(loaded.model, "forward", lambda **inputs: passes.append(1) or forward(**inputs))
    answers, counts = [], []
    for most in (0, generation.DRAFT):
        monkeypatch.setattr(generation, "DRAFT", most)
        passes.clear()
        predict = predictors.load_predictor(adapted, "tiny").predict
        tracks = list(track.follow(read_split(toy), predict, adapted))
        answers.append({each.name: each.answers for each in tracks})
        counts.append(len(passes))
    assert answers[0] == answers[1]
    assert counts[1] < counts[0] / 2
