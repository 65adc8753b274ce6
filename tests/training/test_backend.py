"""The backend: which one is taken, when it must come first, which versions it refuses, what Unsloth is asked for.

Unsloth itself needs a card: here a stand-in takes its place. tests/card runs the real one over an emulated card.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from pins import pins

from r1track.core import config, files, models
from r1track.core.errors import UserError
from r1track.core.vision import PatchProduct
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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a stand-in for Unsloth, whose model has one weight, was called with."""
    values: dict[str, Any] = {}

    class FastVisionModel:
        @staticmethod
        def from_pretrained(folder: str, **options: Any) -> tuple[torch.nn.Module, None]:
            tower = types.SimpleNamespace(patch_embed=PatchProduct(), blocks=[])
            values.update(folder=folder, loaded=torch.nn.Linear(1, 1), **options)
            values["loaded"].model = types.SimpleNamespace(visual=tower)
            if values.pop("spoil", False):
                values["loaded"].weight.data.fill_(torch.nan)
            return values["loaded"], None

        @staticmethod
        def get_peft_model(model: torch.nn.Module, **options: Any) -> str:
            values.update(model=model, **options)
            return "adapted"

    monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(FastVisionModel=FastVisionModel))
    return values


def test_unsloth_is_asked_for_the_same_weights_layers_and_adapter(asked: dict[str, Any]) -> None:
    settings = config.resolve({"train": {"quantize": "none", "lora": {"rank": 8, "alpha": 24}}, "seed": 3})
    assert backend.load("unsloth", models.TINY, settings) == ("adapted", None)
    assert (asked["folder"], asked["model"]) == (str(models.TINY), asked["loaded"])
    assert (asked["load_in_4bit"], asked["load_in_16bit"], asked["fast_inference"]) == (False, True, False)
    assert (asked["r"], asked["lora_alpha"], asked["random_state"]) == (8, 24, 3)
    assert asked["target_modules"] == models.make_adapter(settings.train.lora).target_modules


@pytest.mark.parametrize("kind", ["unsloth", "transformers"])
def test_both_backends_refuse_a_base_whose_weights_would_not_be_loaded(
    kind: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    base = shutil.copytree(models.TINY, tmp_path / "base")
    described = files.read_json(base / "config.json")
    files.write_json(base / "config.json", {**described, "quantization_config": {"load_in_4bit": True}})
    with pytest.raises(UserError, match=f"^{base}: its weights are quantised already"):
        backend.load(kind, base, config.resolve({}))
    text = {**described["text_config"], "intermediate_size": 400}
    files.write_json(base / "config.json", {**described, "text_config": text})
    with pytest.raises(UserError, match=f"^{base}: tensors do not fit the configuration: 12 of another shape"):
        backend.load(kind, base, config.resolve({}))
    assert asked == {}


def test_what_unsloth_loads_must_be_finite(asked: dict[str, Any]) -> None:
    asked["spoil"] = True
    with pytest.raises(UserError, match=f"^{models.TINY}: weight holds NaN or infinity"):
        backend.load("unsloth", models.TINY, config.resolve({}))


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


def test_a_warning_of_a_version_comes_once_though_the_backend_is_entered_twice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    versions = {**backend.WRITTEN_FOR, **backend.TRIED_WITH, "torch": "2.99.0"}
    monkeypatch.setattr(backend, "version", versions.__getitem__)
    for _ in range(2):  # by the command, and by `train.run`
        assert backend.enter("transformers", tmp_path) == "transformers"
    warned = [message for message in caplog.messages if "2.99.0" in message]
    assert warned == [f"torch 2.99.0 is installed; r1track was tried with {backend.TRIED_WITH['torch']}"]


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
