"""Metrics: how one answer is scored, and how it is seen to be a leak of the tracking task.

A metric is a function (answer, targets) -> Scores, targets being the right answers. `strict` scores the answer as it
stands, as the public harnesses do; `lenient` also finds the target inside a longer answer. A model that falls in
`strict` alone has changed its form; one that falls in both has lost ability. docs/verdict.md names the differences from
lmms-eval 0.7.3.
"""

import math
import re
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from r1track import prompts
from r1track.boxes import iou

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}
ARTICLES = {"a", "an", "the"}
# What VQA's own table restores. "let's" and "she's" stay out because it does not restore them, and "I'm", "I've" and
# "I'd've" because it has them with a capital I, which a lowered answer never has.
_TABLE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# Each is known without any one of its apostrophes.
RESTORED = {
    word[:place] + word[place + 1 :]: word
    for word in _TABLE.split()
    for place, letter in enumerate(word)
    if letter == "'"
}

_NUMBER = r"-?\d+(?:\.\d*)?"
_NEXT = rf"(?:\s*,\s*|\s+){_NUMBER}"
# The second form is a box that the limit on new tokens has cut off.
_BOX = re.compile(
    rf"[\[(]\s*{_NUMBER}(?:{_NEXT}){{3}}\s*[\])]|\[\s*{_NUMBER}(?:{_NEXT}){{1,3}}[\s,]*$|bbox", re.IGNORECASE
)
_TAGS = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
_TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.IGNORECASE | re.DOTALL)


_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_LETTER = re.compile(r"^\s*\(?([A-Z])\)?[.:)]?\s*$")
_LETTER_WITHIN = re.compile(r"(?i:answer(?: is|:))\s*\(?([A-J])\)?(?:[.,:;]?\s*$|[,:;\n]|\.\s)|^\s*\(?([A-J])[.:)]\s+\S")
_FIGURE = re.compile(r"-?\d[\d,]*(?:\.\d+)?%?")
_CORNERS = re.compile(rf"\[\s*({_NUMBER})" + rf"\s*,\s*({_NUMBER})" * 3 + r"\s*\]")


class Scores(NamedTuple):
    """Scores of one answer, each from 0 to 1; `unparsed` is 1 where the lenient reading finds no answer in it."""

    strict: float
    lenient: float
    unparsed: float


