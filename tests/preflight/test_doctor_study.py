"""The doctor before a study: every variant is examined, what they share is counted and asked for once."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from diagnoses import Usage
from test_cli import run

from r1track import study
from r1track.core import config, hub
from r1track.preflight import data, doctor, findings, memory, printing

pytestmark = pytest.mark.usefixtures("elsewhere", "logging_as_it_was")
HUB = {"preset": "r1track-5k", "data": {"train": "toy/train", "sets": {"toy": "toy/val"}}}


def of_study(**variants: Any) -> list[config.Layer]:
    values = {**HUB, "study": {"seeds": [0, 1], "variants": variants}}
    return config.read_layers([], [config.Layer("study.yaml", values)])


def test_a_study_of_a_base_whose_shape_is_not_known_says_so() -> None:
    (line,) = study.check(of_study(one={}, two={"model": {"base": "some/body"}}))
    assert line[:2] == ("warning", "study")
    assert line.finding.startswith("hours and disk are not known: model.base = 'some/body': its shape is not known")


def test_every_variant_is_checked_and_what_only_some_of_them_have_stands_below_their_names(tmp_path: Path) -> None:
    layers = of_study(
        paper={}, folder={"vqa": {"sets": {"mine": {"source": "./gone"}}}}, wrong={"train": {"group": 1}},
        large={"train": {"quantize": "none"}}, data={"data": {"train": "nowhere"}},
    )  # fmt: skip
    found = doctor.examine(layers, budget=13e9)
    lines = {line.subject: line for line in printing.joined(found)}
    assert lines["versions"].state == "ok"
    assert lines["paper: changes"].finding == "nothing"
    assert lines["large: changes"].finding == "train.quantize: none"
    assert lines["folder: vqa.sets.mine"].state == lines["data: data.train"].state == "error"
    assert "nowhere/list.txt: no such file" in lines["data: data.train"].finding
    assert lines["paper, folder, large: data.train"].state == "ok"
    assert lines["wrong: configuration"].finding == (
        "study.variants.wrong: cannot be used\n  train.group = 1: Input should be greater than or equal to 2"
    )
    assert {name: one.well for name, one in found.items()} == {
        "paper": True, "folder": False, "wrong": False, "large": False, "data": False,
    }  # fmt: skip
    assert {name: set(one.remedies) for name, one in found.items() if one.remedies} == {"large": {"train grpo"}}


def test_the_hub_is_asked_once_about_what_several_variants_take(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(source: hub.Source) -> findings.Line:
        asked.append(source.field)
        return findings.Line("ok", source.field, "there")

    monkeypatch.setattr(data, "ask_hub", ask)
    doctor.examine(of_study(one={}, two={"train": {"steps": 9}}), online=True)
    assert asked == list(dict.fromkeys(asked))
    assert "model.base" in asked


def test_hours_and_disk_of_a_study_count_what_its_runs_share_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(9e9, 0, 9e9))
    alike = study.check(of_study(one={}, two={"track": {"min_side": 5.0}}))
    settings = config.resolve(HUB)
    model, (training, *_) = memory.Model(settings), memory.plan(settings)
    finding = f"4 runs with 2 trainings, together about {2 * training.hours:.1f} hours on an RTX 3090; what several "
    assert alike[0] == ("ok", "study", f"{finding}runs share is counted once")
    pairs = 2 * 5200 * 2 * 336**2  # under results, and as they are read under scratch
    size = 2 * (2 * model.parameters + pairs + 2 * (model.adapter + model.optimiser))
    assert {line.finding for line in alike[1:]} == {
        f"the study writes {size / 1e9:.1f} GB to its disk, 9.0 are free; make room, or link it to another disk"
    }
    reward, size = study.check(of_study(one={}, two={"train": {"reward": "iou"}})), 2 * size - pairs
    assert reward[0].finding.startswith(f"4 runs with 4 trainings, together about {4 * training.hours:.1f} hours")
    assert reward[1].finding.startswith(f"the study writes {size / 1e9:.1f} GB")


def test_what_the_workflow_refuses_is_an_error_of_the_doctor_too() -> None:
    (line,) = study.check(config.read_layers([], [config.Layer("config.yaml", {"sample": {"val_pairs": 0}})]))
    assert line[:2] == ("error", "workflow")
    assert "sample.val_pairs = 0: `merge` compares answers on held-out pairs" in line.finding
    assert study.check(config.read_layers([], [])) == []


def test_the_command_shows_the_plan_of_each_variant_and_fails_for_one_that_cannot_run() -> None:
    variants = "{same: {}, iou: {train: {reward: iou}}, more: {train: {micro_batch: 10}}}"
    data = "data: {train: toy/train, sets: {toy: toy/val}}"
    Path("study.yaml").write_text(f"preset: r1track-5k\n{data}\nstudy: {{variants: {variants}}}\n")
    well = run("doctor", "--config", "study.yaml")
    assert well.exit_code == 0, well.output
    assert well.output.count("GB at the peak") == 2
    assert "same, iou: train grpo: " in well.output
    assert "more: train grpo: " in well.output
    assert "3 runs with 3 trainings" in well.output
    Path("study.yaml").write_text(
        f"preset: r1track-5k\n{data}\nstudy: {{variants: {{bad: {{train: {{group: 1}}}}}}}}\n"
    )
    ill = run("doctor", "--config", "study.yaml")
    assert ill.exit_code == 1
    assert "study.variants.bad: cannot be used" in ill.output
    shown = run("config", "--config", "study.yaml")
    assert shown.exit_code == 2
    assert "study.variants.bad: cannot be used" in shown.output
