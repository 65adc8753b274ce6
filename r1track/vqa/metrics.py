"""Metrics: how one answer is scored, and how it is seen to be a leak of the tracking task.

A metric is a function (answer, target) -> Scores. `strict` scores the answer as it stands, as the public harnesses do;
`lenient` also finds the target inside a longer answer. A model that falls in `strict` alone has changed its form; one
that falls in both has lost ability.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

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


class Scores(NamedTuple):
    """Scores of one answer, each from 0 to 1."""

    strict: float
    lenient: float


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
    """Whether nothing is left of an answer once it is normalised."""
    return not normalise(answer)


def exact(answer: str, target: str) -> Scores:
    """Equality after normalisation; lenient: the target stands in the answer as a run of whole words.

    Leniently read is what stands in answer tags, where there are any. A box is never right, nor is an answer that says
    both yes and no when one of them is the target.
    """
    wanted = normalise(target)
    strict = bool(wanted) and normalise(answer) == wanted
    tagged = _TAGGED.search(answer)
    said = normalise(tagged[1] if tagged else answer)
    both = wanted in ("yes", "no") and {"yes", "no"} <= set(said.split())
    within = bool(wanted) and f" {wanted} " in f" {said} " and not both and not is_box(answer)
    return Scores(float(strict), float(strict or within))


BY_NAME: dict[str, Callable[[str, str], Scores]] = {"exact": exact}
