"""Prompts: the questions to the model and the reading of its answers, the same for training, tracking and reward.

A tracking prompt is: template image, text about it, perhaps a later template and text about it, search image, question.
All before the search image stays, until the later template is replaced. Boxes are x1, y1, x2, y2 in whole pixels.
"""

import json
import math
import re
from collections.abc import Sequence
from string import ascii_letters
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from r1track.core.boxes import Array
from r1track.core.schema import Task
from r1track.core.section import BoxForm, without_marks

TEMPLATE_HEAD = "The first image is the template. The target in it has the box "
SECOND_HEAD = ". The second image shows it later:"
SECOND_BOX = "There it has the box "
SEARCH_HEAD = ". The {} image is the search region:"
QUESTION = "Where is the same target in the search region? "
ANSWER_PLAIN = "Answer only with its box [x1, y1, x2, y2] in pixels of the search region."
ANSWER_THINK = (
    "Compare the two images first, inside <think> </think>. Then give its box in pixels of the search region "
    "as <answer>[x1, y1, x2, y2]</answer>."
)
SHORT = "\nAnswer the question using a single word or phrase."
GROUND_HEAD = "Locate the "
GROUND_TAIL = " in this image and output its bbox coordinates in JSON format."
PLACE = "<image>"  # stands for an image in a question that is one text

TOLERANCE = 0.05  # a box is valid up to this distance outside the crop, relative to the side of the crop

_FENCE = "```"
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
# An image that a question names: `<image_2>`, `image 2`, `2nd image`, `second image`, `last image`; group 1: as that of
# a box that it gives. Which one `the other image` is, its words do not say.
_NAMED = re.compile(
    r"([\[(][-\d., ]+[\])]\s*(?:in|of|on|from)\s+(?:the\s+)?)?"
    r"<?(?:\b(?:image|picture|frame)[ _#-]{0,2}(\d{1,3})\b|\b(?:(\d{1,3})(?:st|nd|rd|th)|"
    rf"({'|'.join(_ORDINALS)}|last|final|other|next|following))\s+(?:image|picture|frame)\b)",
    re.IGNORECASE,
)

Messages = list[dict[str, Any]]
Image = TypeVar("Image")


def numbers(box: ArrayLike, form: BoxForm = "rounded") -> str:
    """A box as the model reads and writes it: `[x1, y1, x2, y2]`, rounded to whole numbers, half up; or `truncated`."""
    values = np.asarray(box, dtype=np.float64)
    if form == "truncated":
        return "[" + ",".join(str(math.trunc(v)) for v in values) + "]"
    return "[" + ", ".join(str(math.floor(v + 0.5)) for v in values) + "]"


def _text(text: str) -> dict[str, str]:
    """A text as a part of a message. Raises UserError where it holds a mark of the model's own."""
    return {"type": "text", "text": without_marks(text)}


def build(template_box: ArrayLike, *, second_box: ArrayLike | None = None, think: bool = False) -> Messages:
    """The tracking question, as chat messages with two image places, or three with a later template (see `places`).

    template_box, second_box: x1, y1, x2, y2 of the target in pixels of the template crop and of the later template's.
    """
    content = [{"type": "image"}, _text(TEMPLATE_HEAD + numbers(template_box) + SEARCH_HEAD.format("second"))]
    if second_box is not None:
        content[-1] = _text(TEMPLATE_HEAD + numbers(template_box) + SECOND_HEAD)
        content += [{"type": "image"}, _text(SECOND_BOX + numbers(second_box) + SEARCH_HEAD.format("third"))]
    content += [{"type": "image"}, _text(QUESTION + (ANSWER_THINK if think else ANSWER_PLAIN))]
    return [{"role": "user", "content": content}]


def question(task: Task, template_box: ArrayLike, second_box: ArrayLike | None = None) -> Messages:
    """The tracking question of a configuration: task.prompt with its places filled, or `build`, whose boxes it takes.

    The images of task.prompt are template and search region in the order of their places: see `search_first`.
    """
    if task.prompt is None:
        return build(template_box, second_box=second_box, think=task.think)
    words = task.prompt.replace("{box}", numbers(template_box, task.box))
    parts = [part for part in re.split(r"(\{template\}|\{search\})", words) if part]
    content = [{"type": "image"} if part in ("{template}", "{search}") else _text(part) for part in parts]
    return [{"role": "user", "content": content}]


def search_first(task: Task) -> bool:
    """Whether the search region stands before the template in the tracking question."""
    return bool(task.prompt) and str(task.prompt).index("{search}") < str(task.prompt).index("{template}")


def pattern(task: Task) -> re.Pattern[str]:
    """What the tracking question, as one text (`flat`), is whatever box it gives."""
    box, form = (0.0, 0.0, 0.0, 0.0), "rounded" if task.prompt is None else task.box
    return re.compile(re.escape(flat(question(task, box))).replace(re.escape(numbers(box, form)), r"\[[-\d., ]+\]"))


def complete(answer: str, think: bool = False) -> str | None:
    """The text of an answer without what a model adds to it, which is ignored; None while it is not complete.

    A thought may say what the form of an answer is: it ends none. Time grows with the length of the answer, no faster.
    """
    text, depth, end = answer.lstrip(), 0, 0
    if think:
        thought = text.find("</think>") if text.startswith("<think>") else 0
        closing = text.find("</answer>", thought)
        end = closing + len("</answer>") if thought >= 0 and closing >= 0 else 0
    elif text.startswith("["):
        for bracket in re.finditer(r"[\[\]]", text):
            depth += 1 if bracket[0] == "[" else -1
            if not depth:
                end = bracket.end()
                break
    return answer[: len(answer) - len(text) + end] if end else None


