"""Rewards: the paper's figures on ordered boxes, bounds on everything else."""

import math

import numpy as np
import pytest

from r1track.core import prompts
from r1track.training import rewards

TARGET = [100, 120, 180, 200]


def reference(box: list[float], target: list[float]) -> float:
    """The published shaping, written again from its description, for two ordered boxes."""
    width = min(box[2], target[2]) - max(box[0], target[0])
    height = min(box[3], target[3]) - max(box[1], target[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, target)]
    union = sum(areas) - shared
    hull = (max(box[2], target[2]) - min(box[0], target[0])) * (max(box[3], target[3]) - min(box[1], target[1]))
    g = shared / union - (hull - union) / hull
    if g <= 0:
        return g
    return 0.0 if g < 0.4 else g if g <= 0.75 else g + 0.2 if g < 0.95 else g + 0.5


def test_the_paper_scheme_gives_the_published_figures_on_ordered_boxes() -> None:
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(3000):
        corners = np.round(np.array(TARGET) + rng.normal(0, rng.choice([1.0, 8.0, 60.0]), 4))
        if not ((corners[:2] < corners[2:]).all() and (corners >= 0).all() and (corners <= 336).all()):
            continue
        found = rewards.score(prompts.numbers(corners), TARGET)
        assert found["total"] == pytest.approx(reference(corners.tolist(), TARGET), abs=1e-12)
        seen.add(int(np.sign(found["total"])) + (2 if found["total"] > 0.95 else 0))
    assert seen == {-1, 0, 1, 3}  # every branch of the shaping was met


def test_a_perfect_box_is_worth_one_and_a_half() -> None:
    assert rewards.score(str(TARGET), TARGET)["total"] == 1.5
    assert rewards.score(str(TARGET), TARGET, scheme="iou")["total"] == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "[180, 200, 100, 120]",
        "[336, 336, 0, 0]",
        "[10000, 10000, -10000, -10000]",
        "[100, 120, 180, 200, 5]",
        "no",
        "[]",
    ],
)
@pytest.mark.parametrize("scheme", ["paper", "iou"])
def test_answers_that_the_reference_overpaid_are_invalid(answer: str, scheme: str) -> None:
    found = rewards.score(answer, TARGET, scheme=scheme)  # type: ignore[arg-type]
    assert (found["total"], found["valid"]) == (-1, 0)


THOUGHT = "<think>x</think><answer>{}</answer>"


@pytest.mark.parametrize(
    ("answer", "paper", "iou", "valid"),
    [
        ("[]", 1.5, 1.0, 1.0),
        (" [ ]\n", 1.5, 1.0, 1.0),
        ("```json\n[]\n```", 1.5, 1.0, 1.0),
        (str(TARGET), 0.0, 0.0, 1.0),
        ('{"bbox_2d": [0, 0, 336, 336]}', 0.0, 0.0, 1.0),
        ("[[]]", -1.0, -1.0, 0.0),
        ("no target", -1.0, -1.0, 0.0),
        ("[180, 200, 100, 120]", -1.0, -1.0, 0.0),
    ],
)
def test_without_a_target_an_empty_list_is_a_perfect_answer_a_box_worth_nothing_and_the_rest_unreadable(
    answer: str, paper: float, iou: float, valid: float
) -> None:
    for scheme, total in (("paper", paper), ("iou", iou)):
        parts = rewards.score(answer, [], scheme=scheme)  # type: ignore[arg-type]
        assert (parts["total"], parts["valid"]) == (total, valid)
        assert parts["iou"] == parts["giou"] == max(iou, 0.0)
        thought = rewards.score(THOUGHT.format(answer), [], scheme=scheme, think=True, tokens=200)  # type: ignore[arg-type]
        assert thought["total"] == pytest.approx(total + (0.05 if scheme == "paper" and valid else 0))


