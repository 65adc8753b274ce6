"""Train: a LoRA adapter on the language layers, with TRL: the arm `grpo` by reward, the arm `sft` on true answers.

Both ask the tracker's own question; the reward reads answers with the tracker's own parser.

Checkpoints stand under a scratch folder, so that the same command goes on after a kill; the adapter reaches its place
only when it is whole. A checkpoint of other settings is never taken up: it is deleted, and the log says so.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from r1track import config, files, models, prompts, rewards
from r1track.pairs import load as open_pairs

log = logging.getLogger(__name__)
Reward = Callable[..., list[float]]


def make_reward(settings: config.Settings) -> Reward:
    """The reward function that TRL calls; it also logs each step's mean IoU and share of readable answers."""
    task, scheme = settings.task, settings.train.reward

    def reward(completions: Any, completion_ids: Any, answer: Any, log_metric: Any, **columns: Any) -> list[float]:
        parts = [
            rewards.score(done[0]["content"], target, scheme=scheme, size=task.size, think=task.think, tokens=len(ids))
            for done, target, ids in zip(completions, answer, completion_ids, strict=True)
        ]
        log_metric("iou", float(np.mean([part["iou"] for part in parts])))
        log_metric("parsed", float(np.mean([part["valid"] for part in parts])))
        return [part["total"] for part in parts]

    return reward


def _common(settings: config.Settings, scratch: Path) -> dict[str, Any]:
    """Trainer arguments that both arms share."""
    train, cuda = settings.train, torch.cuda.is_available()
    return {
        "output_dir": str(scratch),
        "seed": settings.seed,
        "data_seed": settings.seed,
        "weight_decay": train.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "max_grad_norm": train.clip_norm,
        "optim": "adamw_torch",
        "gradient_checkpointing": cuda,  # on a CPU memory is not the limit
        "bf16": cuda and settings.model.dtype == "bfloat16",
        "fp16": False,
        "use_cpu": not cuda,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": train.save_every,
        "save_total_limit": 2,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
    }


def sft_arguments(settings: config.Settings, scratch: Path) -> SFTConfig:
    """TRL's arguments for the supervised arm; the loss is on the answer's tokens only."""
    sft = settings.train.sft
    return SFTConfig(
        **_common(settings, scratch),
        max_steps=sft.steps,
        per_device_train_batch_size=sft.micro_batch,
        gradient_accumulation_steps=sft.batch // sft.micro_batch,
        learning_rate=sft.learning_rate,
        lr_scheduler_type=sft.schedule,
        warmup_steps=math.ceil(settings.train.warmup * sft.steps),
        completion_only_loss=True,
        loss_type="nll",
        max_length=None,
        packing=False,
    )


def grpo_arguments(settings: config.Settings, scratch: Path, stop: list[int]) -> GRPOConfig:
    """TRL's arguments for GRPO, every one that matters set: its defaults are not the paper's.

    stop: ids of tokens that no answer may hold.
    """
    train = settings.train
    answers = train.group * train.prompts_per_step
    return GRPOConfig(
        **_common(settings, scratch),
        max_steps=train.steps,
        per_device_train_batch_size=train.micro_batch,
        gradient_accumulation_steps=answers // train.micro_batch,
        generation_batch_size=answers,
        num_iterations=1,
        num_generations=train.group,
        max_completion_length=train.max_tokens,
        temperature=train.temperature,
        top_p=1.0,
        top_k=0,
        generation_kwargs={"suppress_tokens": stop},
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.schedule,
        warmup_steps=math.ceil(train.warmup * train.steps),
        beta=train.beta,
        use_bias_correction_kl=False,  # the paper's k3 estimate as it is
        epsilon=train.epsilon,
        epsilon_high=train.epsilon_high,
        loss_type=train.loss,
        scale_rewards=train.scale_rewards,
        mask_truncated_completions=False,
        disable_dropout=False,
        shuffle_dataset=True,
    )


def make_adapter(settings: config.Settings) -> LoraConfig:
    """The adapter: on the named linear layers of the language model only, never on the vision tower."""
    lora = settings.train.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=rf".*language_model.*\.({'|'.join(lora.targets)})",
        task_type="CAUSAL_LM",
    )


def with_prompts(pairs: Dataset, think: bool) -> Dataset:
    """The pairs with the column `prompt` that the trainers want; images are not copied."""
    asked = [prompts.build(box, think=think) for box in pairs["template_box"]]
    return pairs.select_columns(["images", "answer"]).add_column("prompt", asked)


def with_answers(pairs: Dataset) -> Dataset:
    """The pairs with the columns `prompt` and `completion`: what the supervised arm learns from."""
    told = [[{"role": "assistant", "content": prompts.numbers(box)}] for box in pairs["answer"]]
    return with_prompts(pairs, think=False).remove_columns("answer").add_column("completion", told)


