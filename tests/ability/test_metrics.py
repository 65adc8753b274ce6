"""Answers are scored as the public harnesses score them, every published vector included; leaks are seen."""

import time
import typing

import fuzz
import numpy as np
import pytest

from r1track.ability import metrics
from r1track.ability.metrics import has_tags, is_box, is_empty, normalise, score
from r1track.core import schema

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


def test_every_metric_of_the_configuration_exists_and_no_other():
    assert set(metrics.BY_NAME) == set(typing.get_args(schema.VqaSet.model_fields["metric"].annotation))


@pytest.mark.parametrize("name", metrics.BY_NAME)
def test_an_empty_answer_is_wrong_and_unparsed_in_every_metric(name):
    target = {"box": "[1, 2, 30, 40]", "yes_no": "yes", "choice": "B"}.get(name, "12")
    for answer in ("", " ", ".\n"):
        assert score(name, answer, [target] * 10) == (0, 0, 1)
    assert score(name, target, [target] * 10) == (1, 1, 0)


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
        ("", "the", 0, 0),
    ],
)
def test_exact_scores_the_whole_answer_strictly_and_the_target_within_it_leniently(answer, target, strict, lenient):
    assert score("exact", answer, [target])[:2] == (strict, lenient)


@pytest.mark.parametrize(("matches", "value"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
@pytest.mark.parametrize("metric", ["vqa", "textvqa"])
def test_soft_accuracy_of_ten_answers_has_the_published_values(metric, matches, value):
    people = ["Red."] * matches + [f"other {k}" for k in range(10 - matches)]
    assert score(metric, "a red", people)[:2] == pytest.approx((value, value))
    assert score(metric, "I think it is red", people)[:2] == pytest.approx((0, value))


def test_soft_accuracy_normalises_also_when_all_ten_agree():
    assert metrics.vqa("two dogs", ["Two dogs."] * 10) == 1


def test_textvqa_tokenises_before_it_normalises():
    assert metrics.textvqa("a  Man's hat", ["man 's hat"] * 10) == 1
    assert metrics.textvqa("the man's hat", ["Man 's hat"] * 10) == 1
    assert metrics.vqa("the man's hat", ["Man 's hat"] * 10) == 0


@pytest.mark.parametrize(
    ("answer", "target", "strict"),
    [("Yes.", "yes", 1), ("T-shirt", "tshirt", 1), ("two", "2", 0), ("the dog", "dog", 0)],
)
def test_gqa_leaves_out_case_and_punctuation_only(answer, target, strict):
    assert metrics.gqa(answer, [target]) == strict


RELAXED = [
    ("23", "23%", 0), ("0.23", "23%", 1), ("10.5", "10", 1), ("10.51", "10", 0), ("1,000", "1000", 0),
    ("2014", "2015", 1), ("yes", "Yes", 1), ("0.0", "0", 0), ("0", "0", 1), ("-10", "10", 0), ("nan", "5", 0),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "target", "strict"), RELAXED)
def test_relaxed_accuracy_has_the_published_values(answer, target, strict):
    assert metrics.relaxed(answer, [target]) == strict


@pytest.mark.parametrize(
    ("answer", "target", "lenient"),
    [
        ("It is 1,000.", "1000", 1),
        ("About 23.5% of them", "23.5%", 1),
        ("3 of 1000", "1000", 1),  # as a word
        ("between 990 and 1200", "1000", 0),
        ("[990, 20, 30, 40]", "1000", 0),
        ("France, by far", "France", 1),
    ],
)
def test_relaxed_accuracy_reads_the_only_number_of_a_sentence(answer, target, lenient):
    assert score("relaxed", answer, [target])[:2] == (0, lenient)


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "unparsed"),
    [
        ("Yes", 1, 1, 0), ("yes.", 1, 1, 0), ("Yes, there is", 0, 1, 0), ("no", 0, 0, 0), ("No, yes", 0, 0, 1),
        ("there is", 0, 0, 1), ("eyes", 0, 0, 1), ("<answer>yes</answer>", 0, 1, 0), ("not known", 0, 0, 1),
    ],
)  # fmt: skip
def test_pope_wants_yes_or_no_and_not_both(answer, strict, lenient, unparsed):
    assert score("yes_no", answer, ["yes"]) == (strict, lenient, unparsed)


def test_popes_figures_agree_with_counting():
    random = np.random.default_rng(0)
    answers = random.choice(["yes", "No.", "well", "Yes, it is"], 400).tolist()
    targets = random.choice(["yes", "no"], 400).tolist()
    said = np.array([{"y": 1, "n": 0}.get(a[0].lower(), -1) for a in answers])
    wanted = np.array([t == "yes" for t in targets]).astype(int)
    precision, recall = wanted[said == 1].mean(), (said[wanted == 1] == 1).mean()
    figures = metrics.yes_no_figures(answers, targets)
    assert figures["accuracy"] == pytest.approx((said == wanted).mean())
    assert figures["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert figures["yes_rate"] == pytest.approx((said == 1).mean())
    assert metrics.yes_no_figures(["no"], ["no"]) == {"accuracy": 1, "f1": 0, "yes_rate": 0}


OPTIONS = ["B", "a dog", "a cat", "two cats", "none"]


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "unparsed"),
    [
        ("B", 1, 1, 0), (" (B) ", 1, 1, 0), ("B.", 1, 1, 0), ("(B):", 1, 1, 0), ("C", 0, 0, 0), ("b", 0, 0, 1),
        ("The answer is B.", 0, 1, 0), ("Answer: (B)", 0, 1, 0), ("B. a cat", 0, 1, 0), ("A cat", 0, 1, 0),
        ("It shows a cat.", 0, 1, 0), ("<answer>B</answer>", 0, 1, 0), ("a dog or a cat", 0, 0, 1),
        ("I think it is B because A is wrong", 0, 0, 1), ("A horse is shown", 0, 0, 1), ("BC", 0, 0, 1),
        ("the answer is a horse", 0, 0, 1), ("[12, 30, 50, 80]", 0, 0, 1),
    ],
)  # fmt: skip
def test_a_choice_is_read_from_its_letter_or_from_the_only_option_named(answer, strict, lenient, unparsed):
    assert score("choice", answer, OPTIONS) == (strict, lenient, unparsed)


