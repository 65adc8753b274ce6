"""Questions are chosen fairly, asked alike, scored as VQA scores them, and written whole."""

import hashlib
import json
from collections import Counter

import datasets
import pytest
from PIL import Image

from r1track import config, files, models, schema, vqa
from r1track.vqa import sets
from r1track.vqa.metrics import exact, has_tags, is_box, is_empty, normalise

NORMALISED = [
    ("Yes.", "yes"), ("The two dogs", "2 dogs"), ("1,000", "1000"), ("3.5 mph", "3.5 mph"), ("3.", "3"),
    ("t-shirt", "t shirt"), ("None", "0"), ("dont know", "don't know"), ("U.S.A.", "usa"), ("10:15", "10:15"),
    (" a\tred\nball ", "red ball"), ("red, blue", "red blue"), ("yall'd've", "y'all'd've"), ("lets go", "lets go"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "form"), NORMALISED)
def test_normalisation_has_the_published_form(answer, form):
    assert normalise(answer) == form


@pytest.mark.parametrize("answer", [answer for answer, _ in NORMALISED])
def test_normalising_twice_changes_nothing(answer):
    assert normalise(normalise(answer)) == normalise(answer)


@pytest.mark.parametrize(
    ("answer", "target", "strict", "lenient"),
    [
        ("Yes.", "yes", 1, 1),
        ("two", "2", 1, 1),
        ("It is a red circle.", "circle", 0, 1),
        ("<answer>teal</answer>", "teal", 0, 1),
        ("<think>red or teal</think><answer>teal</answer>", "red", 0, 0),
        ("yes and no", "no", 0, 0),
        ("redder", "red", 0, 0),
        ("[12, 30, 50, 80]", "12", 0, 0),
        ("", "yes", 0, 0),
        ("", "the", 0, 0),
    ],
)
def test_exact_scores_the_whole_answer_strictly_and_the_target_within_it_leniently(answer, target, strict, lenient):
    assert exact(answer, target) == (strict, lenient)


BOXES = [
    "[12, 30, 50, 80]",
    "It is at (1.5,2,3,4).",
    '```json\n[\n\t{"bbox_2d": [1',
    "[12, 30, 50, 80",
    "[12, 30,",
    "[1 2 3 4]",
]


@pytest.mark.parametrize("answer", BOXES)
def test_boxes_are_seen_also_when_they_are_cut_off(answer):
    assert is_box(answer)


@pytest.mark.parametrize("answer", ["12", "yes", "(255, 0, 0)", "[3]", "1, 2, 3", "12:30", "", "[sic] 1 2 3 4"])
def test_other_answers_are_no_boxes(answer):
    assert not is_box(answer)


def test_tags_and_emptiness_are_seen():
    assert has_tags("<think>so")
    assert has_tags("a</Answer>")
    assert not has_tags("think < answer")
    assert is_empty(" .\n")
    assert not is_empty("0")


def test_choice_takes_every_answer_in_its_share():
    answers = ["no"] * 700 + ["yes"] * 200 + ["red"] * 93 + ["teal"] * 7
    for seed in range(20):
        taken = Counter(answers[place] for place in sets.choose(answers, 100, seed))
        assert all(abs(taken[answer] - share / 10) <= 1 for answer, share in Counter(answers).items())


def test_choice_gives_every_question_the_same_chance_and_none_twice():
    answers = ["no"] * 20 + ["yes"] * 9 + ["red"]
    drawn = [sets.choose(answers, 7, seed) for seed in range(3000)]
    assert all(len(set(places)) == 7 and places == sorted(places) for places in drawn)
    counts = Counter(place for places in drawn for place in places)
    assert all(abs(counts[place] - 700) < 130 for place in range(30))  # five deviations


def test_choice_of_unique_answers_is_not_the_first_ones_and_repeats_with_its_seed():
    answers = [str(place) for place in range(1000)]
    assert sets.choose(answers, 50, 0) == sets.choose(answers, 50, 0) != sets.choose(answers, 50, 1)
    assert max(sets.choose(answers, 50, 0)) > 500
    assert sets.choose(answers, 1000, 3) == list(range(1000))