def normalise(answer: str) -> str:
    """An answer in the form in which VQA compares answers (Antol et al. 2015, the evaluation of visualqa.org).

    Punctuation goes or becomes a space, words are lowered, number words become digits, articles go, apostrophes return.
    """
    text = re.sub(r"[\n\t]", " ", answer).strip()
    has_thousands = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or has_thousands else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = [NUMBERS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(RESTORED.get(word, word) for word in words if word not in ARTICLES)


def is_box(answer: str) -> bool:
    """Whether an answer holds a box: four numbers in brackets, also cut off, or the key of Qwen's boxes."""
    return _BOX.search(answer) is not None


def has_tags(answer: str) -> bool:
    """Whether an answer holds think or answer tags."""
    return _TAGS.search(answer) is not None


def is_empty(answer: str) -> bool:
    """Whether an answer holds no letter and no digit."""
    return re.search(r"\w", answer) is None


def _scores(strict: float, lenient: float, unparsed: bool) -> Scores:
    return Scores(float(strict), float(max(strict, lenient)), float(unparsed))


def _said(answer: str) -> str:
    """What stands in answer tags, where there are any."""
    tagged = _TAGGED.search(answer)
    return tagged[1] if tagged else answer


def _within(answer: str, target: str) -> bool:
    """Whether the target stands in the answer as a run of whole words.

    It never does in a box, nor, when it is yes or no, in an answer that says both.
    """
    wanted, said = normalise(target), normalise(_said(answer))
    both = wanted in ("yes", "no") and {"yes", "no"} <= set(said.split())
    return bool(wanted) and f" {wanted} " in f" {said} " and not both and not is_box(answer)


def exact(answer: str, targets: Sequence[str]) -> Scores:
    """Equality after normalisation."""
    strict = any(normalise(answer) == normalise(target) != "" for target in targets)
    return _scores(strict, any(_within(answer, target) for target in targets), is_empty(answer))


def gqa(answer: str, targets: Sequence[str]) -> Scores:
    """Equality of what is left without case and punctuation (GQA)."""
    bare = [text.strip().lower().translate(str.maketrans("", "", string.punctuation)) for text in (answer, *targets)]
    return _scores(bare[0] in bare[1:], any(_within(answer, target) for target in targets), is_empty(answer))


def _agreement(said: str, answers: Sequence[str]) -> float:
    """Mean over the answers of min(1, how many of the others are `said` / 3)."""
    equal = [answer == said for answer in answers]
    return float(np.mean([min(1.0, (sum(equal) - one) / 3) for one in equal]))


def vqa(answer: str, targets: Sequence[str]) -> Scores:
    """VQAv2's soft accuracy over the ten people's answers; lenient: the best of those that stand in the answer."""
    people = [normalise(target) for target in targets]
    within = [_agreement(normalise(target), people) for target in set(targets) if _within(answer, target)]
    return _scores(_agreement(normalise(answer), people), max(within, default=0), is_empty(answer))


def tokenised(text: str) -> str:
    """A text as TextVQA prepares it for `normalise`."""
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def textvqa(answer: str, targets: Sequence[str]) -> Scores:
    """`vqa` on tokenised texts."""
    return vqa(tokenised(answer), [tokenised(target) for target in targets])


def _value(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _near(answer: str, target: str) -> bool:
    said, wanted = _value(answer), _value(target)
    if said is not None and wanted:
        return abs(said - wanted) / abs(wanted) <= 0.05
    return answer.lower() == target.lower()


def relaxed(answer: str, targets: Sequence[str]) -> Scores:
    """ChartQA's relaxed accuracy: numbers may be 5 % off, texts must be equal; lenient: its only number may."""
    numbers = [] if is_box(answer) else _FIGURE.findall(_said(answer))
    only = numbers[0].replace(",", "") if len(numbers) == 1 else ""
    strict = any(_near(answer.strip(), target) for target in targets)
    lenient = any(_near(only, target) or _within(answer, target) for target in targets)
    return _scores(strict, lenient, is_empty(answer))


def yes_or_no(answer: str) -> str | None:
    """Which of yes and no is among the words of an answer; None for neither and for both (POPE)."""
    found = {"yes", "no"} & set(re.findall(r"[a-z]+", _said(answer).lower()))
    return found.pop() if len(found) == 1 else None


def yes_no(answer: str, targets: Sequence[str]) -> Scores:
    """POPE: the answer is yes or no; lenient: it says one of them and not the other."""
    said, wanted = yes_or_no(answer), targets[0].lower()
    return _scores(normalise(answer) == wanted, said == wanted, said is None)


def yes_no_figures(answers: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """POPE's figures of a set, leniently read: accuracy, F1 of yes, and how often yes is said; shares from 0 to 1."""
    said, wanted = [yes_or_no(answer) for answer in answers], [target.lower() for target in targets]
    hits = sum(a == b == "yes" for a, b in zip(said, wanted, strict=True))
    claims, right = said.count("yes"), sum(a == b for a, b in zip(said, wanted, strict=True))
    f1 = 2 * hits / max(1, claims + wanted.count("yes"))
    return {"accuracy": right / len(said), "f1": f1, "yes_rate": claims / len(said)}


def choice(answer: str, targets: Sequence[str]) -> Scores:
    """Multiple choice by letter. targets: the right letter, then the texts of all options, where they are known.

    Lenient: also "the answer is B", "B. a cat", or the text of exactly one option.
    """
    strict, said = _LETTER.match(answer), _said(answer)
    within = _LETTER.match(said) or _LETTER_WITHIN.search(said)
    letter = next(filter(None, within.groups())) if within else None
    named = [place for place, text in enumerate(targets[1:]) if _within(answer, text)]
    if letter is None and len(named) == 1:
        letter = string.ascii_uppercase[named[0]]
    return _scores(strict is not None and strict[1] == targets[0], letter == targets[0], letter is None)


def contains(answer: str, targets: Sequence[str]) -> Scores:
    """OCRBench: a target stands anywhere in the answer, whatever the case."""
    texts = [text.translate(_FULL_WIDTH).lower().strip().replace("\n", " ") for text in (answer, *targets)]
    return _scores(any(text in texts[0] for text in texts[1:]), 0, is_empty(answer))


def formula(answer: str, targets: Sequence[str]) -> Scores:
    """OCRBench's handwritten formulas (HME100k): a target stands anywhere in the answer, spaces aside."""
    texts = [text.strip().replace("\n", " ").replace(" ", "") for text in (answer, *targets)]
    return _scores(any(text in texts[0] for text in texts[1:]), 0, is_empty(answer))


def _edits(a: str, b: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def anls(answer: str, targets: Sequence[str]) -> Scores:
    """Likeness of letters: 1 - edits / length of the longer, 0 below .5; the best target's (Biten et al. 2019)."""
    said, *wanted = (" ".join(text.lower().split()) for text in (answer, *targets))
    best = max(1 - _edits(said, text) / max(len(said), len(text), 1) for text in wanted)
    return _scores(best if best >= 0.5 else 0, any(_within(answer, target) for target in targets), is_empty(answer))


def box(answer: str, targets: Sequence[str]) -> Scores:
    """RefCOCO: IoU of at least .5 with the target's corners, "[x1, y1, x2, y2]" in pixels of the image as it is seen.

    Lenient: the first four numbers in square brackets anywhere in the answer.
    """
    wanted = prompts.parse_box(targets[0], size=math.inf)
    loose = _CORNERS.search(answer)
    found = prompts.parse_box(answer, size=math.inf), [float(v) for v in loose.groups()] if loose else None
    strict, lenient = (_overlaps(one, wanted) for one in found)
    return _scores(strict, lenient, found[0] is None and loose is None)


def _overlaps(a: ArrayLike | None, b: ArrayLike | None) -> bool:
    return a is not None and b is not None and bool(iou(np.asarray(a), np.asarray(b)) >= 0.5)


Metric = Callable[[str, Sequence[str]], Scores]
_ALL: list[Metric] = [exact, gqa, vqa, textvqa, relaxed, yes_no, choice, contains, formula, anls, box]
BY_NAME = {metric.__name__: metric for metric in _ALL}
