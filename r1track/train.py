"""Train: GRPO with TRL, a LoRA adapter on the language layers, and the tracker's own prompt, parser and reward.

Checkpoints stand under a scratch folder, so that the same command goes on after a kill; the adapter reaches its place
only when it is whole. A checkpoint of other settings is never taken up: it is deleted, and the log says so.
"""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

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


def make_arguments(settings: config.Settings, scratch: Path, stop: list[int]) -> GRPOConfig:
    """TRL's arguments, every one that matters set: its defaults are not the paper's.

    stop: ids of tokens that no answer may hold.
    """
    train, cuda = settings.train, torch.cuda.is_available()
    answers = train.group * train.prompts_per_step
    return GRPOConfig(
        output_dir=str(scratch),
        seed=settings.seed,
        data_seed=settings.seed,
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
        weight_decay=train.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.999,
        max_grad_norm=train.clip_norm,
        optim="adamw_torch",
        beta=train.beta,
        use_bias_correction_kl=False,  # the paper's k3 estimate as it is
        epsilon=train.epsilon,
        epsilon_high=train.epsilon_high,
        loss_type=train.loss,
        scale_rewards=train.scale_rewards,
        mask_truncated_completions=False,
        disable_dropout=False,
        gradient_checkpointing=cuda,  # on a CPU memory is not the limit
        bf16=cuda and settings.model.dtype == "bfloat16",
        fp16=False,
        use_cpu=not cuda,
        logging_steps=1,
        save_strategy="steps",
        save_steps=train.save_every,
        save_total_limit=2,
        report_to="none",
        remove_unused_columns=False,
        dataloader_num_workers=0,
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
    """The pairs with the column `prompt` that the trainer wants; images are not copied."""
    asked = [prompts.build(box, think=think) for box in pairs["template_box"]]
    return pairs.select_columns(["images", "answer"]).add_column("prompt", asked)


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

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        if logs is None or "reward" not in logs:
            return
        if not math.isfinite(logs.get("loss", 0.0)):
            raise FloatingPointError(
                f"the loss is {logs['loss']} at step {state.global_step}; lower train.learning_rate"
            )
        text = (
            f"reward {logs['reward']:.3f} IoU {logs.get('iou', math.nan):.3f} parsed {logs.get('parsed', math.nan):.2f}"
        )
        self.bar.update(self.task, completed=state.global_step, description=text)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.bar.stop()


def history(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trainer's log as our rows, one per optimiser step."""
    names = {
        "reward": "reward", "reward_std": "reward_std", "iou": "iou", "parsed": "parsed", "kl": "kl",
        "frac_reward_zero_std": "flat_groups", "entropy": "entropy", "completions/mean_length": "length",
        "loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate", "step_time": "seconds",
    }  # fmt: skip
    rows = [entry for entry in entries if "reward" in entry]
    return [{"step": row["step"], **{ours: row.get(theirs) for theirs, ours in names.items()}} for row in rows]


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


def run(settings: config.Settings, arm: str, model: str, pairs: Path, scratch: Path, out: Path) -> None:
    """Train the arm on pairs/train and write the adapter, the log and the provenance to `out`.

    Raises FileNotFoundError for missing pairs or model, FloatingPointError when the loss is not finite.
    """
    provenance = files.Provenance("train", [pairs / "manifest.json"])
    folder = models.folder_of(model, settings.model.revision)
    stage = config.stage_values(settings, "train")
    inputs = files.hash_file(pairs / "manifest.json") + files.hash_file(folder / "config.json")
    identity = {"arm": arm, "model": model, "settings": stage, "inputs": hashlib.sha256(inputs.encode()).hexdigest()}
    checkpoint = prepare_scratch(scratch, identity)
    torch.manual_seed(settings.seed)
    weights = models.load_weights(folder, getattr(torch, settings.model.dtype), settings.train.quantize)
    processor = models.load_processor(folder, settings.model)
    reward: Any = make_reward(settings)
    trainer = GRPOTrainer(
        model=weights,
        reward_funcs=reward,
        args=make_arguments(settings, scratch, models.suppressed(processor)),
        train_dataset=with_prompts(open_pairs(pairs / "train", cache=scratch / "cache"), settings.task.think),
        processing_class=processor,
        peft_config=make_adapter(settings),
        callbacks=[Watch()],
    )
    for noisy in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(noisy)
    tuned: Any = trainer.model
    for parameter in tuned.parameters():
        if parameter.requires_grad:  # TRL casts them to bf16 over 4-bit weights, where a rate of 1e-6 moves nothing
            parameter.data = parameter.data.float()
    if checkpoint:
        log.info("going on from %s", checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    rows = history(trainer.state.log_history)
    seconds = sum(row["seconds"] for row in rows)
    with files.atomic_folder(out) as aside:
        tuned.save_pretrained(aside)
        (aside / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        notes = {
            "arm": arm,
            "model": model,
            "quantize": settings.train.quantize,
            "train_seconds": seconds,
        }
        provenance.write(aside / "provenance.json", seed=settings.seed, base=settings.model.revision, **notes)
    log.info("%s: reward %.3f -> %.3f over %d steps", arm, rows[0]["reward"], rows[-1]["reward"], len(rows))
