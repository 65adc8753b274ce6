"""The arms as a whole: both, over 4 and 16 bits, with two and three images, with and without thinking."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import accustomed, toy_pairs, varied_pairs, with_pixels

from r1track.core import config, files, models
from r1track.training import merge, progress, train

THOUGHT = "the same target"


def settings(think: bool = False, templates: int = 1, dtype: str = "float32", **changes: Any) -> config.Settings:
    short = {
        "eval_every": 0,
        "steps": 8,
        "save_every": 100,
        "prompts_per_step": 2,
        "group": 16,
        "micro_batch": 32,
        "warmup": 0.0,
    }
    values = {
        "preset": "demo",
        "model": {"dtype": dtype},
        "task": {"think": think, "templates": templates},
        "sample": {"pairs": 24, "val_pairs": 12},
        "train": {**short, "learning_rate": 1e-3, "max_tokens": 32, **changes},
        "track": {"max_tokens": 32},
    }
    made: config.Settings = config.resolve(values)
    return made


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_pairs(tmp_path_factory.mktemp("data"), settings())


@pytest.fixture(scope="module")
def bases(cut: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """By whether they think: bases that know prompts of three images too, as the tiny one does not."""
    folder = tmp_path_factory.mktemp("bases")
    return {
        think: accustomed(
            varied_pairs(cut, folder / f"pairs-{think}", rows=12, later="some", thought=THOUGHT if think else None),
            folder / f"model-{think}",
        )
        for think in (False, True)
    }


def reward_course(made: config.Settings, arm: str, model: str, data: Path, scratch: Path) -> list[float]:
    """What each step was worth: reward, or minus the loss. Checks that the adapter alone has moved, in float32."""
    trainer = train.make_trainer(made, arm, models.resolve_model_dir(model), data, scratch)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(before[name], value)}
    learned = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert moved == set(learned)
    assert all("lora_" in name and "language_model" in name for name in learned)
    assert {value.dtype for value in learned.values()} == {torch.float32}
    rows = progress.history(trainer.state.log_history)
    return [row["reward"] if arm == "grpo" else -row["loss"] for row in rows]


@pytest.mark.parametrize("later", ["none", "all"])
@pytest.mark.parametrize(("quantize", "dtype"), [("nf4", "float32"), ("none", "bfloat16")])
@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize("arm", ["sft", "grpo"])
def test_reward_rises_and_only_the_adapter_moves(
    arm: str, think: bool, quantize: str, dtype: str, later: str, cut: Path, bases: dict[bool, Path], tmp_path: Path
) -> None:
    data = varied_pairs(cut, tmp_path / "pairs", rows=2, later=later, thought=THOUGHT if think else None)
    made = settings(
        think=think,
        templates=2 if later == "all" else 1,
        dtype=dtype,
        quantize=quantize,
        group=64,  # a smaller one makes the course a matter of luck
        micro_batch=64,
        learning_rate=2e-3 if think else 1e-3,
        sft={"steps": 8, "batch": 2, "micro_batch": 2, "learning_rate": 2e-3},
    )
    course = reward_course(made, arm, str(bases[think]), data, tmp_path / "scratch")
    assert len(course) == 8
    assert sum(course[-3:]) > sum(course[:3]), course


def reference_of(trainer: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The reference's log-probabilities of a rollout by a policy that has moved away, and the rollout."""
    with torch.no_grad():
        for name, value in trainer.model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.02)
    trainer.model.train()
    rollout = trainer._generate_and_score_completions(
        [trainer.train_dataset[0] for _ in range(trainer.num_generations)]
    )
    return rollout["ref_per_token_logps"], with_pixels(trainer, rollout)


