"""Metrics: how one answer is scored, and how it is seen to be a leak of the tracking task.

A metric scores an answer against the right answers (targets) from 0 to 1, as the public harnesses do; docs/verdict.md
names the differences. Its reader finds such answers within a longer one: the lenient score is the best of its readings.
A model that falls in the strict score alone has changed its form; one that falls in both has lost ability.
"""

import math
import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from r1track.core import prompts
from r1track.core.boxes import iou

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
RESTORED = {word[:k] + word[k + 1 :]: word for word in _TABLE.split() for k in range(len(word)) if word[k] == "'"}

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
_LETTER_FIRST = re.compile(r"^\s*\(?([A-J])[.:)]\s+\S")
_LETTER_SAID = re.compile(r"(?i:answer(?: is|:))\s*\(?([A-J])\)?(?:[.,:;]?\s*$|[,:;\n]|\.\s)")
_FIGURE = re.compile(r"-?\d[\d,]*(?:\.\d+)?%?")


class Scores(NamedTuple):
    """Scores of one answer, each from 0 to 1; `unparsed` is 1 where the reader finds no answer in it."""

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


def exact(answer: str, targets: Sequence[str]) -> float:
    """Equality after normalisation."""
    return float(any(normalise(answer) == normalise(target) != "" for target in targets))


def gqa(answer: str, targets: Sequence[str]) -> float:
    """Equality of what is left without case and punctuation (GQA)."""
    bare = [text.strip().lower().translate(str.maketrans("", "", string.punctuation)) for text in (answer, *targets)]
    return float(bare[0] in bare[1:])


def vqa(answer: str, targets: Sequence[str]) -> float:
    """VQAv2's soft accuracy over ten people's answers: the mean of min(1, how many of the other nine agree / 3)."""
    equal = [normalise(target) == normalise(answer) for target in targets]
    return sum(min(1.0, (sum(equal) - one) / 3) for one in equal) / len(equal)


def textvqa(answer: str, targets: Sequence[str]) -> float:
    """`vqa` on texts that TextVQA tokenises first."""
    texts = [re.sub("[,?]", "", text.lower()).replace("'s", " 's").strip() for text in (answer, *targets)]
    return vqa(texts[0], texts[1:])


def relaxed(answer: str, targets: Sequence[str]) -> float:
    """ChartQA's relaxed accuracy: numbers may be 5 % off, other answers must be equal but for case."""
    said, text = _value(answer), answer.strip().lower()
    pairs = [(_value(target), target.lower()) for target in targets]
    return float(any(abs(said - v) <= 0.05 * abs(v) if v and said is not None else text == t for v, t in pairs))


