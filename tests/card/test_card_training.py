"""Training over Unsloth, on the demo's base: every combination of settings learns, goes on after a kill, and merges."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from card_runs import make_trainer, settings
from safetensors.torch import load_file

from r1track.core import files
from r1track.training import backend, merge, progress, rewards, train

GRPO = [
    pytest.param({"quantize": quantize, "shared_prefix": shared}, templates, think, id="-".join(
        (quantize, "three-images" if templates == 2 else "two-images", "think" if think else "no-think",
         "shared" if shared else "stock")))
    for quantize, templates, think, shared in product(("nf4", "none"), (1, 2), (False, True), (True, False))
]  # fmt: skip


@pytest.fixture
def drawn_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards drawn from a seed: the tiny base cannot think, and says nothing about three images."""
    rng = np.random.default_rng(0)

    def score(*args: Any, **named: Any) -> rewards.Parts:
        value = float(rng.random())
        return rewards.Parts(total=value, valid=1.0, iou=value, giou=value, format=0.0, length=0.0)

    monkeypatch.setattr(rewards, "score", score)


def learn(trainer: Any) -> list[dict[str, Any]]:
    """Train; the log's rows. Each step had a gradient, and the adapter alone has moved, in float32."""
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(before[name], value)}
    learnable = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert moved == set(learnable)
    assert all("lora_" in name and value.dtype == torch.float32 for name, value in learnable.items())
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 2
    assert all(row["grad_norm"] > 1e-6 and np.isfinite(row["loss"]) for row in rows)
    return rows


@pytest.mark.parametrize(("changes", "templates", "think"), GRPO)
def test_grpo_learns(
    changes: dict[str, Any], templates: int, think: bool, pairs: Path, mixed_pairs: Path, tmp_path: Path,
    drawn_rewards: None,
) -> None:  # fmt: skip
    run = settings(think=think, templates=templates, scale_rewards="none", **changes)
    trainer = make_trainer(run, "grpo", mixed_pairs if templates == 2 else pairs, tmp_path)
    assert type(trainer).__name__ == backend.trainer_name(run.train, "grpo")
    assert trainer.args.bf16
    rows = learn(trainer)
    assert all({"kl", "entropy", "reward", "frac_reward_zero_std"} <= row.keys() for row in rows)
    assert rows[1]["kl"] > 0


@pytest.mark.parametrize("quantize", ["nf4", "none"])
def test_sft_learns_and_logs_what_it_logs_over_transformers(quantize: str, pairs: Path, tmp_path: Path) -> None:
    logs = []
    for name in ("unsloth", "transformers"):
        trainer = make_trainer(settings(quantize=quantize, backend=name), "sft", pairs, tmp_path / name)
        assert trainer.args.max_length is None
        logs.append(learn(trainer))
    ours, stock = logs
    assert [row.keys() for row in ours] == [row.keys() for row in stock]
    assert {"mean_token_accuracy", "entropy"} <= ours[0].keys()
    assert ours[0]["loss"] == pytest.approx(stock[0]["loss"], rel=1e-3)  # the adapters are still 0; in bfloat16


def test_the_vision_towers_adapter_learns(pairs: Path, tmp_path: Path, drawn_rewards: None) -> None:
    trainer = make_trainer(settings(lora={"vision": True, "rank": 4, "alpha": 8}), "grpo", pairs, tmp_path)
    assert any(".visual." in name for name, value in trainer.model.named_parameters() if value.requires_grad)
    learn(trainer)


def test_a_rollout_for_two_steps_learns(pairs: Path, tmp_path: Path, drawn_rewards: None) -> None:
    learn(make_trainer(settings(rollout_steps=2), "grpo", pairs, tmp_path))


def test_without_a_reference_no_kl_is_logged(pairs: Path, tmp_path: Path, drawn_rewards: None) -> None:
    trainer = make_trainer(settings(beta=0.0), "grpo", pairs, tmp_path)
    assert all("kl" not in row for row in learn(trainer))
    assert list(trainer.model.peft_config) == ["default"]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "stock"])
