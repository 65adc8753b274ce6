"""Prompts: what is asked, and what an answer must be to count."""

import json

import numpy as np
import pytest

from r1track.core import prompts

NO_BOX = [
    "",
    "[1, 2, 3]",
    "[1, 2, 3, 4, 5]",
    "[30, 20, 10, 40]",  # x unordered
    "[10, 40, 30, 20]",  # y unordered
    "[10, 20, 10, 40]",  # no width
    "[10, 20, 30, Infinity]",
    "[NaN, 20, 30, 40]",
    "[10, 20, 30, 1" + "0" * 400 + "]",
    "[10, 20, 30, 1" + "0" * 5000 + "]",
    "[-30, 20, 30, 40]",
    "[10, 20, 30, 400]",
    "[true, 20, 30, 40]",
    '["10", "20", "30", "40"]',
    "[10px, 20px, 30px, 40px]",
    "The box is [10, 20, 30, 40]",
    "[10, 20, 30, 40] and more",
    "<answer>[10, 20, 30, 40]</answer>",
    '{"box": [10, 20, 30, 40]}',
    '[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6, 7, 8]}]',
    "[[[[10, 20, 30, 40]]]]",
    "[" * 100_000,
    "10, 20, 30, 40",
    "null",
]
BOX = [
    "[10, 20, 30, 40]",
    " [10,20,30,40]\n",
    "[10.0, 20, 30, 40.0]",
    "```json\n[10, 20, 30, 40]\n```",
    '{"bbox_2d": [10, 20, 30, 40]}',
    '```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "dog"}\n]\n```',
    "[[10, 20, 30, 40]]",
]


@pytest.mark.parametrize("answer", BOX)
def test_a_box_is_read_bare_fenced_or_as_bbox_2d(answer: str) -> None:
    parsed = prompts.parse_box(answer, size=84)
    assert parsed is not None
    assert parsed.tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize("answer", NO_BOX)
def test_anything_else_is_no_box(answer: str) -> None:
    assert prompts.parse_box(answer, size=336) is None


def test_corners_may_lie_a_twentieth_outside_and_are_not_clipped() -> None:
    parsed = prompts.parse_box("[-4, 0, 88, 84]", size=84)
    assert parsed is not None
    assert parsed.tolist() == [-4, 0, 88, 84]
    assert prompts.parse_box("[-5, 0, 84, 84]", size=84) is None
    assert prompts.parse_box("[100, 0, 112, 84]", size=(112, 84)) is not None
    assert prompts.parse_box("[0, 0, 84, 100]", size=(112, 84)) is None


def test_with_thinking_the_box_counts_only_inside_its_tags() -> None:
    good = "<think>red, left</think>\n<answer>[1, 2, 3, 4]</answer>"
    assert prompts.parse_box(good, size=84, think=True) is not None
    for bad in ("[1, 2, 3, 4]", "<answer>[1, 2, 3, 4]</answer>", good + " so", "<think>[1, 2, 3, 4]</think>"):
        assert prompts.parse_box(bad, size=84, think=True) is None


def test_what_the_prompt_writes_the_parser_reads() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        low = rng.uniform(0, 40, 2)
        box = np.concatenate([low, low + rng.uniform(2, 40, 2)])
        parsed = prompts.parse_box(prompts.numbers(box), size=84)
        assert parsed is not None
        assert np.abs(parsed - box).max() <= 0.5
        assert prompts.parse_box(prompts.ground_answer(box, "red star"), size=84) is not None


def test_coordinates_are_rounded_to_the_nearest_pixel_halves_up() -> None:
    assert prompts.numbers([0.49, 0.5, 1.5, 2.51]) == "[0, 1, 2, 3]"


@pytest.mark.parametrize("think", [False, True])
def test_everything_up_to_the_search_image_is_the_same_for_every_frame(think: bool) -> None:
    (message,) = prompts.build([1, 2, 3, 4], think=think)
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["image", "text", "image", "text"]
    assert "[1, 2, 3, 4]" in message["content"][1]["text"]
    assert "<image>" not in json.dumps(message)
    assert ("<think>" in message["content"][3]["text"]) is think