def test_easy_vqa_items_carry_their_image_and_its_hash():
    items = sets.load("easy", schema.VqaSet(items=20), 0)
    assert len({item.doc_id for item in items}) == 20
    assert all(item.picture().size == (64, 64) and item.question.endswith("?") for item in items)
    assert all(item.image_sha256 == hashlib.sha256(item.read()).hexdigest() for item in items)


def test_more_items_than_there_are_is_refused_with_their_number():
    with pytest.raises(ValueError, match=r"vqa\.sets\.easy\.items = 9674: .*has 9673 questions"):
        sets.load("easy", schema.VqaSet(items=9674), 0)


def test_an_unknown_split_of_easy_vqa_is_refused():
    with pytest.raises(ValueError, match="'val': easy-vqa has `train` and `test`"):
        sets.load("easy", schema.VqaSet(split="val"), 0)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A function that stores rows as a data set which `datasets` loads from a folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def store(rows):
        folder = tmp_path / "stored"
        folder.mkdir()
        datasets.Dataset.from_list(rows).to_parquet(folder / "test.parquet")
        return schema.VqaSet(source=str(folder), items=2)

    return store


@pytest.fixture
def pictures(tmp_path):
    """Two image files as `datasets` stores images."""
    found = []
    for name in ("red", "blue"):
        Image.new("RGB", (40, 30), name).save(tmp_path / f"{name}.png")
        found.append({"bytes": (tmp_path / f"{name}.png").read_bytes(), "path": None})
    return found


def as_rows(pictures, answers):
    image = datasets.Image()
    features = datasets.Features(image=image, question=datasets.Value("string"), answer=datasets.Value("string"))
    questions = [f"colour {place}?" for place in range(len(answers))]
    columns = {
        "image": [pictures[place % 2] for place in range(len(answers))],
        "question": questions,
        "answer": answers,
    }
    return datasets.Dataset.from_dict(columns, features=features)


def test_a_stored_data_set_is_read_and_questions_on_one_image_share_its_name(stored, pictures, monkeypatch, caplog):
    rows = as_rows(pictures, ["red", "blue", "red", None])
    monkeypatch.setattr(datasets.Dataset, "from_list", lambda _: rows)
    items = sets.load("mine", stored([]).model_copy(update={"items": 3}), 0)
    assert [(item.doc_id, item.target, item.picture().size) for item in items] == [
        ("0", "red", (40, 30)), ("1", "blue", (40, 30)), ("2", "red", (40, 30)),
    ]  # fmt: skip
    assert items[0].image_id == items[2].image_id != items[1].image_id
    assert items[0].image_sha256 == hashlib.sha256(pictures[0]["bytes"]).hexdigest()
    assert "left out 1 of 4 questions" in caplog.text


def test_a_broken_image_is_refused_with_its_question(stored, pictures, monkeypatch):
    rows = as_rows([{"bytes": b"no image", "path": None}, pictures[1]], ["red", "blue"])
    monkeypatch.setattr(datasets.Dataset, "from_list", lambda _: rows)
    first = sets.load("mine", stored([]), 0)[0]
    with pytest.raises(ValueError, match=r"of question 0 \('colour 0\?'\) cannot be read"):
        first.picture()


def test_missing_columns_are_named(stored):
    with pytest.raises(
        ValueError, match=r"vqa\.sets\.mine: .* has no column image, answer; its columns: \['question'\]"
    ):
        sets.load("mine", stored([{"question": "what?"}] * 3), 0)


def test_columns_of_another_kind_are_refused(stored):
    with pytest.raises(ValueError, match="need an image and two columns of text"):
        sets.load("mine", stored([{"question": "what?", "image": "a.png", "answer": ["red", "teal"]}] * 3), 0)


def test_a_set_that_is_nowhere_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"vqa\.sets\.mine: cannot load split 'test'"):
        sets.load("mine", schema.VqaSet(source=str(tmp_path / "none")), 0)


@pytest.fixture
def settings():
    spec = schema.VqaSet(items=350, prompt='{"q": "{question}"}', max_tokens=5)
    return config.Settings(vqa=schema.Vqa(batch=100, sets={"easy": spec}))


