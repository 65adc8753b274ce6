"""The doctor on the emulated RTX 4090: what it names is what runs, and every preset fits."""

from pathlib import Path
from typing import Any

import pytest
from card_runs import make_trainer, settings
from typer.testing import CliRunner

from r1track.cli import app
from r1track.core import config
from r1track.preflight import doctor

PRESETS = sorted(path.stem for path in config.PRESETS.glob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config.yaml"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_and_is_planned_for_the_trainer_that_runs(preset: str, file: Path, tmp_path: Path) -> None:
    file.write_text(f"preset: {preset}\n")
    (diagnosis,) = doctor.examine(config.read_layers([file])).values()
    lines = {subject: (state, text) for state, subject, text in diagnosis.lines}
    assert "NVIDIA GeForce RTX 4090, 25.4 GB" in lines["card"][1]
    arms = config.resolve({"preset": preset}).train.arms
    plans = {plan.stage: plan for plan in diagnosis.plans}
    trainers = ", ".join(f"{arm} by {plans[f'train {arm}'].trainer}" for arm in arms)
    wanted = ("ok", f"auto, which is unsloth here; {trainers}") if arms else None  # `released` trains nothing
    assert lines.get("train.backend") == wanted
    assert all(plan.peak[0] < diagnosis.budget for plan in diagnosis.plans)
    assert not diagnosis.remedies


@pytest.mark.parametrize(("arm", "shared"), [("sft", True), ("grpo", True), ("grpo", False)])
def test_the_trainer_that_is_planned_is_the_one_that_is_made(
    arm: Any, shared: bool, pairs: Path, file: Path, tmp_path: Path
) -> None:
    train = {"backend": "auto", "shared_prefix": shared, "arms": [arm]}
    file.write_text(f"preset: demo\ntrain: {{shared_prefix: {str(shared).lower()}, arms: [{arm}]}}\n")
    (diagnosis,) = doctor.examine(config.read_layers([file])).values()
    (plan,) = (plan for plan in diagnosis.plans if plan.trainer)
    trainer = make_trainer(settings(**train), arm, pairs, tmp_path / "scratch")
    assert type(trainer).__name__ == plan.trainer
    assert type(trainer.model.get_base_model().model.language_model.layers[0].mlp.gate_proj).__module__.startswith(
        "peft"
    )
    assert "unsloth" in trainer.model.get_base_model().model.language_model.layers[0].mlp.forward.__module__.lower()


def test_the_command_says_so(file: Path) -> None:
    file.write_text("preset: demo\n")
    output = CliRunner().invoke(app, ["doctor", "--config", str(file)]).output
    assert "auto, which is unsloth here; grpo by SharedPrefixTrainer" in output
