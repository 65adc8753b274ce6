"""The backend: which one is taken, when it must come first, which versions it refuses, what Unsloth is asked for.

Unsloth itself needs a card: here a stand-in takes its place. tests/card runs the real one over an emulated card.
"""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from pins import pins

from r1track.core import config, models
from r1track.core.errors import UserError
from r1track.training import backend


def machine(patch: pytest.MonkeyPatch, *, installed: bool, cuda: bool) -> None:
    real = importlib.util.find_spec
    patch.setattr(importlib.util, "find_spec", lambda name: installed or None if name == "unsloth" else real(name))
    patch.setattr(torch.cuda, "is_available", lambda: cuda)


@pytest.mark.parametrize(
    ("wanted", "installed", "cuda", "taken"),
    [
        ("auto", True, True, "unsloth"),
        ("auto", True, False, "transformers"),  # it imports there, but for texts only
        ("auto", False, True, "transformers"),
        ("transformers", True, True, "transformers"),
        ("unsloth", True, True, "unsloth"),
    ],
)
def test_auto_takes_unsloth_on_a_card_where_it_is_installed(
    wanted: Any, installed: bool, cuda: bool, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, installed=installed, cuda=cuda)
    assert backend.choose(wanted) == taken


@pytest.mark.parametrize(("installed", "cuda", "why"), [(False, True, "not installed"), (True, False, "no CUDA card")])
def test_unsloth_by_name_is_refused_where_it_cannot_run(
    installed: bool, cuda: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, installed=installed, cuda=cuda)
    with pytest.raises(ValueError, match=rf"train\.backend = 'unsloth': .*{why}"):
        backend.choose("unsloth")


def test_unsloth_must_come_before_trl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import trl

    assert "trl" in sys.modules, trl
    machine(monkeypatch, installed=True, cuda=True)
    with pytest.raises(RuntimeError, match="before TRL is imported"):
        backend.enter("auto", tmp_path)


def test_the_train_command_imports_unsloth_before_anything_that_it_patches(tmp_path: Path) -> None:
    fake = (
        "import sys; print('first' if not {'trl', 'peft', 'transformers'} & set(sys.modules) else 'late'); sys.exit(0)"
    )
    (tmp_path / "unsloth.py").write_text(fake)
    code = (
        "import torch; torch.cuda.is_available = lambda: True\n"
        "from r1track.cli import app; app(['train', '--config', 'config.yaml', '--arm', 'grpo', '--model', 'tiny', "
        "'--pairs', 'x', '--scratch', 'x', '--out', 'x'])"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=config.ROOT, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == "first"


def test_unsloth_is_asked_for_the_same_weights_layers_and_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class FastVisionModel:
        @staticmethod
        def from_pretrained(folder: str, **values: Any) -> tuple[str, None]:
            asked.update(folder=folder, **values)
            return "model", None

        @staticmethod
        def get_peft_model(model: str, **values: Any) -> str:
            asked.update(model=model, **values)
            return "adapted"

    monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(FastVisionModel=FastVisionModel))
    settings = config.resolve({"train": {"quantize": "none", "lora": {"rank": 8, "alpha": 24}}, "seed": 3})
    assert backend.load("unsloth", models.TINY, settings) == ("adapted", None)
    assert (asked["folder"], asked["model"]) == (str(models.TINY), "model")
    assert (asked["load_in_4bit"], asked["load_in_16bit"], asked["fast_inference"]) == (False, True, False)
    assert (asked["r"], asked["lora_alpha"], asked["random_state"]) == (8, 24, 3)
    assert asked["target_modules"] == models.make_adapter(settings.train.lora).target_modules


def test_the_versions_that_the_patches_were_written_for_are_those_that_are_pinned() -> None:
    pinned = pins()
    expected = {**backend.WRITTEN_FOR, **backend.TRIED_WITH}
    assert {name: pinned[name.replace("_", "-")] for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "wanted", "refused"),
    [("trl", "auto", True), ("peft", "auto", True), ("unsloth", "unsloth", True), ("unsloth_zoo", "unsloth", True),
     ("unsloth", "transformers", False), ("torch", "auto", False), ("triton", "unsloth", False)],
)  # fmt: skip
def test_another_version_of_a_patched_library_is_refused_and_of_another_only_told(
    name: str, wanted: Any, refused: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    versions = {**backend.WRITTEN_FOR, **backend.TRIED_WITH}
    monkeypatch.setattr(backend, "version", ({**versions, name: "9.9.9"}).__getitem__)
    machine(monkeypatch, installed=True, cuda=True)
    kind = backend.choose(wanted)
    if refused:
        with pytest.raises(UserError, match=rf"{name} 9\.9\.9 is installed.*pip install {name}=={versions[name]}"):
            backend.check_versions(kind)
    else:
        backend.check_versions(kind)
        assert ("9.9.9" in caplog.text) == (name in backend.TRIED_WITH)


def test_a_wrong_version_stops_the_train_command_before_pairs_or_weights_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from r1track.training import train

    monkeypatch.setattr(backend, "version", {**backend.WRITTEN_FOR, **backend.TRIED_WITH, "trl": "1.15.0"}.__getitem__)
    monkeypatch.setattr(train, "make_trainer", lambda *parts: pytest.fail("weights were read"))
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"trl 1\.15\.0 is installed"):
        train.run(config.resolve({}), "grpo", "tiny", pairs, tmp_path / "scratch", tmp_path / "out")
    assert not (tmp_path / "scratch").exists()