def _value(text: str) -> float | None:
    try:
        return float(text.strip().rstrip("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        return None


def yes_no(answer: str, targets: Sequence[str]) -> float:
    """POPE: the answer is the one of yes and no that is right."""
    return float(normalise(answer) == targets[0].lower())


def yes_no_figures(answers: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """POPE's figures, leniently read: accuracy, F1 of yes, and how often yes is said; shares from 0 to 1."""
    said, wanted = [(*_either(answer), "")[0] for answer in answers], [target.lower() for target in targets]
    right = [a for a, b in zip(said, wanted, strict=True) if a == b]
    f1 = 2 * right.count("yes") / max(1, said.count("yes") + wanted.count("yes"))
    return {"accuracy": len(right) / len(said), "f1": f1, "yes_rate": said.count("yes") / len(said)}


def choice(answer: str, targets: Sequence[str]) -> float:
    """Multiple choice by letter. targets: the right letter, then the texts of all options, where they are known."""
    found = _LETTER.match(answer)
    return float(found is not None and found[1] == targets[0])


def contains(answer: str, targets: Sequence[str]) -> float:
    """OCRBench: a target stands anywhere in the answer, whatever the case."""
    texts = [text.translate(_FULL_WIDTH).lower().strip().replace("\n", " ") for text in (answer, *targets)]
    return float(any(text in texts[0] for text in texts[1:]))


def formula(answer: str, targets: Sequence[str]) -> float:
    """OCRBench's handwritten formulas (HME100k): a target stands anywhere in the answer, spaces aside."""
    texts = [text.replace("\n", "").replace(" ", "") for text in (answer, *targets)]
    return float(any(text in texts[0] for text in texts[1:]))


def anls(answer: str, targets: Sequence[str]) -> float:
    """Likeness of letters: 1 - edits / length of the longer, 0 below .5; the best target's (Biten et al. 2019)."""
    said, *wanted = (" ".join(text.lower().split()) for text in (answer, *targets))
    best = max(1 - _edits(said, text) / max(len(said), len(text), 1) for text in wanted)
    return best if best >= 0.5 else 0.0


def _edits(a: str, b: str) -> int:
    row = list(range(len(b) + 1))  # Levenshtein's distances of what was read of `a` to the beginnings of `b`
    for i, x in enumerate(a, start=1):
        before, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def box(answer: str, targets: Sequence[str]) -> float:
    """RefCOCO: IoU of at least .5 with the target, "[x1, y1, x2, y2]" in pixels of the image as the model sees it."""
    said, wanted = (prompts.parse_box(text, size=math.inf) for text in (answer, targets[0]))
    return float(said is not None and wanted is not None and iou(said, wanted) >= 0.5)


def _said(answer: str) -> str:
    """What stands in answer tags, where there are any."""
    tagged = _TAGGED.search(answer)
    return tagged[1] if tagged else answer


def _named(answer: str, targets: Sequence[str]) -> list[str]:
    """The targets that stand in the answer as runs of whole words; none in a box, nor yes or no beside the other."""
    said = f" {normalise(_said(answer))} "
    both = {"yes", "no"} if {"yes", "no"} <= set(said.split()) else set()
    found = [] if is_box(answer) else [target for target in targets if f" {normalise(target)} " in said]
    return [target for target in found if normalise(target) not in both | {""}]


def _texts(answer: str, targets: Sequence[str]) -> list[str]:
    return [] if is_empty(answer) else [answer, *_named(answer, sorted(set(targets)))]


def _figures(answer: str, targets: Sequence[str]) -> list[str]:
    """Also the only number of an answer."""
    numbers = [] if is_box(answer) else _FIGURE.findall(_said(answer))
    return _texts(answer, targets) + [number.replace(",", "") for number in numbers if len(numbers) == 1]


def _either(answer: str, targets: Sequence[str] = ()) -> list[str]:
    """Yes or no, when one is among the words of the answer and the other is not."""
    found = {"yes", "no"} & set(re.findall(r"[a-z]+", _said(answer).lower()))
    return list(found) if len(found) == 1 else []


def _letters(answer: str, targets: Sequence[str]) -> list[str]:
    """The letter in "B", "the answer is B" and "B. a cat", or that of the only option that the answer names."""
    said, options = _said(answer), targets[1:]
    found = _LETTER.match(said) or _LETTER_FIRST.match(said) or _LETTER_SAID.search(said)
    named = _named(answer, options)
    if found is None and len(named) == 1:
        return [string.ascii_uppercase[options.index(named[0])]]
    return [found[1]] if found else []


def _corners(answer: str, targets: Sequence[str]) -> list[str]:
    """The first box in square brackets."""
    lists = re.findall(r"\[[^\[\]]*\]", answer)
    return [text for text in lists if prompts.parse_box(text, size=math.inf) is not None][:1]


_ALL = (exact, gqa, vqa, textvqa, relaxed, yes_no, choice, contains, formula, anls, box)
BY_NAME = {metric.__name__: metric for metric in _ALL}
READERS = {"relaxed": _figures, "yes_no": _either, "choice": _letters, "box": _corners}


def score(metric: str, answer: str, targets: Sequence[str]) -> Scores:
    """The scores of an answer by the metric of that name."""
    strict, readings = BY_NAME[metric], READERS.get(metric, _texts)(answer, targets)
    lenient = max(strict(reading, targets) for reading in [answer, *readings])
    return Scores(strict(answer, targets), lenient, float(not readings))