class Watch(TrainerCallback):
    """A progress bar with reward, IoU and ETA, and a stop when the loss is not finite."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )  # fmt: skip

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.bar.start()
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        state.log_history[-1]["seconds"] = time.perf_counter() - self.began
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"the loss is {logs['loss']} at step {state.global_step}; lower train.learning_rate"
            )
        text = " ".join(f"{name} {logs[name]:.3f}" for name in ("reward", "iou", "parsed", "loss") if name in logs)
        self.bar.update(self.task, completed=state.global_step, description=text)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.bar.stop()


def history(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trainer's log as our rows, one per optimiser step."""
    names = {
        "reward": "reward", "reward_std": "reward_std", "iou": "iou", "parsed": "parsed", "kl": "kl",
        "frac_reward_zero_std": "flat_groups", "entropy": "entropy", "completions/mean_length": "length",
        "mean_token_accuracy": "token_accuracy", "loss": "loss", "grad_norm": "grad_norm",
        "learning_rate": "learning_rate", "seconds": "seconds",
    }  # fmt: skip
    rows = [entry for entry in entries if "loss" in entry]
    return [{"step": row["step"], **{names[key]: row[key] for key in names if key in row}} for row in rows]


def prepare_scratch(scratch: Path, identity: dict[str, Any]) -> Path | None:
    """The newest checkpoint of this very run, if there is one; checkpoints of any other run are deleted."""
    mark = scratch / "identity.json"
    if mark.exists() and files.read_json(mark) != identity:
        log.warning("%s: checkpoints of other settings or pairs are deleted", scratch)
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    files.write_json(mark, identity)
    done = [p for p in scratch.glob("checkpoint-*") if (p / "trainer_state.json").exists()]
    return max(done, key=lambda p: int(p.name.split("-")[1]), default=None)


def make_trainer(settings: config.Settings, arm: str, folder: Path, pairs: Path, scratch: Path) -> Any:
    """TRL's trainer for the arm, over the weights in `folder`; the adapter's weights are float32."""
    weights = models.load_weights(folder, getattr(torch, settings.model.dtype), settings.train.quantize)
    processor = models.load_processor(folder, settings.model)
    cut = open_pairs(pairs / "train", cache=scratch / "cache")
    shared: dict[str, Any] = {
        "model": weights, "processing_class": processor, "peft_config": make_adapter(settings), "callbacks": [Watch()],
    }  # fmt: skip
    trainer: Any
    if arm == "sft":
        trainer = SFTTrainer(args=sft_arguments(settings, scratch), train_dataset=with_answers(cut), **shared)
    else:
        reward: Any = make_reward(settings)
        arguments = grpo_arguments(settings, scratch, models.suppressed(processor))
        asked = with_prompts(cut, settings.task.think)
        trainer = GRPOTrainer(reward_funcs=reward, args=arguments, train_dataset=asked, **shared)
    for noisy in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(noisy)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # TRL casts them to bf16 over 4-bit weights, where a rate of 1e-6 moves nothing
            parameter.data = parameter.data.float()
    return trainer


def run(settings: config.Settings, arm: str, model: str, pairs: Path, scratch: Path, out: Path) -> None:
    """Train the arm on pairs/train and write the adapter, the log and the provenance to `out`.

    Raises FileNotFoundError for missing pairs or model, FloatingPointError when the loss is not finite.
    """
    provenance = files.Provenance("train", [pairs / "manifest.json"])
    folder = models.folder_of(model, settings.model.revision)
    stage = config.stage_values(settings, "train")
    inputs = {"pairs": files.hash_file(pairs / "manifest.json"), "model": files.hash_path(folder)}
    checkpoint = prepare_scratch(scratch, {"arm": arm, "settings": stage, **inputs})
    torch.manual_seed(settings.seed)
    trainer = make_trainer(settings, arm, folder, pairs, scratch)
    if checkpoint:
        log.info("going on from %s", checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    rows = history(trainer.state.log_history)
    seconds = sum(row["seconds"] for row in rows)
    notes = {"arm": arm, "model": model, "quantize": settings.train.quantize, "train_seconds": seconds}
    with files.atomic_folder(out) as aside:
        trainer.model.save_pretrained(aside)
        (aside / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        provenance.write(aside / "provenance.json", seed=settings.seed, base=settings.model.revision, **notes)
    measure = "reward" if arm == "grpo" else "loss"
    log.info("%s: %s %.3f -> %.3f over %d steps", arm, measure, rows[0][measure], rows[-1][measure], len(rows))
