"""Claims about what the report says: a gain, a loss or neither, as the scores and the verdict have it."""

import json
import shutil

import pytest
from report_page import Page
from small_run import SETTINGS, configure, small_run, stand_in, write_answers

from r1track.ability import verdict
from r1track.core import config, files
from r1track.reporting import report
from r1track.tracking import score


def test_the_difference_is_that_of_the_scores_with_the_runs_draws(run):
    results, _, make = run
    base, tuned = (files.read_json(results / "scores" / model / "toy-val.json") for model in ("base", "grpo"))
    change = files.read_json(make() / "summary.json")["sets"]["toy-val"]["differences"]["grpo"]
    assert (change["value"], change["low"], change["high"]) == score.paired_difference(
        *map(score.Scores.model_validate, (tuned, base)), 200
    )


def test_the_sentence_praises_a_gain_and_names_the_peers_that_are_beaten(run):
    _, _, make = run
    summary = json.loads((make() / "summary.json").read_text())
    assert "grpo tracks better than base" in summary["judgement"]
    assert "and it beats the static box and the template matcher, not the oracle (undecided)" in summary["judgement"]
    assert summary["sets"]["toy-val"]["models"]["base"]["words"].startswith("base beats none of its peers")
    assert "toy world: says that the workflow works, not how good a tracker is" in summary["sets"]["toy-val"]["notes"]


def test_one_sequence_has_no_interval_and_shows_no_gain(tmp_path):
    results, _ = small_run(tmp_path, sequences=1)
    report.run(config.load(results / "config/report.json"), results, results / "report")
    summary = json.loads((results / "report/summary.json").read_text())
    change = summary["sets"]["toy-val"]["differences"]["grpo"]
    assert change["value"] > 0.1
    assert (change["low"], change["high"], change["told"]) == (None, None, "undecided")
    words = f"grpo is not shown to track better than base (AO {change['value']:+.3f} on one sequence)"
    assert words in summary["judgement"]
    page = Page((results / "report/index.html").read_text())
    assert page.text["scores"].count("one sequence") == 6  # five models and a difference
    assert (results / "report/summary.md").read_text().count("| one sequence |") == 6


def test_the_sentence_turns_when_the_figures_turn(run):
    results, root, make = run
    stand_in(results, root, "base", "template")
    stand_in(results, root, "grpo", "static")
    sentence = json.loads((make() / "summary.json").read_text())["judgement"]
    assert "grpo tracks worse than base" in sentence
    assert "does not beat" in sentence or "beats none of its peers" in sentence
    assert "nothing shows yet that it tracks at all" in sentence
    assert "better" not in sentence


def test_equal_tracks_are_not_called_better(run):
    results, root, make = run
    stand_in(results, root, "grpo", "static")
    sentence = json.loads((make() / "summary.json").read_text())["judgement"]
    assert "is not shown to track better than base (AO +0.000 [+0.000, +0.000] holds 0)" in sentence


@pytest.mark.parametrize(("wrong", "word"), [(0, "is retained"), (25, "has regressed")])
def test_the_sentence_follows_the_verdict(run, wrong, word):
    results, _, make = run
    shutil.rmtree(results / "vqa/grpo")
    write_answers(results / "vqa/grpo", wrong)
    verdict.run(SETTINGS, results / "vqa/base", [results / "vqa/grpo"], results / "vqa/verdict.json")
    assert word in json.loads((make() / "summary.json").read_text())["judgement"]


def test_an_invalid_verdict_without_figures_is_shown(run):
    results, _, make = run
    (results / "vqa/grpo/easy-vqa.jsonl").rename(results / "vqa/grpo/other.jsonl")
    verdict.run(SETTINGS, results / "vqa/base", [results / "vqa/grpo"], results / "vqa/verdict.json")
    page = Page((make() / "index.html").read_text())
    assert "the check of its general ability is invalid" in page.text["summary"]
    assert "no set could be compared" in page.text["general"]


def test_every_arm_has_its_verdict_on_the_page_and_the_sentence_is_about_the_last(run):
    results, root, make = run
    configure(results, "train", "train", arms=["sft", "grpo"])
    for folder in ("adapters", "models"):
        shutil.copytree(results / folder / "grpo", results / folder / "sft")
    stand_in(results, root, "sft", "static")
    write_answers(results / "vqa/sft", 25)
    arms = [results / "vqa/sft", results / "vqa/grpo"]
    verdict.run(SETTINGS, results / "vqa/base", arms, results / "vqa/verdict.json")
    out = make()
    summary, page = json.loads((out / "summary.json").read_text()), Page((out / "index.html").read_text())
    assert [row["verdict"] for row in summary["verdicts"].values()] == ["REGRESSED", "INCONCLUSIVE"]
    assert summary["verdict"] == summary["verdicts"]["grpo"]
    for arm, row in summary["verdicts"].items():
        assert row["line"] in page.text["general"]
        assert f"{arm}: {row['line']}" in (out / "summary.md").read_text()
        assert f"KL(base || {arm}) on 64 prompts of tracking: 0.2500 nats" in page.text["general"]
    assert "whether its general ability is retained is not decided" in summary["judgement"]
