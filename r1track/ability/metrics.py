"""Metrics: how one answer is scored, and whether it shows traces of the tracking task.

A metric scores an answer against the right answers (targets) from 0 to 1, as the public harnesses do; docs/verdict.md
names the differences. Its reader extracts short answers from a longer one; the lenient score is the best of theirs.
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
LONGEST = 1000  # characters of a text that `anls` compares
# The contractions of VQA's own table. It lacks "let's" and "she's"; its "I'm", "I've" and "I'd've" have a capital I,
# which no lower-case answer matches.
_TABLE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# Every contraction by its spellings that lack one apostrophe.
RESTORED = {word[:k] + word[k + 1 :]: word for word in _TABLE.split() for k in range(len(word)) if word[k] == "'"}

_NUMBER = r"-?\d+(?:\.\d*)?"
_NEXT = rf"(?:\s*,\s*|\s+){_NUMBER}"
# The second form is a box that was cut off at the limit of new tokens.
_BOX = re.compile(
    rf"[\[(]\s*{_NUMBER}(?:{_NEXT}){{3}}\s*[\])]|\[\s*{_NUMBER}(?:{_NEXT}){{1,3}}[\s,]*$|bbox", re.IGNORECASE
)
_TAGS = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
_TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.IGNORECASE | re.DOTALL)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_LETTER = re.compile(r"^\s*\(?([A-Z])\)?[.:)]?\s*$")
_LETTER_FIRST = re.compile(r"^\s*\(?([A-J])[.:)]\s+\S")
_LETTER_IN_SENTENCE = re.compile(r"(?i:answer(?: is|:))\s*\(?([A-J])\)?(?:[.,:;]?\s*$|[,:;\n]|\.\s)")
_FIGURE = re.compile(r"-?\d[\d,]*(?:\.\d+)?%?")


class Scores(NamedTuple):
    """Scores of one answer, each from 0 to 1; `unparsed` is 1 where the reader extracts nothing."""

    strict: float
    lenient: float
    unparsed: float


def normalise(answer: str) -> str:
    """An answer in the form in which VQA compares answers (Antol et al. 2015, the evaluation of visualqa.org)."""
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
    """Whether an answer contains a box: four numbers in brackets, complete or cut off, or the key of Qwen's boxes."""
    return _BOX.search(answer) is not None


def has_tags(answer: str) -> bool:
    """Whether an answer contains think or answer tags."""
    return _TAGS.search(answer) is not None


def is_empty(answer: str) -> bool:
    """Whether an answer contains no letter and no digit."""
    return re.search(r"\w", answer) is None


def exact(answer: str, targets: Sequence[str]) -> float:
    """Equality after normalisation."""
    text = normalise(answer)
    return float(any(text == normalise(target) != "" for target in targets))


def gqa(answer: str, targets: Sequence[str]) -> float:
    """GQA: equality without case and punctuation."""
    bare = [text.strip().lower().translate(str.maketrans("", "", string.punctuation)) for text in (answer, *targets)]
    return float(bare[0] in bare[1:])


def vqa(answer: str, targets: Sequence[str]) -> float:
    """VQAv2's soft accuracy: the mean over ten people's answers of min(1, matches among the other nine / 3)."""
    text = normalise(answer)
    equal = [normalise(target) == text for target in targets]
    return sum(min(1.0, (sum(equal) - one) / 3) for one in equal) / len(equal)


def textvqa(answer: str, targets: Sequence[str]) -> float:
    """`vqa` on texts tokenised as TextVQA does."""
    texts = [re.sub("[,?]", "", text.lower()).replace("'s", " 's").strip() for text in (answer, *targets)]
    return vqa(texts[0], texts[1:])


def relaxed(answer: str, targets: Sequence[str]) -> float:
    """ChartQA's relaxed accuracy: numbers may differ by 5 %, other answers must be equal without case."""
    number, text = _value(answer), answer.strip().lower()
    pairs = [(_value(target), target.lower()) for target in targets]
    return float(any(abs(number - v) <= 0.05 * abs(v) if v and number is not None else text == t for v, t in pairs))


