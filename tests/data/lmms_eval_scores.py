"""Makes lmms_eval_scores.json.gz beside it: answers, right answers, and what lmms-eval 0.7.3 gives for them.

    pip install lmms-eval==0.7.3          # in an environment of its own: it brings 52 pinned packages
    python tests/data/lmms_eval_scores.py

Nothing of lmms-eval is kept but its verdicts. Answers are made from a seed: right and wrong ones in the forms that
models give them (bare, in a sentence, with a full stop, in tags, as numbers, words, boxes), and such forms as break
parsers. For each metric: `targets`, lists of right answers, and `rows` of [place in targets, answer, score].
"""

import copy
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmms_eval.api.metrics import anls, exact_match_hf_evaluate
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
from lmms_eval.tasks.ai2d.utils import MultiChoiceRegexFilter
from lmms_eval.tasks.chartqa.utils import relaxed_correctness
from lmms_eval.tasks.mmstar.utils import exact_match as choice_match
from lmms_eval.tasks.ocrbench.utils import ocrbench_process_results
from lmms_eval.tasks.pope.utils import pope_process_results
from lmms_eval.tasks.refcoco.utils_rec import compute_accuracy, parse_float_sequence_within
from lmms_eval.tasks.textvqa.utils import textvqa_process_results
from lmms_eval.tasks.vqav2.utils import vqav2_process_results

ROWS = 2200
WORDS = """
yes no none red dark blue grey the a an dog dogs two three ten zero 3 12 3.5 1,000 10:15 2014 t-shirt U.S.A. man's don't
dont cant it's its left right p.m. coca-cola 50% $5 7up wi-fi o'clock oclock im youre somebody'd café ＳＴＯＰ women's
stop sign no. 1st 0 half 1/2 rock&roll e-mail www.x.com a/c (none) "exit" hot-dog x+y C++ under_score one
"""
FRAMES = [
    "{}", "{}", "{}", "{}.", "{} ", " {}\n", "It is {}.", "The answer is {}.", "Answer: {}", "<answer>{}</answer>",
    "<think>It may be {}.</think>", "{}, I think", "{}; {}", "not {}", "{} or {}", "a {}", "the {} one", "{}!", "({})",
    "\"{}\"", "{}%", "-{}", "{}\t{}", "{}...", "'{}'", "{}?", "**{}**", "{}\n\nBecause of {}.",
]  # fmt: skip
ODD = [
    "",
    " ",
    ".",
    "...",
    "[12, 30, 50, 80]",
    '```json\n[{"bbox_2d": [1, 2, 3, 4]}]\n```',
    "nan",
    "inf",
    "1e3",
    "١٢",
    "a",
    "The",
]


def phrase(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS.split(), k=draw.choice([1, 1, 1, 2, 2, 3])))


def said(draw: random.Random, wanted: list[str], others: Callable[[], str]) -> str:
    """An answer: a right one or another in some frame, sometimes with a letter changed, sometimes something odd."""
    if draw.random() < 0.05:
        return draw.choice(ODD)
    text = draw.choice(wanted) if draw.random() < 0.6 else others()
    text = draw.choice([text, text, text.upper(), text.lower(), text.capitalize()])
    if text and draw.random() < 0.15:
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice(["", " ", ".", "x", "-", ",", "'"]) + text[place + 1 :]
    return draw.choice(FRAMES).replace("{}", text)


def made(
    seed: int, targets: list[list[str]], score: Callable[[str, list[str]], Any], others: Callable[[random.Random], str]
) -> dict[str, Any]:
    draw, rows, seen = random.Random(seed), [], set()
    while len(rows) < ROWS:
        place = draw.randrange(len(targets))
        answer = said(draw, targets[place], lambda: others(draw))
        if (place, answer) not in seen:
            seen.add((place, answer))
            rows.append([place, answer, score(answer.strip(), copy.deepcopy(targets[place]))])
    return {"targets": targets, "rows": rows}


def people(draw: random.Random) -> list[str]:
    """Ten people's answers, of whom some agree."""
    pool = [phrase(draw) for _ in range(draw.randint(1, 5))]
    pool += [pool[0].upper(), f"the {pool[0]}", f"{pool[0]}."]
    return draw.choices(pool, k=10)


def number(draw: random.Random) -> str:
    value = draw.choice([draw.uniform(0, 3), draw.uniform(1, 200), draw.randint(0, 30), draw.randint(1900, 2030), 0])
    text = f"{value:g}" if draw.random() < 0.5 else f"{value:.2f}"
    return draw.choice([text, text, text + "%", f"{float(text) * draw.choice([0.94, 0.96, 1.05, 1.051, 100]):g}"])


LISTS = ["[%s, %s, %s, %s]", "[%s,%s,%s,%s]", "[ %s , %s, %s, %s ]", "%s, %s, %s, %s", "(%s, %s, %s, %s)"]


