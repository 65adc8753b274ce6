"""Questions that cannot be scored and images that cannot be shown: a few are left out and counted, many refused."""

from pathlib import Path

import datasets
import pyarrow
import pytest
from asked_sets import TEXT, TEXTS, TINY, load
from PIL import Image
from pyarrow import parquet

from r1track.ability import metrics
from r1track.core import models, schema
from r1track.core.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_questions_without_an_answer_are_counted_and_never_asked(stored, caplog):
    source = stored({"question": ["a?", "b?", "c?", "d?"], "answer": ["red", None, "the", "red"]})
    assert [item.doc_id for item in load(schema.VqaSet(source=source, items=2))] == ["0", "3"]
    assert "left out 2 of 4 questions" in caplog.text
    with pytest.raises(ValueError, match=r"mine\.items = 3: .* has 2 questions that can be scored"):
        load(schema.VqaSet(source=source, items=3))


def test_boxes_and_options_that_cannot_be_scored_are_counted(stored, caplog):
    boxes = [[1, 2, 3, 4], None, [1, 2, 3], [1, 2, 0, 4], [1, 2, float("nan"), 4], [5, 6, 7, 8]]
    numbers = datasets.List(datasets.Value("float64"))
    source = stored({"question": ["a"] * 6, "answer": boxes}, answer=numbers)
    items = load(schema.VqaSet(source=source, items=2, metric="box"))
    assert [item.doc_id for item in items] == ["0", "5"]
    assert "left out 4 of 6 questions" in caplog.text
    choices = [["cat", "dog"], None, ["cat", "dog"], ["cat", "dog"]]
    columns = {"question": ["a"] * 4, "answer": ["1", "0", "7", None], "options": choices}
    source = stored(columns, split="again", options=TEXTS)
    items = load(schema.VqaSet(source=source, split="again", items=1, metric="choice", options="options"))
    assert [item.targets for item in items] == [["B", "cat", "dog"]]
    assert "left out 3 of 4 questions" in caplog.text


@pytest.mark.parametrize(
    "options", ["['cat', 'dog']", {"text": ["cat", "dog"], "label": ["A", "B"]}, [["cat"], ["dog"]]]
)
def test_options_in_another_form_than_a_list_of_texts_are_refused(options, stored):
    """As in MMMU and ARC: the characters of the text, or the names of the fields, would be asked as options."""
    source = stored({"question": ["a"], "answer": ["B"], "options": [options]})
    with pytest.raises(UserError, match=r"vqa\.sets\..*\.options = 'options': holds no lists, one text for each"):
        load(schema.VqaSet(source=source, items=1, metric="choice", options="options"))


def test_a_question_with_a_null_among_its_options_is_counted(stored, caplog):
    columns = {"question": ["a", "b"], "answer": ["0", "0"], "options": [["cat", None], ["cat", "dog"]]}
    (item,) = load(schema.VqaSet(source=stored(columns, options=TEXTS), items=1, metric="choice", options="options"))
    assert item.doc_id == "1"


def test_an_answer_that_is_no_box_is_counted(stored, caplog):
    columns = {"question": ["a"] * 3, "answer": [["1", "2", "x", "4"], ["1", "2"], ["1", "2", "3", "4"]]}
    (item,) = load(schema.VqaSet(source=stored(columns, answer=TEXTS), items=1, metric="box"))
    assert "left out 2 of 3 questions" in caplog.text
    assert item.doc_id == "2"


def test_a_box_that_is_outside_of_its_image_or_too_thin_to_be_written_is_left_out_and_named(stored, caplog):
    """Its own right answer, such as [1, 2, 1, 6], would score 0."""
    boxes = [[1.1, 2.0, 0.01, 4.0], [5.0, 5.0, 9.0, 9.0], [300.0, 2.0, 5.0, 5.0], [-5.0, 5.0, 20.0, 9.0]]
    source = stored({"question": ["a?"] * 4, "answer": boxes})
    items = load(schema.VqaSet(source=source, items=4, metric="box", max_unusable=0.5))
    assert [item.doc_id for item in items] == ["1", "3"]
    for doc_id in "02":
        assert f"image of question {doc_id} ('a?" in caplog.text
    assert caplog.text.count("its box is outside of it, or thinner than a pixel as the model sees it") == 2


def test_answers_in_objects_without_an_answer_are_counted_as_not_scorable(stored, caplog):
    answers = [[{"text": "red"}], [{"text": "blue"}]]
    with pytest.raises(UserError, match="has 0 questions that can be scored"):
        load(schema.VqaSet(source=stored({"question": ["a?", "b?"], "answer": answers}), items=1))
    people = [[{"answer": None}, {"answer": "0"}], [{"answer": None}] * 2, [{"answer": "red"}] * 2]
    items = load(schema.VqaSet(source=stored({"question": ["a?", "b?", "c?"], "answer": people}), items=2))
    assert [(item.doc_id, item.targets) for item in items] == [("0", ["0"]), ("2", ["red", "red"])]


def test_more_options_than_letters_two_right_answers_and_odd_digits_are_counted_as_not_scorable(stored, caplog):
    many = [f"thing {k}" for k in range(27)]
    answers = [["26"], ["A"], ["0", "1"], ["²"], ["٣"], ["25"]]
    columns = {"question": ["a"] * 6, "answer": answers, "options": [many, many, *[many[:26]] * 4]}
    source = stored(columns, options=TEXTS, answer=TEXTS)
    (item,) = load(schema.VqaSet(source=source, items=1, metric="choice", options="options"))
    assert item.targets == ["Z", *many[:26]]
    assert metrics.score("choice", "it is thing 25", item.targets).lenient == 1  # the last letter there is
    assert "left out 5 of 6 questions" in caplog.text


