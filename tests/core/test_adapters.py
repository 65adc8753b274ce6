"""Adapters: loaded whole over the tiny base, given to every layer that the configuration names, or refused by name."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from copied_weights import NO_JSON, edited, renamed, spoiled, without
from peft import get_peft_model
from safetensors.torch import load_file

from r1track.core import config, models
from r1track.core.errors import MissingFile, UserError

SETTINGS = config.resolve({"preset": "demo"})


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the demo's form whose update is not zero."""
    torch.manual_seed(0)
    adapted: Any = get_peft_model(
        models.load_weights(models.TINY, torch.float32), models.make_adapter(SETTINGS.train.lora)
    )
    for name, tensor in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.02)
    adapted.save_pretrained(tmp_path_factory.mktemp("adapter") / "grpo")
    return tmp_path_factory.getbasetemp() / "adapter0" / "grpo"


@pytest.mark.parametrize("kind", NO_JSON)
def test_an_adapter_whose_configuration_is_damaged_is_named(kind: str, adapter: Path, tmp_path: Path) -> None:
    wrong = shutil.copytree(adapter, tmp_path / "wrong")
    (wrong / "adapter_config.json").write_bytes(NO_JSON[kind])
    with pytest.raises(UserError, match=f"^{wrong}: cannot be read .*; give an adapter that `train` wrote"):
        models.load("tiny", SETTINGS.model, adapter=wrong)


def test_an_adapter_is_loaded_whole(adapter: Path) -> None:
    adapted = models.load("tiny", SETTINGS.model, adapter=adapter).model
    stored = load_file(adapter / "adapter_model.safetensors")
    on = {name.replace(".default.", "."): value for name, value in adapted.named_parameters() if ".default." in name}
    assert on.keys() == stored.keys()
    assert all(torch.equal(on[name], value) for name, value in stored.items())
    assert not any(parameter.requires_grad for parameter in adapted.parameters())
    assert not adapted.training


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        (without(".layers.2."), {}, r"14 missing \(base_model.model.model.language_model.layers.2.mlp.down_proj"),
        (renamed("model.language_model.", "model.t."), {}, r"56 missing .*, 56 not in the model \(base_model.model.mo"),
        (renamed("^base_model.model.", ""), {}, r"56 missing .*, 56 not in the model \(model.language_model"),
        (renamed("^", "base_model.model."), {}, r"56 missing .*, 56 not in the model \(base_model.model.base_model"),
        (None, {"r": 8}, r"56 of another shape \(base_model.model.model.language_model.layers.0.mlp.down_proj.lora_A"),
        (lambda tensors: {k: v.repeat(1, 2) if "lora_A" in k else v for k, v in tensors.items()}, {}, r"28 of another"),
        (None, {"target_modules": ["q_proj"]}, r"48 not in the model \(base_model.model.model.language_model"),
        (None, {"target_modules": ["c_attn"]}, r"c_attn.* not found in the base model.*; give an adapter that `train`"),
        (None, {"r": "high"}, r"give an adapter that `train` wrote over this base"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_the_base_is_refused_by_folder_and_names(
    weights: Any, changes: dict[str, Any], message: str, adapter: Path, tmp_path: Path
) -> None:
    wrong = edited(adapter, tmp_path / "wrong", weights, changes)
    with pytest.raises(UserError, match=f"^{wrong}.*{message}"):
        models.load("tiny", SETTINGS.model, adapter=wrong)


def test_an_adapter_that_is_not_there_or_cut_short_is_named(adapter: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        partial = shutil.copytree(adapter, tmp_path / name)
        (partial / name).unlink()
        with pytest.raises(MissingFile, match=f"^{partial / name}: not there; give an adapter that `train` wrote"):
            models.load("tiny", SETTINGS.model, adapter=partial)
    cut = edited(adapter, tmp_path / "cut") / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"^{cut}: cannot be read "):
        models.load("tiny", SETTINGS.model, adapter=cut.parent)


def test_every_target_of_the_configuration_is_a_layer_of_each_block_and_gets_an_adapter() -> None:
    for target in SETTINGS.train.lora.targets:
        lora = SETTINGS.train.lora.model_copy(update={"targets": [target]})
        adapted: Any = get_peft_model(models.load_weights(models.TINY, torch.float32), models.make_adapter(lora))
        names = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if "lora_A" in name}
        assert len(names) == 4
        assert all(name.endswith(target) and "language_model" in name for name in names)


@pytest.mark.parametrize("wrong", ["v_prj", "qkv", "(q_proj|v_proj", ".*"])
def test_a_target_that_is_no_layer_of_the_language_model_is_refused_with_the_known_names(wrong: str) -> None:
    known = "'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj' or 'down_proj'"
    with pytest.raises(
        config.ConfigError, match=re.escape(f"train.lora.targets.1 = {wrong!r}: Input should be {known}")
    ):
        config.resolve({"train": {"lora": {"targets": ["q_proj", wrong]}}})


def test_an_adapter_that_is_not_finite_is_named(adapter: Path, tmp_path: Path) -> None:
    name = "base_model.model.model.language_model.layers.3.self_attn.q_proj.lora_B.weight"
    wrong = edited(adapter, tmp_path / "wrong", spoiled(name, float("nan")))
    with pytest.raises(UserError, match=f"^{wrong}: .*layers.3.self_attn.q_proj.lora_B.default.weight holds NaN"):
        models.load("tiny", SETTINGS.model, adapter=wrong)