def test_a_choice_without_known_options_is_read_from_its_letter():
    assert score("choice", "A cat is shown", ["A"]) == (0, 0, 1)
    assert score("choice", "I think it is B because A is wrong", ["A"]) == (0, 0, 1)
    assert score("choice", "B. a cat", ["B"]) == (0, 1, 0)


def test_ocrbench_looks_for_the_target_anywhere_and_for_formulas_by_case_without_spaces():
    assert metrics.contains("It reads\nOPEN now", ["open NOW", "shut"]) == 1
    assert metrics.contains("ＯＰＥＮ", ["open"]) == 1
    assert metrics.contains("o pen", ["open"]) == 0
    assert metrics.formula("x ^ { 2 } + Y", ["x^{2}+Y"]) == 1
    assert metrics.formula("x^{2}+y", ["x^{2}+Y"]) == 0


@pytest.mark.parametrize(
    ("answer", "target", "value"),
    [("Paris", "paris", 1), ("abcd", "abxy", 0.5), ("abcd", "axyz", 0), ("colour", "color", 5 / 6), ("", "ab", 0)],
)
def test_anls_has_the_published_values(answer, target, value):
    assert metrics.anls(answer, ["zzzzzzzz", target]) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "unparsed"),
    [
        ("[10, 10, 30, 30]", 1, 1, 0),
        ('```json\n[\n\t{"bbox_2d": [10, 10, 30, 30], "label": "man"}\n]\n```', 1, 1, 0),
        ('[{"bbox_2d": [10, 10, 30, 30], "lab', 0, 1, 0),
        ("He is at [10.0, 10, 30, 30].", 0, 1, 0),
        ("[10, 10, 30, 20]", 1, 1, 0),  # half of it: an IoU of .5
        ("[10, 10, 30, 19]", 0, 0, 0),
        ("[30, 30, 10, 10]", 0, 0, 1),
        ("on the left", 0, 0, 1),
    ],
)
def test_refcoco_wants_half_of_the_box(answer, strict, lenient, unparsed):
    assert score("box", answer, ["[10, 10, 30, 30]"]) == (strict, lenient, unparsed)


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
    assert not is_empty("A")


K100 = 100_000
PIECES = ["9", " ", "\n", "a ", "the ", "[1, ", "[1,2,3,4]", "(1 ,", "<answer>", "answer: ", "'s", "1,", "İ"]
LONG = [
    *(piece * (K100 // len(piece)) for piece in PIECES),
    *(start + K100 * " " + "x" for start in ("[1", "[1 2 3", "A", "(A", "A. ", "answer is", "answer: A", "<answer>")),
    "[1, 2, 3" + K100 * "," + "x", "[" * 1000 + "1 2 3 4" * 10_000, "1e" + K100 * "9", "-" * K100 + "1",
]  # fmt: skip
TARGETS = {"box": ["[1, 2, 30, 40]"], "yes_no": ["yes"], "choice": ["B", "a cat", "a dog"]}


@pytest.mark.parametrize("metric", metrics.BY_NAME)
def test_no_answer_of_100_kb_takes_long_in_any_metric(metric):
    targets = TARGETS.get(metric, ["12", "red", "a", "9" * 50] * 2 + ["b", "1e9"])
    for answer in LONG:
        begin = time.process_time()
        assert all(0 <= value <= 1 for value in score(metric, answer, targets))
        assert time.process_time() - begin < 2, answer[:40]


@pytest.mark.parametrize("read", [is_box, has_tags, is_empty, normalise])
def test_no_answer_of_100_kb_takes_long_to_describe(read):
    begin = time.process_time()
    for answer in LONG:
        read(answer)
    assert time.process_time() - begin < 10


def test_anls_of_two_long_texts_compares_their_beginnings():
    begin = time.process_time()
    assert metrics.anls("ab" * 50_000, ["ba" * 50_000]) == 1 - 2 / metrics.LONGEST
    assert metrics.anls("a" * metrics.LONGEST + "b", ["a" * metrics.LONGEST + "c"]) == 1
    assert metrics.anls("a" * K100, ["a" * 400]) == 0
    assert time.process_time() - begin < 10


@pytest.mark.parametrize("word", ["nan", "Infinity", "-inf", "1e999", "-9e99999999"])
def test_what_is_no_finite_number_is_a_word(word):
    assert metrics.relaxed(word.upper(), [word]) == 1
    assert metrics.relaxed("5", [word]) == metrics.relaxed(word, ["5"]) == 0


def test_no_mutated_answer_breaks_a_metric_and_every_score_is_a_share():
    answers = fuzz.mutated(3000, seed=1, start=["Yes.", "B. a cat", "1,000", "[1, 2, 30, 40]", "It's 23.5%", *BOXES])
    for k, answer in enumerate(answers):
        normalise(answer)
        assert is_empty(answer) is not any(character.isalnum() or character == "_" for character in answer)
        for metric in metrics.BY_NAME:
            targets = TARGETS.get(metric, [answers[k - 1], "red", "12"])
            strict, lenient, unparsed = score(metric, answer, targets)
            assert 0 <= strict <= lenient <= 1
            assert unparsed in (0, 1)
