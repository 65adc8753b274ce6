"""Questions are chosen fairly, asked alike and written whole; each set is read in its publisher's columns."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import datasets
import pyarrow
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from r1track.ability import metrics, records, verdict, vqa
from r1track.ability import questions as question_sets
from r1track.core import config, files, models, prompts, schema
from r1track.core.errors import UserError

TINY = config.resolve({"preset": "demo"}).model
PRESET = config.resolve({"preset": "r1track-5k"})


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


def load(spec, model=TINY):
    return question_sets.load("mine", spec, 0, model)


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


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def pictures(tmp_path):
    """Two image files as `datasets` stores images, of 40 x 30 and 60 x 120 pixels."""
    stored_images = []
    for name, size in (("red", (40, 30)), ("blue", (60, 120))):
        Image.new("RGB", size, name).save(tmp_path / f"{name}.png")
        stored_images.append({"bytes": (tmp_path / f"{name}.png").read_bytes(), "path": None})
    return stored_images


@pytest.fixture
def stored(tmp_path, pictures):
    """A function that stores columns as a data set of the hub is stored, with the pictures in turn as its images."""

    def store(columns, split="test", subset=None, **features):
        many = len(next(iter(columns.values())))
        columns = {"image": [pictures[k % 2] for k in range(many)], **columns}
        table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        for name, feature in features.items():
            table = table.cast_column(name, feature)
        table.to_parquet(tmp_path / "stored" / f"{split}.parquet")
        form = {"config_name": subset or "default", "data_files": [{"split": split, "path": f"{split}.parquet"}]}
        (tmp_path / "stored" / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': [form]})}---\n")
        return str(tmp_path / "stored")

    return store


TEXT, NUMBER = datasets.Value("string"), datasets.Value("int64")
TEXTS = datasets.List(TEXT)
PERSON = {"answer": TEXT, "answer_confidence": TEXT, "answer_id": NUMBER}
# For every set of the preset: its columns as its publisher has them, with two rows, and what is to be read from them:
# the second question, its targets, and the groups that the choice keeps in their shares.
FORMS = {
    "mmstar": (
        {
            "index": [0, 1], "question": ["Which?\nOptions: A: cat, B: dog", "How many?\nOptions: A: 1, B: 2"],
            "answer": ["A", "B"], "category": ["math", "logical reasoning"], "l2_category": ["geometry", "common"],
        },
        {}, "How many?\nOptions: A: 1, B: 2", ["B"],
    ),
    "textvqa": (
        {
            "image_id": ["a", "b"], "question_id": [7, 8], "question": ["what is read?", "which brand?"],
            "answers": [["x"] * 10, ["nokia"] * 7 + ["Nokia 3310", "phone", "x"]], "ocr_tokens": [["x"], ["NOKIA"]],
        },
        {"answers": TEXTS}, "which brand?", ["nokia"] * 7 + ["Nokia 3310", "phone", "x"],
    ),
    "chartqa": (
        {"type": ["human_test", "augmented_test"], "question": ["how many?", "which year?"], "answer": ["3", "2014"]},
        {}, "which year?", ["2014"],
    ),
    "ai2d": (
        {
            "question": ["what eats?", "what is A?"], "options": [["cat", "dog"], ["sun", "moon", "0"]],
            "answer": ["0", "1"],
        },
        {"options": TEXTS}, "what is A?\nA. sun\nB. moon\nC. 0", ["B", "sun", "moon", "0"],
    ),
    "vqav2": (
        {
            "question_type": ["is", "what"], "multiple_choice_answer": ["yes", "red"], "question_id": [1, 2],
            "answers": [
                [{"answer": "yes", "answer_confidence": "yes", "answer_id": k} for k in range(1, 11)],
                [{"answer": "red", "answer_confidence": "maybe", "answer_id": k} for k in range(1, 10)]
                + [{"answer": "pink", "answer_confidence": "no", "answer_id": 10}],
            ],
            "image_id": [5, 6], "answer_type": ["yes/no", "other"], "question": ["is it?", "what colour?"],
        },
        {"answers": datasets.List(PERSON)}, "what colour?", ["red"] * 9 + ["pink"],
    ),
    "pope": (
        {
            "id": ["0", "1"], "question_id": ["1", "2"], "question": ["Is there a cat?", "Is there a dog?"],
            "answer": ["yes", "no"], "image_source": ["a", "b"], "category": ["adversarial"] * 2,
        },
        {}, "Is there a dog?", ["no"],
    ),
    "refcoco": (
        {
            "question_id": ["a", "b"], "question": ["Describe."] * 2, "answer": [["the man"], ["left cat", "cat"]],
            "segmentation": [[1.0, 2.0], [3.0, 4.0]], "bbox": [[1.0, 2.0, 10.0, 20.0], [6.0, 12.0, 30.0, 60.0]],
            "iscrowd": [0, 0], "file_name": ["a.jpg", "b.jpg"],
        },
        {"answer": TEXTS, "bbox": datasets.List(datasets.Value("float32"))}, "left cat", ["[84, 168, 504, 1008]"],
    ),
    "ocrbench": (
        {
            "dataset": ["IIIT5K", "HME100k"], "question": ["what is written?", "write the formula"],
            "question_type": ["Regular Text Recognition", "Handwritten Mathematical Expression Recognition"],
            "answer": [["CENTRE"], ["x ^ { 2 }"]],
        },
        {"answer": TEXTS}, "write the formula", ["x ^ { 2 }"],
    ),
}  # fmt: skip


def test_the_preset_asks_all_sets_of_the_check_with_at_least_three_hundred_questions_each():
    assert set(PRESET.vqa.sets) == set(FORMS)
    assert min(spec.items for spec in PRESET.vqa.sets.values()) >= PRESET.verdict.min_items


def test_prompts_and_limits_of_mmstar_and_ocrbench_are_those_of_lmms_eval():
    mmstar, ocrbench = PRESET.vqa.sets["mmstar"], PRESET.vqa.sets["ocrbench"]
    assert mmstar.prompt == "{question}\nAnswer with the option's letter from the given choices directly"
    assert (ocrbench.prompt, ocrbench.max_tokens) == ("{question}", 128)


@pytest.mark.parametrize("name", FORMS)
def test_a_set_of_the_preset_is_read_in_its_publishers_columns(name, stored):
    columns, features, question, targets = FORMS[name]
    spec = PRESET.vqa.sets[name]
    source = stored(columns, spec.split, spec.subset, **features)
    spec = spec.model_copy(update={"items": 2, "source": source})
    limits = PRESET.model.model_copy(update={"min_pixels": 840 * 1680, "max_pixels": 840 * 1680})  # 14 times 60 x 120
    first, second = load(spec, limits)
    assert (second.targets, second.picture().size) == (targets, (60, 120))
    assert second.question == (spec.prompt or "{question}" + prompts.SHORT).replace("{question}", question)
    assert metrics.BY_NAME[second.metric](targets[0], second.targets) >= 0.9
    assert metrics.BY_NAME[first.metric](targets[0], first.targets) < 0.9
    assert spec.group is None or spec.group in columns


def test_handwritten_formulas_of_ocrbench_are_scored_without_spaces_and_its_other_texts_are_not(stored):
    columns, features, *_ = FORMS["ocrbench"]
    text, hand = load(schema.VqaSet(source=stored(columns, **features), items=2, metric="contains"))
    assert (hand.metric, text.metric) == ("formula", "contains")
    assert metrics.BY_NAME[hand.metric]("x^{2}", hand.targets) == 1
    assert metrics.BY_NAME[text.metric]("CEN TRE", text.targets) == 0


def test_a_box_is_moved_to_the_pixels_of_the_image_as_the_models_processor_shows_it(stored):
    columns, features, *_ = FORMS["refcoco"]
    spec = schema.VqaSet(source=stored(columns, **features), items=2, metric="box", question="answer", answer="bbox")
    item = load(spec)[1]
    shown = models.load_processor(models.TINY, TINY)(text=["<|image_pad|>"], images=[item.picture()])
    height, width = (14 * int(n) for n in shown["image_grid_thw"][0][1:])
    x, y = width / 60, height / 120
    assert item.targets == [f"[{round(6 * x)}, {round(12 * y)}, {round(36 * x)}, {round(72 * y)}]"]


def test_the_choice_keeps_the_shares_of_the_group_column(stored):
    columns = {"question": [f"q{k}" for k in range(40)], "answer": [f"a{k}" for k in range(40)]}
    source = stored({**columns, "kind": ["rare"] * 4 + ["common"] * 36})
    for seed in range(10):
        items = question_sets.load("mine", schema.VqaSet(source=source, items=10, group="kind"), seed, TINY)
        assert sum(int(item.doc_id) < 4 for item in items) == 1


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


def test_more_options_than_letters_two_right_answers_and_odd_digits_are_counted_as_not_scorable(stored, caplog):
    many = [f"thing {k}" for k in range(27)]
    answers = [["26"], ["A"], ["0", "1"], ["²"], ["٣"], ["25"]]
    columns = {"question": ["a"] * 6, "answer": answers, "options": [many, many, *[many[:26]] * 4]}
    source = stored(columns, options=TEXTS, answer=TEXTS)
    (item,) = load(schema.VqaSet(source=source, items=1, metric="choice", options="options"))
    assert item.targets == ["Z", *many[:26]]
    assert metrics.score("choice", "it is thing 25", item.targets).lenient == 1  # the last letter there is
    assert "left out 5 of 6 questions" in caplog.text


def test_questions_on_one_image_share_its_hash(stored, pictures):
    source = stored({"question": ["a?", "b?", "c?"], "answer": ["red", "blue", "red"]})
    items = load(schema.VqaSet(source=source, items=3))
    assert items[0].image_sha256 == items[2].image_sha256 != items[1].image_sha256
    assert items[0].image_sha256 == hashlib.sha256(pictures[0]["bytes"]).hexdigest()


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


def own_folder(folder: Path, rows):
    """A folder of one's own questions: <split>/metadata.jsonl beside images."""
    (folder / "test" / "images").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "test" / "images" / "a.png")
    (folder / "test" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


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


@pytest.fixture
def settings():
    spec = schema.VqaSet(items=350, prompt='{"q": "{question}"}', max_tokens=5)
    return config.Settings(model=TINY, vqa=schema.Vqa(batch=100, sets={"easy": spec}))


@pytest.fixture
def calls(monkeypatch):
    """A fake model that answers yes, but red in the first of the smaller batches; the list of its calls."""
    log = []

    def answer(loaded, questions, images, *, max_tokens, batch):
        log.append({"loaded": loaded, "questions": questions, "images": images, "tokens": max_tokens, "batch": batch})
        changed = batch < 100 and not any(call["batch"] < 100 for call in log[:-1])
        return ["red" if changed else "yes"] * len(questions)

    monkeypatch.setattr(models, "load", lambda model, settings: models.Loaded(f"loaded {model}", None, None))
    monkeypatch.setattr(models, "generate", answer)
    return log


def read_rows(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_the_stage_writes_scored_rows_and_a_manifest(settings, calls, tmp_path):
    vqa.run(settings, "tiny", tmp_path / "out")
    rows, manifest = read_rows(tmp_path / "out" / "easy.jsonl"), files.read_json(tmp_path / "out" / "manifest.json")
    assert len(rows) == 350
    assert all(row["strict"] == row["lenient"] == (row["target"] == "yes") for row in rows)
    entry = manifest["sets"]["easy"]
    assert entry["items"] == {row["doc_id"]: row["image"] for row in rows}
    assert entry["strict"] == pytest.approx(100 * sum(row["target"] == "yes" for row in rows) / 350)
    assert entry["sha256"] == files.hash_file(tmp_path / "out" / "easy.jsonl")
    assert manifest["settings"] == config.stage_values(settings, "vqa")
    assert manifest["kl"] == {}
    assert files.read_json(tmp_path / "out" / "provenance.json")["stage"] == "vqa"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_rows_have_the_fields_of_lmms_evals_samples(settings, calls, tmp_path):
    vqa.run(settings, "tiny", tmp_path / "out")
    row = read_rows(tmp_path / "out" / "easy.jsonl")[0]
    assert {key: type(row[key]) for key in ("doc_id", "input", "target", "filtered_resps", "doc_hash")} == {
        "doc_id": str, "input": str, "target": str, "filtered_resps": str, "doc_hash": str,
    }  # fmt: skip
    assert {key for key in row if key not in records.NO_SCORE} == {
        "strict", "lenient", "unparsed", "metric", "targets",
    }  # fmt: skip


def test_questions_go_out_in_batches_with_their_own_image_and_the_prompt_filled_in(settings, calls, tmp_path):
    vqa.run(settings, "tiny", tmp_path / "out")
    first = [call for call in calls if call["batch"] == 100]
    assert [len(call["questions"]) for call in first] == [100, 100, 100, 50]
    assert {call["tokens"] for call in calls} == {5}
    assert {call["loaded"].model for call in calls} == {"loaded tiny"}
    rows = read_rows(tmp_path / "out" / "easy.jsonl")
    texts = [question[0]["content"][1]["text"] for call in first for question in call["questions"]]
    assert texts == [row["input"] for row in rows]
    assert all(text.startswith('{"q": "') and text.endswith('?"}') for text in texts)
    shown = [image[0] for call in first for image in call["images"]]
    own = {item.doc_id: item.picture() for item in load(settings.vqa.sets["easy"])}
    assert all(image == own[row["doc_id"]] for image, row in zip(shown, rows, strict=True))


def test_images_of_one_size_are_asked_together_the_largest_first_and_written_in_their_own_order(
    settings, calls, stored, tmp_path
):
    source = stored({"question": [f"q{k}" for k in range(8)], "answer": ["yes", "no"] * 4})
    spec = schema.VqaSet(source=source, items=8)
    changed = settings.model_copy(update={"vqa": schema.Vqa(batch=4, sets={"own": spec})})
    vqa.run(changed, "tiny", tmp_path / "out")
    sizes = [{image[0].size for image in call["images"]} for call in calls if call["batch"] == 4]
    assert sizes == [{(60, 120)}, {(40, 30)}]
    rows = read_rows(tmp_path / "out" / "own.jsonl")
    assert [row["doc_id"] for row in rows] == [str(k) for k in range(8)]
    assert [row["input"] for row in rows] == [
        f"q{k}\nAnswer the question using a single word or phrase." for k in range(8)
    ]


def test_a_part_is_asked_again_in_smaller_batches_and_the_change_is_kept(settings, calls, tmp_path):
    vqa.run(settings, "tiny", tmp_path / "out")
    again = [len(call["questions"]) for call in calls if call["batch"] == 50]
    assert again == [50] * 6
    noise = files.read_json(tmp_path / "out" / "manifest.json")["self"]
    assert noise["items"] == 300
    assert noise["changed"] == 50

    def questions_and_images(call):
        return [
            (q[0]["content"][1]["text"], i[0].tobytes()) for q, i in zip(call["questions"], call["images"], strict=True)
        ]

    rows = read_rows(tmp_path / "out" / "easy.jsonl")
    first = [pair for call in calls if call["batch"] == 100 for pair in questions_and_images(call)]
    target = {pair: row["target"] for pair, row in zip(first, rows, strict=True)}
    moved = [target[pair] for pair in questions_and_images(next(call for call in calls if call["batch"] == 50))]
    assert noise["difference"] == pytest.approx(100 * (moved.count("red") - moved.count("yes")) / 300)
    assert moved.count("yes") > moved.count("red")


def test_a_broken_run_writes_nothing_and_the_next_asks_only_the_sets_that_are_not_finished(
    settings, calls, tmp_path, monkeypatch
):
    two = {name: schema.VqaSet(items=20) for name in ("first", "second")}
    changed = settings.model_copy(update={"vqa": schema.Vqa(batch=100, sets=two)})
    answer = models.generate

    def stop(*words, **more):
        if len(calls) == 2:  # the first set, and a part of it again
            raise RuntimeError("killed")
        return answer(*words, **more)

    monkeypatch.setattr(models, "generate", stop)
    with pytest.raises(RuntimeError, match="killed"):
        vqa.run(changed, "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    calls.clear()
    monkeypatch.setattr(models, "generate", answer)
    vqa.run(changed, "tiny", tmp_path / "out")
    assert len(calls) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "first.jsonl", "manifest.json", "provenance.json", "second.jsonl",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_broken_run_finished_is_not_kept_for_other_settings(settings, calls, tmp_path, monkeypatch):
    def stop(repeats):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(vqa, "_pooled", stop)
        with pytest.raises(RuntimeError, match="killed"):
            vqa.run(settings, "tiny", tmp_path / "out")
    assert (tmp_path / ".out.partial" / "manifest.json").is_file()
    calls.clear()
    other = settings.vqa.model_copy(update={"batch": 99})
    vqa.run(settings.model_copy(update={"vqa": other}), "tiny", tmp_path / "out")
    assert [len(call["questions"]) for call in calls][:4] == [99, 99, 99, 53]


def test_another_model_is_asked_with_the_bases_processor(settings, calls, tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(models, "load_processor", lambda folder, limits: folders.append((folder, limits.max_pixels)))
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "config.json").write_text("{}")
    change = {"kl_prompts": 0, "max_pixels": 8000}
    other = settings.model_copy(update={"vqa": settings.vqa.model_copy(update=change)})
    vqa.run(other, str(tmp_path / "tuned"), tmp_path / "out")
    assert folders == [(models.TINY, 8000)]
    assert {call["loaded"].model for call in calls} == {f"loaded {tmp_path / 'tuned'}"}


def test_a_model_that_answers_boxes_to_every_question_is_invalid_with_the_leak_named(
    settings, calls, tmp_path, monkeypatch
):
    vqa.run(settings, "tiny", tmp_path / "base")
    boxes = [f"[{k}, {k}, {k + 20}, 60]" for k in range(100)]
    monkeypatch.setattr(models, "generate", lambda loaded, questions, *_, **__: boxes[: len(questions)])
    vqa.run(settings, "tiny", tmp_path / "tuned")
    judged = verdict.judge(tmp_path / "base", tmp_path / "tuned", schema.Verdict(max_self_gap=100))
    assert judged.verdict == "INVALID"
    assert judged.reasons == ["easy: 100.0% of the answers of tuned are boxes, above 1.0%"]


def test_the_runner_finds_the_same_answers_in_batches_and_one_at_a_time():
    items, loaded = load(schema.VqaSet(items=24)), models.load("tiny", TINY)
    together, alone = (vqa.ask(loaded, "easy", items, 8, batch) for batch in (16, 1))
    assert together == alone
    assert len({row.filtered_resps for row in alone}) > 3


def test_questions_with_unusual_line_separators_survive_from_the_answers_to_the_verdict(calls, tmp_path):
    questions = [f"left{mark}right?" for mark in ("\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r")]
    rows = [{"file_name": "images/a.png", "question": text, "answer": "yes"} for text in questions]
    spec = schema.VqaSet(source=own_folder(tmp_path / "own", rows), items=len(rows))
    settings = config.Settings(model=TINY, vqa=schema.Vqa(batch=100, sets={"own": spec}))
    for model in ("base", "tuned"):
        vqa.run(settings, "tiny", tmp_path / model)
    answers = records.read_answers(tmp_path / "base" / "own.jsonl")
    assert [answer.input.split("\n")[0] for answer in answers] == questions
    path = tmp_path / "tuned" / "own.jsonl"
    path.write_text(path.read_text().replace('"yes", "doc_hash"', '"no", "doc_hash"').replace("1.0", "0.0"))
    judged = verdict.judge(tmp_path / "base", tmp_path / "tuned", schema.Verdict(min_items=1, max_self_gap=100))
    assert (judged.verdict, judged.sets["own"].lost) == ("REGRESSED", len(questions))
    assert [flip.question.split("\n")[0] for flip in judged.sets["own"].flips] == questions
