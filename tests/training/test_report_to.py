"""Live logging: what TensorBoard, Trackio and W&B get of a short run, offline; a missing one is refused."""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toys import toy_pairs

from r1track.core import config
from r1track.core.errors import UserError
from r1track.training import train

LOGGED = {"reward", "iou", "parsed", "held_out_iou", "held_out_parsed", "loss", "kl"}


def settings(report_to: str) -> config.Settings:
    short = {"steps": 2, "save_every": 2, "prompts_per_step": 2, "group": 4, "micro_batch": 8, "eval_every": 1}
    few: dict[str, Any] = {"pairs": 12, "val_pairs": 4}
    return config.resolve({"preset": "demo", "sample": few, "train": {**short, "report_to": report_to}})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_pairs(tmp_path_factory.mktemp("data"), settings("none"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, in which the loggers have no network and keep their files."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


def trained(home: Path, pairs: Path, report_to: str) -> None:
    train.run(settings(report_to), "grpo", "tiny", pairs, home / "scratch", home / "adapter")


def test_tensorboard_gets_the_figures_of_every_step_and_the_held_out_ones(home: Path, pairs: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(home, pairs, "tensorboard")
    (folder,) = (home / "scratch" / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {f"train/{name}" for name in LOGGED} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/held_out_iou")] == [0, 1, 2]
    assert [event.step for event in events.Scalars("train/reward")] == [1, 2]


def test_wandb_writes_an_offline_run_into_the_scratch_folder(home: Path, pairs: Path) -> None:
    wandb = pytest.importorskip("wandb")
    trained(home, pairs, "wandb")
    assert wandb.run.project == train.PROJECT
    figures = dict(wandb.run.summary)
    wandb.finish()
    assert {f"train/{name}" for name in LOGGED} <= figures.keys()
    assert len(list((home / "scratch" / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert not (home / "wandb").exists()


def test_trackio_keeps_the_figures_in_its_folder(home: Path, pairs: Path) -> None:
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    (home / "train.json").write_text(json.dumps(config.stage_values(settings("trackio"), "train")))
    words = f"train --config train.json --arm grpo --model tiny --pairs {pairs} --scratch scratch --out adapter"
    command = [sys.executable, "-m", "r1track", *words.split()]  # in a process: trackio reads its folder as it starts
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRACKIO_DIR": "trackio"})
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (home / "trackio").glob(f"{train.PROJECT}*.db")
    with sqlite3.connect(file) as base:
        text = " ".join(str(row) for row in base.execute("select * from metrics"))
    assert all(f"train/{name}" in text for name in LOGGED)


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_package_is_refused_before_any_work(
    name: str, home: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    message = rf"train\.report_to = '{name}': not installed; `pip install {name}`, or set it to none"
    with pytest.raises(UserError, match=message):
        trained(home, pairs, name)
    assert list(home.iterdir()) == []