def plain_logps(model: Any, rollout: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities of the rollout's answers under a plain model, without TRL."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1)
    kinds = torch.zeros_like(ids).masked_fill(ids == model.config.image_token_id, 1)
    with torch.no_grad():
        logits = model(
            input_ids=ids, attention_mask=mask, pixel_values=rollout["pixel_values"],
            image_grid_thw=rollout["image_grid_thw"], mm_token_type_ids=kinds,
        ).logits  # fmt: skip
    start = rollout["prompt_ids"].shape[1]
    every = logits[:, start - 1 : -1].log_softmax(-1)
    return every.gather(2, rollout["completion_ids"].unsqueeze(2)).squeeze(2)


def test_the_kl_is_to_the_model_that_grpo_starts_from_and_to_no_other(cut: Path, tmp_path: Path) -> None:
    sft = {"steps": 6, "batch": 8, "micro_batch": 8, "learning_rate": 5e-3}
    made = settings(quantize="none", sft=sft, temperature=1.0, beta=0.05)
    train.run(made, "sft", "tiny", cut, tmp_path / "sft", tmp_path / "adapter")
    merge.run(made, "tiny", tmp_path / "adapter", None, tmp_path / "start")
    trainer = train.make_trainer(made, "grpo", tmp_path / "start", cut, tmp_path / "grpo")
    reference, rollout = reference_of(trainer)
    mask = rollout["completion_mask"].bool()
    start, base = (
        plain_logps(models.load_weights(folder, torch.float32), rollout) for folder in (tmp_path / "start", models.TINY)
    )
    policy = plain_logps(trainer.model, rollout)
    assert (reference - start)[mask].abs().max() < 1e-4
    assert (reference - base)[mask].abs().max() > 0.05  # the model before sft would be seen
    assert (reference - policy)[mask].abs().max() > 0.05  # and so would the policy itself


@pytest.mark.parametrize("arm", ["sft", "grpo"])
def test_a_run_gone_on_from_a_later_epoch_ends_with_the_same_adapter(
    cut: Path, tmp_path: Path, arm: str, caplog: pytest.LogCaptureFixture
) -> None:
    sft = {"steps": 8, "batch": 2, "micro_batch": 2}
    made = settings(steps=8, save_every=2, rollout_steps=2, group=4, micro_batch=4, sft=sft)
    few = varied_pairs(cut, tmp_path / "pairs", rows=8)  # four steps are an epoch
    caplog.set_level("INFO")
    for out in ("whole", "again"):
        train.run(made, arm, "tiny", few, tmp_path / "scratch", tmp_path / out)
    whole, again = (files.hash_file(tmp_path / out / "adapter_model.safetensors") for out in ("whole", "again"))
    assert [line for line in caplog.messages if "resuming" in line] == [
        f"resuming from {tmp_path / 'scratch' / 'checkpoint-6'}"
    ]
    assert whole == again


def _train_in_silence(made: config.Settings, data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    train.run(made, "grpo", "tiny", data, folder / "scratch", folder / "adapter")


def test_a_run_killed_ten_times_at_random_moments_ends_with_the_same_adapter(cut: Path, tmp_path: Path) -> None:
    made = settings(steps=24, save_every=2, rollout_steps=2, group=4, micro_batch=4)
    few = varied_pairs(cut, tmp_path / "pairs", rows=8)  # four steps are an epoch
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["r1track.training.train"])  # imported once, not once per life
    chance = random.Random(4)

    def begin(folder: Path) -> Any:
        worker = fork.Process(target=_train_in_silence, args=(made, few, folder))
        worker.start()
        return worker

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begin(whole).join()
    step = sum(json.loads(line)["seconds"] for line in (whole / "adapter" / "log.jsonl").open()) / 24
    for life in range(10):
        log = killed / "scratch" / "log.jsonl"
        log.unlink(missing_ok=True)
        worker = begin(killed)
        while life and worker.is_alive() and not log.exists():  # the first life ends before its training begins
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 3 * step))
        assert worker.is_alive()
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    begin(killed).join()
    once, often = (folder / "adapter" / "adapter_model.safetensors" for folder in (whole, killed))
    assert files.hash_file(once) == files.hash_file(often)
    assert (often.parent / "log.jsonl").read_text().count("\n") == 24