def test_a_float32_configuration_computes_in_float32(
    shared: bool, pairs: Path, tmp_path: Path, drawn_rewards: None
) -> None:
    trainer = make_trainer(settings(dtype="float32", quantize="none", shared_prefix=shared), "grpo", pairs, tmp_path)
    seen: set[torch.dtype] = set()
    layer = trainer.model.get_base_model().model.language_model.layers[0]
    layer.mlp.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    learn(trainer)
    assert seen == {torch.float32}
    assert not trainer.args.bf16


@pytest.mark.parametrize("name", ["unsloth", "transformers"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "stock"])
def test_a_frozen_tower_runs_once_and_without_gradients(
    shared: bool, name: str, pairs: Path, tmp_path: Path, drawn_rewards: None
) -> None:
    run = settings(backend=name, shared_prefix=shared, steps=1, micro_batch=8, beta=0.0)
    trainer = make_trainer(run, "grpo", pairs, tmp_path)
    runs: list[bool] = []
    tower = trainer.model.get_base_model().model.visual
    tower.merger.register_forward_hook(lambda module, args, output: runs.append(output.requires_grad))
    rollouts: list[int] = []  # how often it ran before the loss
    loss = trainer.compute_loss
    trainer.compute_loss = lambda *args, **named: (rollouts.append(len(runs)), loss(*args, **named))[1]
    trainer.train()
    assert runs == [False] * len(runs)
    assert rollouts == ([1] if shared else [len(runs) - 1])
    assert len(runs) == (1 if shared else rollouts[0] + 1)  # stock TRL looks again in the loss, once: not in backward


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("arm", ["grpo", "sft"])
def test_a_killed_training_goes_on_to_the_same_bytes(
    arm: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = settings(steps=4, scale_rewards="none", sft={"steps": 4, "batch": 8, "micro_batch": 4})
    train.run(run, arm, "tiny", pairs, tmp_path / "whole", tmp_path / "adapter")
    end = progress.ProgressCallback.on_log

    def killed(self: Any, args: Any, state: Any, *parts: Any, **named: Any) -> None:
        end(self, args, state, *parts, **named)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(progress.ProgressCallback, "on_log", killed)
        with pytest.raises(KeyboardInterrupt):
            train.run(run, arm, "tiny", pairs, tmp_path / "scratch", tmp_path / "resumed")
    assert not (tmp_path / "resumed").exists()
    train.run(run, arm, "tiny", pairs, tmp_path / "scratch", tmp_path / "resumed")
    assert f"resuming from {tmp_path / 'scratch' / 'checkpoint-2'}" in caplog.text
    hashes = [files.hash_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "resumed")]
    assert hashes[0] == hashes[1]
    assert all(value.abs().max() > 0 for name, value in adapter_of(tmp_path / "adapter").items() if "lora_B" in name)


@pytest.mark.parametrize("quantize", ["nf4", "none"])
def test_the_merged_model_answers_as_the_adapter_does(quantize: str, pairs: Path, tmp_path: Path) -> None:
    run = settings(dtype="float32", quantize=quantize, steps=3, scale_rewards="none")
    train.run(run, "grpo", "tiny", pairs, tmp_path / "scratch", tmp_path / "adapter")
    record = files.read_json(tmp_path / "adapter" / "provenance.json")
    assert (record["backend"], record["trainer"]) == ("unsloth", "SharedPrefixTrainer")
    assert record["hardware"]["gpu"]["name"] == "NVIDIA GeForce RTX 4090"
    merge.run(run, "tiny", tmp_path / "adapter", pairs, tmp_path / "merged")
    assert files.read_json(tmp_path / "merged" / "merge.json")["agreement_original"] >= 11 / 12  # one near tie at most