@pytest.mark.parametrize(("tokens", "total"), [(127, -1.0), (128, 1.55), (512, 1.45)])
def test_the_length_of_a_thought_counts_without_a_target_too(tokens: int, total: float) -> None:
    parts = rewards.score(THOUGHT.format("[]"), [], think=True, tokens=tokens)
    assert parts["total"] == pytest.approx(total)


def random_answer(rng: np.random.Generator, target: list[float]) -> tuple[str, list[float] | None]:
    """An answer of any kind, and its corners where it is an ordered box inside the crop in a form that is read."""
    kind = rng.integers(0, 12)
    box = np.round(np.array(target) + rng.normal(0, rng.choice([1.0, 8.0, 60.0]), 4), int(rng.integers(0, 3))).tolist()
    good = box[0] < box[2] and box[1] < box[3] and min(box) >= 0 and max(box) <= 336
    text = "[" + ", ".join(f"{v:g}" for v in box) + "]"
    wild = rng.choice([-1e308, -1e9, -20.0, 0.0, 3.0, 336.0, 350.0, 1e9, 1e308], 4).tolist()
    if kind < 5:
        forms = ("{}", "```json\n{}\n```", '{{"bbox_2d": {}}}', '[{{"bbox_2d": {}, "label": "x"}}]', " {} ")
        return forms[kind].format(text), [float(f"{v:g}") for v in box] if good else None
    broken = (
        text[:-1], text.replace(",", ""), f"{text} px", f"the box is {text}", f"[{text}]x",
        str([*box, 1.0]), str(wild), "[" + "9" * 5000 + ", 1, 2, 3]", "[NaN, Infinity, -Infinity, 1]", "[true, 1, 2]",
        f"<answer>{text}</answer>", "".join(chr(c) for c in rng.integers(32, 0x2FFF, 12)), "[" * 3000, "", "null", "{}",
        str(box[::-1]) if box[3] > box[1] else "[2, 2, 1, 1]",
    )  # fmt: skip
    return str(rng.choice(np.array(broken, dtype=object))), None


def test_a_hundred_thousand_random_answers_get_the_published_figure_or_stay_in_bounds() -> None:
    rng, exact, invalid = np.random.default_rng(2), 0, 0
    for _ in range(100_000):
        low = rng.uniform(0, 250, 2)
        target = [*low.tolist(), *(low + rng.uniform(4, 86, 2)).tolist()]
        text, box = random_answer(rng, target)
        paper, iou = rewards.score(text, target), rewards.score(text, target, scheme="iou")
        for found, top in ((paper, 1.5), (iou, 1.0)):
            assert all(math.isfinite(value) for value in found.values())
            assert found["total"] == -1 if not found["valid"] else -1 <= found["total"] <= top
        if box is not None:
            assert abs(paper["total"] - reference(box, target)) < 1e-9
            exact += 1
        invalid += not paper["valid"]
        tokens = int(rng.integers(0, 3000))
        thought = rewards.score(f"<think>x</think><answer>{text}</answer>", target, think=True, tokens=tokens)
        assert thought["total"] == -1 if not thought["valid"] else -1.05 <= thought["total"] <= 1.55
    assert exact > 10_000
    assert invalid > 10_000


@pytest.mark.parametrize(
    ("tokens", "total"),
    [(127, -1.0), (128, 1.55), (448, 1.55), (449, 1.55 - 0.1 / 64), (480, 1.5), (512, 1.45), (5000, 1.45)],
)
def test_thinking_has_a_shortest_length_and_a_price_for_the_longest(tokens: int, total: float) -> None:
    found = rewards.score(f"<think>x</think><answer>{TARGET}</answer>", TARGET, think=True, tokens=tokens)
    assert found["total"] == pytest.approx(total)


def test_the_parts_add_up() -> None:
    found = rewards.score(f"<think>x</think><answer>{TARGET}</answer>", TARGET, think=True, tokens=500)
    assert found["total"] == pytest.approx(1.5 + found["format"] + found["length"])
    assert found["format"] == 0.05
    assert found["iou"] == found["giou"] == 1
