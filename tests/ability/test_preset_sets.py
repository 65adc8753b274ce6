"""The preset's sets of questions: each is read in its publisher's columns and scored by its publisher's rules."""

import datasets
import pytest
from asked_sets import TEXT, TEXTS, TINY, load

from r1track.ability import metrics
from r1track.core import config, models, prompts, schema

pytestmark = pytest.mark.usefixtures("own_cache")
PRESET = config.resolve({"preset": "r1track-5k"})
NUMBER = datasets.Value("int64")
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
