"""Runs with `train.arms: []`: models are tracked, scored and asked, and reported; nothing is trained or judged."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from dry_runs import jobs, make_plan, snakemake
from runs import SETTINGS, make_report, make_run
from toys import toy_split

from r1track.core import config, hub
from r1track.core.errors import UserError
from r1track.core.files import read_json, write_json
from r1track.preflight import doctor, memory
from r1track.reporting import compare, summary, verify
from r1track.study import make_study

NOTHING: dict[str, Any] = {"train": {"arms": []}}
MINE = {"mine": {"model": "tiny", "max_tokens": 16}}
SMALL = {
    "run": "small", "toy": {"train_sequences": 1, "val_sequences": 3, "length": 4}, "score": {"draws": 100},
    "track": {"peers": ["static"], "extra": MINE}, "vqa": {"sets": {"easy-vqa": {"items": 12}}},
    "report": {"strips": 1}, **NOTHING,
}  # fmt: skip
SENTENCE = "no model was trained, so general ability was not compared"


def planned(folder: Path, values: dict[str, Any]) -> tuple[Counter[str], str]:
    """The jobs of a dry run by rule, without those of the settings, and its output."""
    (folder / "own.yaml").write_text(yaml.safe_dump(values))
    done = snakemake(folder, "--dry-run", "--nolock", "--configfile", "own.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    found = jobs(done.stdout + done.stderr)
    return Counter({rule: count for rule, count in found.items() if rule not in ("settings", "all")}), done.stderr


def settings(**extra: Any) -> config.Settings:
    """Those of the small runs, with nothing to train and third-party models by name."""
    return SETTINGS.model_copy(
        update={
            "train": SETTINGS.train.model_copy(update={"arms": []}),
            "track": config.resolve({"track": {"peers": ["static"], "extra": extra}}).track,
        }
    )


def states(results: Path) -> set[str]:
    return {finding.state for rows in verify.examine(results).values() for finding in rows}


def test_without_arms_the_demo_only_tracks_scores_and_asks_the_base(tmp_path: Path) -> None:
    found, _ = planned(tmp_path, NOTHING)
    assert found == {"toy": 1, "track": 4, "score": 4, "vqa": 1, "report": 1}


def test_the_preset_released_needs_nothing_but_the_val_split_of_got10k(tmp_path: Path) -> None:
    split = tmp_path / "data/GOT-10k/val"
    (split / "GOT-10k_Val_000001").mkdir(parents=True)
    (split / "list.txt").write_text("GOT-10k_Val_000001\n")
    found, output = planned(tmp_path, {"preset": "released"})
    assert found == {"track": 9, "score": 9, "vqa": 1, "report": 1}
    # Bases and checkpoints are to be downloaded, each named once; no pairs are.
    assert all(f"track.extra.{name}." in output for name in config.resolve({"preset": "released"}).track.extra)
    assert "sample.hub" not in output


def test_without_arms_no_field_of_pairs_and_training_is_looked_at() -> None:
    values = {
        "data": {"train": "nowhere"}, "sample": {"val_pairs": 0, "hub": "someone/pairs"},
        "train": {"arms": [], "reward": "nowhere:reward", "report_to": "wandb"},
    }  # fmt: skip
    plan = make_plan(values)
    assert (plan.trains, plan.train, plan.general) == (False, None, "results/demo/vqa/base")
    assert hub.sources(plan.settings) == []
    with pytest.raises(UserError, match=r"train\.reward = 'nowhere:reward'"):
        make_plan({"train": {"reward": "nowhere:reward"}})


def test_what_makes_no_sense_without_arms_is_refused_with_its_remedy() -> None:
    with pytest.raises(config.ConfigError, match=r"start `sft` needs arms \[sft, grpo\], not \[\]; set both, or start"):
        config.resolve({"train": {"arms": [], "start": "sft"}})
    layers = config.read_layers([], [config.Layer("study.yaml", {**NOTHING, "study": {"seeds": [0, 1]}})])
    with pytest.raises(config.ConfigError, match=r"study\.seeds: no run trains, so all seeds .*; leave `seeds` out"):
        make_study(layers)
    variants = {"small": {"task": {"search_factor": 3.0}}, "large": {"task": {"search_factor": 5.0}}}
    layers = config.read_layers([], [config.Layer("study.yaml", {**NOTHING, "study": {"variants": variants}})])
    assert {"pairs", "vqa/grpo"}.isdisjoint(make_study(layers).linked)


def test_memory_and_doctor_plan_neither_training_nor_merging(tmp_path: Path) -> None:
    assert [plan.stage for plan in memory.plan(config.resolve(NOTHING))] == ["track", "vqa"]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**NOTHING, "data": {"train": "nowhere"}}))
    (diagnosis,) = doctor.examine(config.read_layers([file])).values()
    subjects = {line.subject for line in diagnosis.lines}
    assert "data.sets.toy-val" in subjects
    assert not {name for name in subjects if re.search(r"train|pairs|results/|scratch/", name)}


def test_a_run_that_trains_nothing_ends_in_a_report_that_verify_accepts(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(SMALL))
    done = snakemake(tmp_path, "--configfile", "own.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "results" / "small"
    assert SENTENCE in " ".join(done.stdout.split())  # the summary at the end of the run
    assert sorted(path.name for path in results.iterdir()) == [
        "benchmarks", "config", "logs", "report", "scores", "tracks", "vqa",
    ]  # fmt: skip
    figures = read_json(results / "report/summary.json")
    assert (figures["model"], figures["verdict"], figures["verdicts"], figures["training"]) == ("mine", None, {}, {})
    row = figures["sets"]["toy-val"]
    assert {name: model["kind"] for name, model in row["models"].items()} == {
        "base": "base", "mine": "tuned", "static": "peer",
    }  # fmt: skip
    # The third-party model is the base itself, and gets the same words: it tracks the same.
    assert (row["differences"]["mine"]["value"], row["differences"]["mine"]["told"]) == (0, "undecided")
    assert figures["answered"]["easy-vqa"]["n"] == 12
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert states(results) == {"agrees"}
    finally:
        os.chdir(here)


def test_the_report_of_third_party_models_compares_each_with_the_base(tmp_path: Path) -> None:
    root = toy_split(tmp_path / "toy/val", sequences=3)
    chosen = settings(one={"model": "a/b"}, two={"model": "c/d"})
    results = make_run(tmp_path / "results/run", root, chosen)
    report = make_report(results)
    figures, page = read_json(report / "summary.json"), (report / "index.html").read_text()
    assert set(figures["sets"]["toy-val"]["differences"]) == {"one", "two"}
    assert all(f"on toy-val {name} tracks better than base" in figures["judgement"].replace("On", "on", 1)
               for name in ("one", "two"))  # fmt: skip
    assert figures["judgement"].endswith(f"{SENTENCE}.")
    for text in (page, (report / "summary.md").read_text()):
        assert re.search(SENTENCE, text, re.IGNORECASE)
        assert "RETAINED" not in text
    assert not [row["field"] for row in figures["departures"] if row["field"].startswith(("train.", "sample.", "data"))]
    assert figures["answered"] == {"easy-vqa": {"n": 30, "strict": 100.0}}
    assert states(results) <= {"agrees", "missing"}


def test_the_report_of_the_base_alone_has_its_own_scores_and_no_difference(tmp_path: Path) -> None:
    root = toy_split(tmp_path / "toy/val", sequences=3)
    results = make_run(tmp_path / "results/run", root, settings())
    report = make_report(results)
    figures, page = read_json(report / "summary.json"), (report / "index.html").read_text()
    assert (figures["model"], figures["sets"]["toy-val"]["differences"]) == ("base", {})
    # Its tracks are those of the static box.
    assert figures["judgement"] == (
        "On toy-val base does not beat the static box (undecided), so nothing shows yet that it tracks at all; "
        f"{SENTENCE}."
    )
    assert "base − base" not in page
    run = summary.read_run(results)
    strip = re.findall(r"<h4>best: (\w+) <span>AO ([\d.]+)</span>", page)
    aos = {name: row.ao for name, row in run.scores["toy-val"]["base"].sequences.items()}
    best = max(aos, key=lambda name: aos[name] or 0)
    assert strip == [(best, f"{aos[best]:.3f}")]
    assert states(results) <= {"agrees", "missing"}


def test_what_training_left_in_the_folder_is_in_no_report_and_called_stale(tmp_path: Path) -> None:
    root = toy_split(tmp_path / "toy/val", sequences=2)
    results = make_run(tmp_path / "results/run", root)
    for stage in config.NEEDS:
        write_json(results / "config" / f"{stage}.json", config.stage_values(settings(), stage))
    make_report(results)
    stale = {finding.file for finding in verify.examine(results)["report"] if finding.state == "stale"}
    assert {"pairs", "adapters/grpo", "models/grpo", "vqa/grpo", "vqa/verdict.json", "scores/grpo/toy-val.json"} < stale
    assert set(read_json(results / "report/summary.json")["cost"]["stages"]) == {"track", "score", "vqa"}


def test_untrained_runs_are_compared_with_one_another_and_with_a_trained_one(tmp_path: Path) -> None:
    root = toy_split(tmp_path / "toy/val", sequences=4)
    runs = {"trained": SETTINGS, "theirs": settings(one={"model": "a/b"}), "base": settings()}
    for name, chosen in runs.items():
        make_run(tmp_path / "results" / name, root, chosen)
    found = compare.compare([tmp_path / "results" / name for name in runs])
    assert [run.model for run in found.runs] == ["grpo", "one", "base"]
    tests = {test.difference: test.value for test in found.tests}
    # The base alone has no difference from itself. Every base is the static box, the others know the truth.
    assert set(tests) == {"A − base of A", "B − base of B", "B − A", "C − A", "C − B"}
    assert tests["B − A"] == 0
    assert tests["C − A"] == pytest.approx(-tests["A − base of A"])
    for run in found.runs[1:]:
        assert (run.figures["training, min"], run.figures["general ability − base, points"]) == (None, None)