def _value(text: str) -> float | None:
    try:
        value = float(text.strip().rstrip("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) else None  # `nan` and `infinity` are words


def yes_no(answer: str, targets: Sequence[str]) -> float:
    """POPE: the answer is `yes` or `no`, whichever is right."""
    return float(normalise(answer) == targets[0].lower())


def yes_no_figures(answers: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """POPE's figures for answers read leniently: accuracy, F1 of yes, and the rate of yes; shares from 0 to 1."""
    words, right_words = [(*_yes_or_no(answer), "")[0] for answer in answers], [target.lower() for target in targets]
    correct = [word for word, right in zip(words, right_words, strict=True) if word == right]
    f1 = 2 * correct.count("yes") / max(1, words.count("yes") + right_words.count("yes"))
    return {"accuracy": len(correct) / len(words), "f1": f1, "yes_rate": words.count("yes") / len(words)}


def choice(answer: str, targets: Sequence[str]) -> float:
    """Multiple choice by letter. targets: the right letter, then the texts of all options, if they are known."""
    letter = _LETTER.match(answer)
    return float(letter is not None and letter[1] == targets[0])


def contains(answer: str, targets: Sequence[str]) -> float:
    """OCRBench: the answer contains a target, without regard to case."""
    texts = [text.translate(_FULL_WIDTH).lower().strip().replace("\n", " ") for text in (answer, *targets)]
    return float(any(text in texts[0] for text in texts[1:]))


def formula(answer: str, targets: Sequence[str]) -> float:
    """OCRBench's handwritten formulas (HME100k): the answer contains a target, without regard to spaces."""
    texts = [text.replace("\n", "").replace(" ", "") for text in (answer, *targets)]
    return float(any(text in texts[0] for text in texts[1:]))


def anls(answer: str, targets: Sequence[str]) -> float:
    """DocVQA's ANLS: 1 - edits / length of the longer text, for the closest target; 0 below .5 (Biten et al. 2019).

    Only the first LONGEST characters are compared: the time grows with the product of the lengths.
    """
    text, *right_texts = (" ".join(text.lower().split())[:LONGEST] for text in (answer, *targets))
    best = max(1 - _edits(text, right) / max(len(text), len(right), 1) for right in right_texts)
    return best if best >= 0.5 else 0.0


def _edits(a: str, b: str) -> int:
    row = list(range(len(b) + 1))  # Levenshtein distances between a prefix of `a` and every prefix of `b`
    for i, x in enumerate(a, start=1):
        before, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def box(answer: str, targets: Sequence[str]) -> float:
    """RefCOCO: IoU of at least .5 with the target, "[x1, y1, x2, y2]" in pixels of the image as the model sees it."""
    xyxy, right_xyxy = (prompts.parse_box(text, size=math.inf) for text in (answer, targets[0]))
    return float(xyxy is not None and right_xyxy is not None and iou(xyxy, right_xyxy) >= 0.5)


def _untagged(answer: str) -> str:
    """The text between answer tags, or the whole answer where there are none."""
    tagged = _TAGGED.search(answer)
    return tagged[1] if tagged else answer


def _contained(answer: str, targets: Sequence[str]) -> list[str]:
    """The targets that the answer contains as whole words: none of a box, and neither of yes and no if it has both."""
    text = f" {normalise(_untagged(answer))} "
    both = {"yes", "no"} if {"yes", "no"} <= set(text.split()) else set()
    contained = [] if is_box(answer) else [target for target in targets if f" {normalise(target)} " in text]
    return [target for target in contained if normalise(target) not in both | {""}]


def _texts(answer: str, targets: Sequence[str]) -> list[str]:
    """The answer itself and the targets that it contains; nothing where the answer is empty."""
    return [] if is_empty(answer) else [answer, *_contained(answer, sorted(set(targets)))]


def _texts_and_number(answer: str, targets: Sequence[str]) -> list[str]:
    """The texts, and the number of an answer that contains exactly one."""
    numbers = [] if is_box(answer) else _FIGURE.findall(_untagged(answer))
    return _texts(answer, targets) + [number.replace(",", "") for number in numbers if len(numbers) == 1]


def _yes_or_no(answer: str, targets: Sequence[str] = ()) -> list[str]:
    """Yes or no, when the answer contains one of the two words and not the other."""
    words = {"yes", "no"} & set(re.findall(r"[a-z]+", _untagged(answer).lower()))
    return list(words) if len(words) == 1 else []


def _letter(answer: str, targets: Sequence[str]) -> list[str]:
    """The letter in "B", "the answer is B" and "B. a cat", or that of the only option that the answer contains."""
    text, options = _untagged(answer), targets[1:]
    letter = _LETTER.match(text) or _LETTER_FIRST.match(text) or _LETTER_IN_SENTENCE.search(text)
    contained = _contained(answer, options)
    if letter is None and len(contained) == 1:
        return [string.ascii_uppercase[options.index(contained[0])]]
    return [letter[1]] if letter else []


def _first_box(answer: str, targets: Sequence[str]) -> list[str]:
    """The first box in square brackets."""
    lists = re.findall(r"\[[^\[\]]*\]", answer)
    return [text for text in lists if prompts.parse_box(text, size=math.inf) is not None][:1]


_ALL = (exact, gqa, vqa, textvqa, relaxed, yes_no, choice, contains, formula, anls, box)
BY_NAME = {metric.__name__: metric for metric in _ALL}
READERS = {"relaxed": _texts_and_number, "yes_no": _yes_or_no, "choice": _letter, "box": _first_box}


def score(metric: str, answer: str, targets: Sequence[str]) -> Scores:
    """The scores of an answer; metric: a key of BY_NAME; targets: the right answers, as that metric takes them."""
    strict, readings = BY_NAME[metric], READERS.get(metric, _texts)(answer, targets)
    lenient = max(strict(reading, targets) for reading in [answer, *readings])
    return Scores(strict(answer, targets), lenient, float(not readings))