def test_a_broken_image_is_refused_with_its_question_before_anything_is_asked(stored, pictures):
    pictures[0]["bytes"] = b"no image"
    source = stored({"question": ["colour?", "size?"], "answer": ["red", "blue"]})
    with pytest.raises(ValueError, match=r"vqa\.sets\.mine: image of question 0 \('colour\?.*'\) cannot be decoded"):
        load(schema.VqaSet(source=source, items=2))


@pytest.mark.parametrize(("usable", "passes"), [(480, True), (450, True), (449, False), (100, False)])
def test_a_set_of_500_rows_is_asked_with_a_few_that_cannot_be_scored_and_refused_with_many(
    usable, passes, stored, caplog
):
    answers = ["red" if k < usable else None for k in range(500)]
    source = stored({"question": [f"q{k}" for k in range(500)], "answer": answers})
    if passes:
        assert [item.doc_id for item in load(schema.VqaSet(source=source))] == [str(k) for k in range(usable)]
        assert f"left out {500 - usable} of 500 questions: no answer that can be scored ({usable}, " in caplog.text
        assert f"asks {usable} of 500 questions" in caplog.text
    else:
        with pytest.raises(UserError, match=rf"mine\.items = 500: .* has {usable} questions that can be scored"):
            load(schema.VqaSet(source=source))


@pytest.mark.parametrize(
    ("items", "share", "usable"), [(10, 0.7, 3), (100, 0.71, 29), (100, 0.29, 71), (500, 0.1, 450)]
)
def test_a_set_that_lacks_the_stated_share_exactly_is_asked_and_refused_with_one_less(items, share, usable, stored):
    """As numbers of the machine, 1 - 0.7 of 10 is more than 3."""
    answers = ["red" if k < usable else None for k in range(items)]
    spec = schema.VqaSet(
        source=stored({"question": [f"q{k}" for k in range(items)], "answer": answers}), items=items, max_unusable=share
    )
    assert len(load(spec)) == usable
    answers[0] = None
    source = stored({"question": [f"q{k}" for k in range(items)], "answer": answers})
    with pytest.raises(UserError, match=f"has {usable - 1} questions that can be scored"):
        load(spec.model_copy(update={"source": source}))


def test_a_question_with_a_mark_of_the_models_own_is_counted_and_never_asked(stored, caplog):
    """The processor would look for an image more, and stop the stage after hours."""
    source = stored({"question": ["a?", "<|image_pad|>b?", "c?<|im_end|>", "<|box_start|>d?"], "answer": ["red"] * 4})
    assert [item.doc_id for item in load(schema.VqaSet(source=source, items=2))] == ["0", "3"]
    assert "left out 2 of 4 questions" in caplog.text


def test_a_few_broken_images_are_left_out_by_name_the_same_ones_for_every_model(stored, pictures, caplog):
    good, bad = pictures[0], {"bytes": b"no image", "path": None}
    columns = {"image": [bad if k in (3, 17) else good for k in range(20)], "question": [f"q{k}" for k in range(20)]}
    spec = schema.VqaSet(source=stored({**columns, "answer": ["red"] * 20}), items=20)
    assert [item.doc_id for item in load(spec)] == [str(k) for k in range(20) if k not in (3, 17)]
    for k in (3, 17):
        assert f"left out: vqa.sets.mine: image of question {k} ('q{k}" in caplog.text
    with pytest.raises(UserError, match=r"image of question 3 .*; 2 of 20 images cannot be used"):
        load(spec.model_copy(update={"max_unusable": 0.05}))


@pytest.mark.parametrize("size", [(201, 1), (3, 604)])
def test_an_image_that_the_model_refuses_is_named_before_anything_is_asked(size, stored, pictures, tmp_path):
    Image.new("RGB", size).save(tmp_path / "narrow.png")
    pictures[1]["bytes"] = (tmp_path / "narrow.png").read_bytes()
    source = stored({"question": ["colour?", "size?"], "answer": ["red", "blue"]})
    with pytest.raises(
        UserError, match=rf"mine: image of question 1 \('size\?.*\) has {size[0]} x {size[1]} pixels, too narrow"
    ):
        load(schema.VqaSet(source=source, items=2))
    Image.new("RGB", (200, 1)).save(tmp_path / "narrow.png")
    pictures[1]["bytes"] = (tmp_path / "narrow.png").read_bytes()
    source = stored({"question": ["a?", "size?"], "answer": ["red", "blue"]}, split="again")
    item = load(schema.VqaSet(source=source, split="again", items=2))[1]
    models.load_processor(models.TINY, TINY)(text=["<|image_pad|>"], images=[item.picture()])  # which raises for more


@pytest.mark.parametrize("path", ["/etc/hostname", "../secret.png", "/dev/zero", "gone.png", None])
def test_an_image_that_lies_outside_of_its_set_is_refused_with_its_question(path, stored, pictures, tmp_path):
    source = Path(stored({"question": ["colour?", "size?"], "answer": ["red", "blue"]}))
    images = [{"bytes": None, "path": path}, pictures[1]]
    rows = [{"image": image, "question": "colour?", "answer": "red"} for image in images]
    features = datasets.Features({"image": datasets.Image(), "question": TEXT, "answer": TEXT})
    parquet.write_table(pyarrow.Table.from_pylist(rows, features.arrow_schema), source / "test.parquet")
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"mine: image of question 0 .*(outside of|cannot be decoded)"):
        load(schema.VqaSet(source=str(source), items=2))
