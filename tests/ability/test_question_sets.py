"""Sets of questions: chosen fairly, read from easy-vqa, a data set or a folder; what cannot be found is refused."""

import hashlib
from collections import Counter
from pathlib import Path

import datasets
import pytest
from asked_sets import TINY, load, own_folder

from r1track.ability import questions as question_sets
from r1track.core import prompts, schema
from r1track.core.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_choice_takes_every_answer_in_its_share():
    answers = ["no"] * 700 + ["yes"] * 200 + ["red"] * 93 + ["teal"] * 7
    for seed in range(20):
        taken = Counter(answers[place] for place in question_sets.choose(answers, 100, seed))
        assert all(abs(taken[answer] - share / 10) <= 1 for answer, share in Counter(answers).items())


def test_choice_gives_every_question_the_same_chance_and_none_twice():
    answers = ["no"] * 20 + ["yes"] * 9 + ["red"]
    drawn = [question_sets.choose(answers, 7, seed) for seed in range(3000)]
    assert all(len(set(places)) == 7 and places == sorted(places) for places in drawn)
    counts = Counter(place for places in drawn for place in places)
    assert all(abs(counts[place] - 700) < 130 for place in range(30))  # five deviations


def test_choice_of_unique_answers_is_not_the_first_ones_and_repeats_with_its_seed():
    answers = [str(place) for place in range(1000)]
    assert (
        question_sets.choose(answers, 50, 0)
        == question_sets.choose(answers, 50, 0)
        != question_sets.choose(answers, 50, 1)
    )
    assert max(question_sets.choose(answers, 50, 0)) > 500
    assert question_sets.choose(answers, 1000, 3) == list(range(1000))


def test_easy_vqa_items_carry_their_image_and_its_hash():
    items = load(schema.VqaSet(items=20))
    assert len({item.doc_id for item in items}) == 20
    assert all(item.picture().size == (64, 64) and item.question.endswith("?" + prompts.SHORT) for item in items)
    assert all(item.image_sha256 == hashlib.sha256(item.read()).hexdigest() for item in items)


def test_more_items_than_there_are_is_refused_with_their_number():
    with pytest.raises(ValueError, match=r"vqa\.sets\.mine\.items = 9674: .*has 9673 questions"):
        load(schema.VqaSet(items=9674))


def test_an_unknown_split_of_easy_vqa_is_refused():
    with pytest.raises(ValueError, match="'val': easy-vqa has `train` and `test`"):
        load(schema.VqaSet(split="val"))


def test_the_choice_keeps_the_shares_of_the_group_column(stored):
    columns = {"question": [f"q{k}" for k in range(40)], "answer": [f"a{k}" for k in range(40)]}
    source = stored({**columns, "kind": ["rare"] * 4 + ["common"] * 36})
    for seed in range(10):
        items = question_sets.load("mine", schema.VqaSet(source=source, items=10, group="kind"), seed, TINY)
        assert sum(int(item.doc_id) < 4 for item in items) == 1


def test_questions_on_one_image_share_its_hash(stored, pictures):
    source = stored({"question": ["a?", "b?", "c?"], "answer": ["red", "blue", "red"]})
    items = load(schema.VqaSet(source=source, items=3))
    assert items[0].image_sha256 == items[2].image_sha256 != items[1].image_sha256
    assert items[0].image_sha256 == hashlib.sha256(pictures[0]["bytes"]).hexdigest()


def test_ids_that_stand_twice_are_refused_by_name(stored):
    source = stored({"question": ["a?", "b?", "c?"], "answer": ["red", "blue", "red"], "key": ["x", "y", "x"]})
    with pytest.raises(ValueError, match=r"mine\.id = 'key': 1 ids occur twice, first 'x'"):
        load(schema.VqaSet(source=source, items=3, id="key"))


def test_missing_columns_are_named(stored):
    with pytest.raises(
        ValueError, match=r"vqa\.sets\.mine: .* has no column answer; its columns: \['image', 'question'\]"
    ):
        load(schema.VqaSet(source=stored({"question": ["what?"] * 3}), items=2))


def test_a_set_whose_images_are_names_only_is_refused(tmp_path):
    datasets.Dataset.from_dict({"image": ["a.png"], "question": ["?"], "answer": ["red"]}).to_parquet(
        tmp_path / "names" / "test.parquet"
    )
    with pytest.raises(ValueError, match="no pictures in the column image"):
        load(schema.VqaSet(source=str(tmp_path / "names"), items=1))


def test_a_set_that_is_nowhere_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"vqa\.sets\.mine: cannot load split 'test'"):
        load(schema.VqaSet(source=str(tmp_path / "none")))


FOREIGN = {
    "script.py": ("import datasets", "Dataset scripts are no longer supported"),
    "README.md": ("---\nconfigs: [a: b: c\n---\n", "while parsing a flow sequence"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_with_a_script_or_a_broken_head_of_its_readme_is_refused(name, tmp_path):
    text, reason = FOREIGN[name]
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / name).write_text(text)
    with pytest.raises(UserError, match=rf"(?s)mine: cannot load split 'test' of .*{reason}.*; correct source"):
        load(schema.VqaSet(source=str(tmp_path / "script")))


def test_a_changed_file_of_a_folder_is_read_anew_though_its_readme_names_its_files(stored):
    """`datasets` itself keeps the first rows for ever."""
    for right in ("red", "blue", "green"):
        (Path(stored({"question": ["a?"], "answer": ["x"]})) / right).symlink_to("nowhere")
        source = stored({"question": ["a?", "b?"], "answer": [right] * 2})
        assert {item.target for item in load(schema.VqaSet(source=source, items=2))} == {right}


def test_a_folder_of_images_and_lines_is_a_set(tmp_path):
    rows = [
        {"file_name": "images/a.png", "question": "colour?", "answer": "red", "key": "k1"},
        {"file_name": "images/a.png", "question": "round?", "answer": "no", "key": "k2"},
    ]
    items = load(schema.VqaSet(source=own_folder(tmp_path / "own", rows), items=2, id="key"))
    assert [(item.doc_id, item.question.split("\n")[0], item.target) for item in items] == [
        ("k1", "colour?", "red"), ("k2", "round?", "no"),
    ]  # fmt: skip
    assert items[0].picture().size == (40, 30)


def test_a_folder_whose_lines_name_a_missing_image_is_refused_with_it(tmp_path):
    rows = [{"file_name": "images/b.png", "question": "colour?", "answer": "red"}]
    with pytest.raises(ValueError, match=r"(?s)vqa\.sets\.mine.*b\.png"):
        load(schema.VqaSet(source=own_folder(tmp_path / "own", rows), items=1))