def thoughtful(thought: str, answer: str) -> str:
    """An answer with reasoning, in the form that `parse_box` reads with `think`."""
    return f"<think>{thought}</think><answer>{answer}</answer>"


def search_place(problem: str, images: int) -> int | None:
    """Which of the `images` of a question is the search region, counted from 0; None where its words do not say.

    It is the one that is named last, as `<image_2>`, `image 2` or `second image`, and nowhere as that of a box that the
    question gives (`[1, 2, 3, 4] in <image_1>`). The first image is it only where another one has such a box.
    """
    named = [(_numbered(match, images), bool(match[1])) for match in _NAMED.finditer(problem)]
    with_box = {number for number, has_box in named if has_box}
    number = next((number for number, _ in reversed(named) if number not in with_box), 0)
    return number - 1 if (1 if with_box else 2) <= number <= images else None


def _numbered(match: re.Match[str], images: int) -> int:
    """The number of the image that a match of _NAMED names, counted from 1; 0 where it is not known."""
    word = (match[4] or "").lower()
    if not word:
        return int(match[2] or match[3])
    return images if word in ("last", "final") else _ORDINALS.index(word) + 1 if word in _ORDINALS else 0


def places(images: Sequence[Image], problem: str | None = None) -> list[Image]:
    """The images of a pair (template, search, then any later template) in the order of their places in the prompt.

    problem: the pair's own question, whose words say where the search region is; else it is the last.
    """
    ordered = [images[0], *images[2:]]
    ordered.insert(_search_index(problem, len(images)), images[1])
    return ordered


def search_last(images: Sequence[Image], problem: str | None) -> list[Image]:
    """The images in the order of their places (`places`) with the search region behind the others."""
    at = _search_index(problem, len(images))
    return [*images[:at], *images[at + 1 :], images[at]]


def _search_index(problem: str | None, images: int) -> int:
    place = search_place(problem, images) if problem else None
    return images - 1 if place is None else place


def flat(messages: Messages) -> str:
    """A question as one text, with PLACE for every image."""
    return "".join(part.get("text", PLACE) for part in messages[0]["content"])


def unflat(text: str) -> Messages:
    """A question from one text with PLACE for every image; white space between two images stays."""
    parts = [part for part in re.split(f"({PLACE})", text) if part]
    return [{"role": "user", "content": [{"type": "image"} if part == PLACE else _text(part) for part in parts]}]


def ask(question: str) -> Messages:
    """A question about one image, as chat messages with one image place."""
    return [{"role": "user", "content": [{"type": "image"}, _text(question)]}]


def ground(description: str) -> Messages:
    """Qwen2.5-VL's own grounding question for one named object in one image."""
    return ask(GROUND_HEAD + description + GROUND_TAIL)


def ground_answer(box: ArrayLike, description: str) -> str:
    """The answer to `ground` in the form that Qwen2.5-VL gives: fenced JSON with one labelled `bbox_2d`."""
    return '```json\n[\n\t{"bbox_2d": ' + numbers(box) + ', "label": "' + description + '"}\n]\n```'


def parse_box(answer: str, *, size: float | tuple[float, float], think: bool = False) -> Array | None:
    """The box in an answer, an array x1, y1, x2, y2 in pixels, or None if there is no valid box.

    Valid forms are `[x1, y1, x2, y2]`, `{"bbox_2d": [x1, y1, x2, y2]}` and a list of one of these, fenced or not;
    with `think`, only inside `<think>…</think>…<answer>…</answer>`. The box must be finite, ordered (x1 < x2, y1 < y2)
    and inside [0, size] up to TOLERANCE; it is not clipped. size: side of the crop, or (width, height), in pixels.
    """
    value = _value(answer, think)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict | list):
        value = value[0]
    value = value.get("bbox_2d") if isinstance(value, dict) else value
    if not isinstance(value, list) or len(value) != 4 or not all(type(v) in (int, float) for v in value):
        return None
    if any(abs(v) > 1e6 for v in value):  # also catches infinities; NaN fails the comparisons below
        return None
    box, limit = np.array(value, dtype=np.float64), np.broadcast_to(np.asarray(size, dtype=np.float64), 2)
    inside = (box[:2] >= -TOLERANCE * limit).all() and (box[2:] <= limit + TOLERANCE * limit).all()
    return box if inside and box[0] < box[2] and box[1] < box[3] else None


def denies(answer: str, *, think: bool = False) -> bool:
    """Whether an answer is an empty list: the model says that the target is not visible."""
    return _value(answer, think) == []


def thought_tags(answer: str) -> tuple[int, int] | None:
    """Where `</think>` and, anywhere after it, `<answer>` stand in an answer that begins with `<think>`."""
    end = answer.find("</think>", len("<think>"))
    start = answer.find("<answer>", end)
    return (end, start) if answer.startswith("<think>") and end >= 0 and start >= 0 else None


def _value(answer: str, think: bool) -> Any:
    """The JSON value in an answer, or None. The time grows with the length of the answer, and no faster."""
    answer = answer.strip()
    if think:
        tags = thought_tags(answer)
        if tags is None or not answer.endswith("</answer>"):
            return None
        answer = answer[tags[1] + len("<answer>") : -len("</answer>")].strip()
    if len(answer) >= 2 * len(_FENCE) and answer.startswith(_FENCE) and answer.endswith(_FENCE):
        answer = answer[len(_FENCE) : -len(_FENCE)].lstrip(ascii_letters)  # the name of the language
    try:
        return json.loads(answer.strip())
    except (ValueError, RecursionError):  # not JSON, an integer of too many digits, or nested without end
        return None