@pytest.fixture
def asked(monkeypatch):
    """Stands for the model: says yes, but red in the first of the smaller batches; keeps what it was asked."""
    calls = []

    def answer(loaded, questions, images, *, max_tokens, batch):
        calls.append({"loaded": loaded, "questions": questions, "images": images, "tokens": max_tokens, "batch": batch})
        changed = batch < 100 and not any(call["batch"] < 100 for call in calls[:-1])
        return ["red" if changed else "yes"] * len(questions)

    monkeypatch.setattr(models, "load", lambda model, settings: f"loaded {model}")
    monkeypatch.setattr(models, "answer", answer)
    return calls


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_stage_writes_scored_rows_and_a_manifest(settings, asked, tmp_path):
    vqa.run(settings, "some-model", tmp_path)
    rows, manifest = read_rows(tmp_path / "easy.jsonl"), files.read_json(tmp_path / "manifest.json")
    assert len(rows) == 350
    assert all(row["strict"] == row["lenient"] == (row["target"] == "yes") for row in rows)
    found = manifest["sets"]["easy"]
    assert found["items"] == {row["doc_id"]: row["image_sha256"] for row in rows}
    assert found["strict"] == pytest.approx(100 * sum(row["target"] == "yes" for row in rows) / 350)
    assert found["sha256"] == files.hash_file(tmp_path / "easy.jsonl")
    assert manifest["settings"] == config.stage_values(settings, "vqa")
    assert files.read_json(tmp_path / "provenance.json")["stage"] == "vqa"


def test_questions_go_out_in_batches_with_their_own_image_and_the_prompt_filled_in(settings, asked, tmp_path):
    vqa.run(settings, "some-model", tmp_path)
    first = [call for call in asked if call["batch"] == 100]
    assert [len(call["questions"]) for call in first] == [100, 100, 100, 50]
    assert {call["tokens"] for call in asked} == {5}
    assert {call["loaded"] for call in asked} == {"loaded some-model"}
    rows = read_rows(tmp_path / "easy.jsonl")
    texts = [question[0]["content"][1]["text"] for call in first for question in call["questions"]]
    assert texts == ['{"q": "' + row["question"] + '"}' for row in rows]
    shown = [image[0] for call in first for image in call["images"]]
    own = {item.doc_id: item.picture() for item in sets.load("easy", settings.vqa.sets["easy"], 0)}
    assert all(image == own[row["doc_id"]] for image, row in zip(shown, rows, strict=True))


def test_a_part_is_asked_again_in_smaller_batches_and_the_change_is_kept(settings, asked, tmp_path):
    vqa.run(settings, "some-model", tmp_path)
    again = [len(call["questions"]) for call in asked if call["batch"] == 50]
    assert again == [50] * 6
    noise = files.read_json(tmp_path / "manifest.json")["self"]
    assert noise["items"] == 300
    assert noise["changed"] == 50

    def asked_things(call):
        return [
            (q[0]["content"][1]["text"], i[0].tobytes()) for q, i in zip(call["questions"], call["images"], strict=True)
        ]

    rows = read_rows(tmp_path / "easy.jsonl")
    first = [thing for call in asked if call["batch"] == 100 for thing in asked_things(call)]
    target = {thing: row["target"] for thing, row in zip(first, rows, strict=True)}
    moved = [target[thing] for thing in asked_things(next(call for call in asked if call["batch"] == 50))]
    assert noise["difference"] == pytest.approx(100 * (moved.count("red") - moved.count("yes")) / 300)
    assert moved.count("yes") > moved.count("red")


def test_sets_of_an_earlier_run_are_removed_and_a_broken_run_leaves_no_manifest(settings, asked, tmp_path, monkeypatch):
    (tmp_path / "old.jsonl").write_text("{}\n")
    vqa.run(settings, "some-model", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["easy.jsonl", "manifest.json", "provenance.json"]

    def stop(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(models, "answer", stop)
    with pytest.raises(RuntimeError):
        vqa.run(settings, "some-model", tmp_path / "broken")
    assert not list((tmp_path / "broken").glob("*"))
