"""Prompts: what is asked, and what an answer must be to count."""

import json
import math
import re
import time
from typing import Any

import fuzz
import numpy as np
import pytest

from r1track.core import prompts
from r1track.core.boxes import clip
from r1track.core.errors import UserError

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


def test_answers_are_read_as_the_patterns_of_their_forms_say() -> None:
    """The patterns are plain to read but slow: a fence around 2000 blanks took 17 seconds."""
    fence = re.compile(r"^```[a-zA-Z]*\s*(.*?)\s*```$", re.DOTALL)
    thought = re.compile(r"^\s*<think>.*?</think>.*?<answer>(?P<answer>.*?)</answer>\s*$", re.DOTALL)

    def by_pattern(answer: str, think: bool) -> Any:
        if think:
            match = thought.match(answer)
            if match is None:
                return None
            answer = match["answer"]
        inner = fence.match(answer.strip())
        try:
            return json.loads(inner[1] if inner else answer.strip())
        except ValueError:
            return None

    pieces = ["```", "json", "[1, 2]", "[]", " ", "\n", "`", "x", "<think>", "</think>", "<answer>", "</answer>"]
    rng, values = np.random.default_rng(0), list[Any]()
    for think in (False, True):
        for _ in range(20_000):
            body = "".join(rng.choice(pieces, rng.integers(0, 7)))
            answer = f"<think>{body}</think><answer>{body[::2]}[1]</answer>" if think and rng.random() < 0.3 else body
            values.append(prompts._value(answer, think))
            assert values[-1] == by_pattern(answer, think), answer
    assert sum(value is not None for value in values) > 1000


@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "`",
        "```",
        "```json\n",
        "[",
        "<think>",
        "</think>",
        "</think> ",
        "<answer>",
        "</answer>",
        "9",
        "a",
        "1e9",
        "[]",
        "[1, 2, 3, 4]",
        '{"bbox_2d":',
        "\\",
    ],
)
def test_no_answer_of_100_kb_takes_long(piece: str, think: bool) -> None:
    long = piece * (100_000 // len(piece))
    begin = time.process_time()
    for answer in (
        long,
        f"```{long}",
        f"```{long}```",
        f"<think>{long}</think><answer>{long}</answer>",
        f"<think>{long}",
    ):
        assert prompts.parse_box(answer, size=84, think=think) is None
        assert prompts.denies(answer, think=think) is False
        assert answer.startswith(prompts.complete(answer, think) or answer)
    assert time.process_time() - begin < 2


SIZES: list[float | tuple[float, float]] = [84, (112, 84), 336.0, math.inf]


def test_no_mutated_answer_breaks_the_parser_and_every_box_is_finite_ordered_and_inside() -> None:
    boxes, start = 0, [*BOX, *NO_BOX[:12], *(f"<think>x</think><answer>{answer}</answer>" for answer in BOX)]
    for k, answer in enumerate(fuzz.mutated(20_000, seed=0, start=start)):
        size, think = SIZES[k % len(SIZES)], k % 3 == 0
        assert answer.startswith(prompts.complete(answer, think) or answer)
        box = prompts.parse_box(answer, size=size, think=think)
        assert not (prompts.denies(answer, think=think) and box is not None)
        if box is None:
            continue
        boxes += 1
        width, height = size if isinstance(size, tuple) else (size, size)
        assert box.shape == (4,)
        assert np.isfinite(box).all()
        assert box[0] < box[2]
        assert box[1] < box[3]
        if math.isfinite(width):
            slack = prompts.TOLERANCE * np.array([width, height])
            assert (box[:2] >= -slack).all()
            assert (box[2:] <= np.array([width, height]) + slack).all()
            assert (np.abs(clip(box, width, height) - box) <= [*slack, *slack]).all()
    assert boxes > 500


def test_a_box_that_is_written_is_read_as_it_was_in_every_form() -> None:
    rng = np.random.default_rng(3)
    for _ in range(2000):
        size = int(rng.integers(28, 1000))
        low = rng.integers(0, size - 1, 2)
        box = [*low.tolist(), *(low + rng.integers(1, size - low + 1)).tolist()]
        text = prompts.numbers(box)
        for answer in (text, f"```\n{text}\n```", f'{{"bbox_2d": {text}}}', prompts.ground_answer(box, "dog")):
            for think, whole in ((False, answer), (True, prompts.thoughtful("<answer>[1]", answer))):
                parsed = prompts.parse_box(whole, size=size, think=think)
                assert parsed is not None
                assert parsed.tolist() == box
                assert prompts.numbers(parsed) == text


@pytest.mark.parametrize("mark", ["<|image_pad|>", "<|vision_start|>", "<|video_pad|>", "<|im_end|>", "<|endoftext|>"])
def test_a_text_with_a_mark_of_the_models_own_is_refused_wherever_it_comes_from(mark: str) -> None:
    for build in (prompts.ask, prompts.ground, lambda text: prompts.unflat(f"<image><image>{text}")):
        assert build("a <|box_start|> b <image_1>")
        with pytest.raises(UserError, match=rf"a text holds {re.escape(mark)}, a mark of the model's own; take it out"):
            build(f"a{mark}b")
