"""Claims about the report's markup: no answer and no name becomes a part of it, and no two of its ids are one."""

import json
import re

from report_page import Page
from rich.markdown import Markdown
from small_run import NASTY, SETTINGS, configure, fail, stand_in

from r1track.ability import verdict
from r1track.core import files
from r1track.reporting import plots
from r1track.tracking import score


def test_what_a_model_answers_cannot_become_markup(run):
    results, root, make = run
    fail(results, root, "grpo", {("Toy_Val_000001", 3): "held"})
    text = (make() / "index.html").read_text()
    page = Page(text)
    assert NASTY not in text
    assert "alert('x')" not in text
    for section in ("general", "training", "strips"):
        assert NASTY in page.text[section], section
    assert set(re.findall("<script.*?>", text)) == {"<script>", '<script type="application/json">'}
    assert text.count("<script>") == 1


NASTY_NAME = 'my "set" & <b onload=alert(1)>*so* [on](http:x)|`'


def test_a_set_with_a_strange_name_cannot_become_markup_on_the_page(run, any_set_name):
    results, root, make = run
    plain = make() / "index.html"
    ids = len(re.findall(r'\bid="', plain.read_text()))
    for model, peer in (("base", "static"), ("grpo", "oracle"), *((p, p) for p in ("static", "template", "oracle"))):
        stand_in(results, root, model, peer, NASTY_NAME)
    configure(results, "report", "data", sets={"toy-val": "toy/val", NASTY_NAME: "toy/val"})
    text = (make() / "index.html").read_text()
    page = Page(text)
    assert not page.open
    assert "<b onload" not in text
    assert NASTY_NAME in page.text["scores"]
    assert [alt for alt in page.alts if NASTY_NAME in alt]
    names = re.findall(r'\bid="([^"]*)"', text)
    assert len(names) == len(set(names)) > ids  # those of the second success plot
    assert not [name for name in names if re.search(r"[^\w.-]", name)]
    assert set(re.findall(r'(?:url\(|href=")#([^)"]*)', text)) <= set(names)


def test_two_sets_never_share_an_id():
    scores = score.Scores.model_construct(curve=[1.0, 0.5, 0.0], ao=0.5, sr50=0.5, sr75=0.25)
    first, second = (set(re.findall(r'\bid="([^"]*)"', plots.success(n, {"base": scores}))) for n in ("a b", "a_20_b"))
    assert len(first) == len(second) > 5
    assert not first & second


def test_names_cannot_become_markup_in_the_text(run, any_set_name):
    """Names of sets, runs and questions; the text is read by the parser of `rich`, which shows it on the terminal."""
    results, root, make = run
    for model, peer in (("base", "static"), ("grpo", "oracle"), *((p, p) for p in ("static", "template", "oracle"))):
        stand_in(results, root, model, peer, NASTY_NAME)
    configure(results, "report", "data", sets={"toy-val": "toy/val", NASTY_NAME: "toy/val"})
    answers = results / "vqa/grpo/easy-vqa.jsonl"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    for folder in ("base", "grpo"):
        changed = [{**row, "doc_id": f"{NASTY_NAME} {k}", "doc_hash": f"{k}{folder}"} for k, row in enumerate(rows)]
        (results / f"vqa/{folder}/easy-vqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    verdict.run(SETTINGS, results / "vqa/base", [results / "vqa/grpo"], results / "vqa/verdict.json")
    assert f"first {NASTY_NAME} 0" in files.read_json(results / "vqa/verdict.json")["models"]["grpo"]["summary"]
    blocks = Markdown((make() / "summary.md").read_text()).parsed
    parts = [part for block in blocks for part in block.children or []]
    assert {part.type for part in parts} <= {"text", "text_special", "softbreak", "strong_open", "strong_close"}
    assert not [block.type for block in blocks if block.type.startswith(("html", "code"))]
    text = ["".join(part.content for part in block.children) for block in blocks if block.children]
    assert f"{NASTY_NAME}: 5 sequences, 55 frames" in text
    assert [line for line in text if f"first {NASTY_NAME} 0" in line]
    assert files.read_json(results / "report/summary.json")["judgement"] in text