def corners(draw: random.Random, near: list[float] | None = None, form: str | None = None) -> str:
    x, y = draw.randint(0, 300), draw.randint(0, 300)
    box = [x, y, x + draw.randint(5, 300), y + draw.randint(5, 300)]
    if near and draw.random() < 0.7:
        box = [v + draw.choice([0, 1, -3, 10, -25, 40]) for v in near]
    if near and draw.random() < 0.05:
        box = [box[2], box[3], box[0], box[1]]
    text = (form or draw.choice(LISTS)) % tuple(box)
    fenced = f'```json\n[\n\t{{"bbox_2d": {text}, "label": "man"}}\n]\n```'
    return text if form else draw.choice([text, text, fenced, f"at {text}.", f"{text} {text}", text[:-1]])


def grounded(answer: str, targets: list[str]) -> float:
    try:
        return float(compute_accuracy(json.loads(targets[0]), parse_float_sequence_within(answer)))
    except ZeroDivisionError:
        return 0.0


def diagram(answer: str, targets: list[str]) -> float:
    found = MultiChoiceRegexFilter(regex_pattern=r"([A-Z])\.", group_select=0).apply([[answer]], [{}])[0]
    return matched(found, targets[:1])


def matched(answer: str, targets: list[str]) -> float:
    found = exact_match_hf_evaluate([answer], [targets[0]], ignore_case=True, ignore_punctuation=True)
    return float(found["exact_match"])


def main() -> None:
    draw, reader = random.Random(0), EvalAIAnswerProcessor()
    phrases = [[phrase(draw)] for _ in range(80)]
    crowds = [people(draw) for _ in range(60)]
    options = [[*("A", "B", "C", "D")[k % 4], *(phrase(draw) for _ in range(4))] for k in range(40)]
    figures = [[number(draw)] for _ in range(60)]
    formulas = [
        [f"\\frac {{ {a} }} {{ {b} }} + {c}"] for a, b, c in (draw.choices("xyzXYab12", k=3) for _ in range(40))
    ]
    boxes = [[corners(draw, form="[%s, %s, %s, %s]")] for _ in range(40)]

    def letters(draw: random.Random) -> str:
        return draw.choice(["A", "B", "C", "D", "(B)", "C)", "A.", "D:", "b", "B. cat", "A cat", "I see B", "E"])

    def hand(draw: random.Random) -> str:
        return draw.choice(formulas)[0].replace(" ", draw.choice(["", " ", "  "])) + draw.choice(["", " = 0", "."])

    def yes(draw: random.Random) -> str:
        return draw.choice(["yes", "no", "yes and no", "eyes", "not", "nope", "unsure", phrase(draw)])

    def near(draw: random.Random) -> str:
        return corners(draw, json.loads(draw.choice(boxes)[0]))

    def normal(answer: str, targets: list[str]) -> str:
        text = answer.replace("\n", " ").replace("\t", " ").strip()
        return str(reader.process_digit_article(reader.process_punctuation(text)))

    def vqa(answer: str, targets: list[str]) -> Any:
        given = [{"answer": text, "answer_id": k} for k, text in enumerate(targets)]
        return vqav2_process_results({"question_id": 0, "answers": given}, [answer])["exact_match"]

    def textvqa(answer: str, targets: list[str]) -> Any:
        return textvqa_process_results({"question_id": 0, "answers": targets}, [answer])["exact_match"]

    def pope(answer: str, targets: list[str]) -> Any:
        return pope_process_results({"question_id": 0, "answer": targets[0]}, [answer])["pope_accuracy"]["score"]

    def ocr(answer: str, targets: list[str], dataset: str = "IIIT5K") -> Any:
        doc = {"dataset": dataset, "question_type": "", "answer": targets}
        return ocrbench_process_results(doc, [answer])["ocrbench_accuracy"]["score"]

    found = {
        "normalise": made(1, phrases, normal, phrase),
        "vqa": made(2, crowds, vqa, phrase),
        "textvqa": made(3, crowds, textvqa, phrase),
        "gqa": made(4, phrases, matched, phrase),
        "relaxed": made(5, figures + phrases[:20], lambda a, t: float(relaxed_correctness(a, t[0])), number),
        "yes_no": made(6, [["yes"], ["no"]], pope, yes),
        "choice of MMStar": made(7, options, lambda a, t: choice_match(a, t[0]), letters),
        "choice of AI2D": made(8, options, diagram, letters),
        "contains": made(9, phrases, ocr, phrase),
        "formula": made(10, formulas, lambda a, t: ocr(a, t, "HME100k"), hand),
        "anls": made(11, crowds, lambda a, t: anls(t, [a])["anls"], phrase),
        "box": made(12, boxes, grounded, near),
    }
    out = Path(__file__).with_suffix(".json.gz")
    with out.open("wb") as stream, gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as packed:
        packed.write(json.dumps(found, ensure_ascii=False).encode())


if __name__ == "__main__":
    main()
