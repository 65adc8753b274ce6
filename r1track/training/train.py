"""Train: a LoRA adapter, with TRL: the arm `grpo` by reward, the arm `sft` on true answers.

Both ask the tracker's own question; the reward reads answers with the tracker's own parser. With the backend `unsloth`
the same trainers run over its kernels: `backend.enter` must come before this module is imported.

Checkpoints stand under a scratch folder, so that the same command goes on after a kill; the adapter reaches its place
only when it is whole. A checkpoint of other settings is never taken up: it is deleted, and the log says so.
"""

import dataclasses
import functools
import importlib.util
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image, List
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from r1track.core import config, files, models, prompts
from r1track.core.pairs import load as open_pairs
from r1track.core.pairs import questions
from r1track.training import backend, progress, rewards
from r1track.training.shared_prefix import SharedPrefixTrainer, make_rollout

log = logging.getLogger(__name__)
Reward = Callable[..., list[float]]
PARTS = {"iou": "iou", "giou": "giou", "format": "format", "length": "length_cost", "valid": "parsed"}


def make_reward(settings: config.Settings, examples: Path) -> Reward:
    """The reward that TRL calls: it logs the mean of each part, and now and then keeps a group in `examples`."""
    task, train = settings.task, settings.train

    def reward(completions: Any, completion_ids: Any, answer: Any, log_metric: Any, **columns: Any) -> list[float]:
        texts = [done[0]["content"] for done in completions]
        parts = [
            rewards.score(text, target, scheme=train.reward, size=size, think=task.think, tokens=len(ids))
            for text, target, size, ids in zip(texts, answer, columns["size"], completion_ids, strict=True)
        ]
        for part, name in PARTS.items():
            log_metric(name, float(np.mean([each[part] for each in parts])))  # type: ignore[literal-required]
        step = columns["trainer_state"].global_step
        if step % train.keep_every < train.rollout_steps:
            shown = [dict(each, answer=text) for each, text in zip(parts[: train.group], texts, strict=False)]
            progress.keep_example(examples, step, columns["images"][0], {"target": list(answer[0]), "answers": shown})
        return [part["total"] for part in parts]

    return reward


def arguments(kind: type[Any], values: dict[str, Any]) -> Any:
    """Trainer arguments of this kind, each held by the library as it was given.

    Unsloth drops names that it does not know and changes some values, with no more than a printed line.
    Raises ValueError naming what was dropped or changed.
    """
    unknown = set(values) - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise ValueError(f"{kind.__name__} has no {sorted(unknown)}; the installed TRL is not the one that is pinned")
    made = kind(**values)
    for name, value in values.items():
        held = getattr(made, name)
        if name != "report_to" and getattr(held, "value", held) != value:
            raise ValueError(f"{kind.__name__}.{name}: {value!r} became {held!r}; give a value that it leaves alone")
    return made


def _common(settings: config.Settings, scratch: Path) -> dict[str, Any]:
    """Trainer arguments that both arms share."""
    train, cuda = settings.train, torch.cuda.is_available()
    if train.optimizer == "adamw_8bit" and not cuda:
        raise ValueError("train.optimizer = 'adamw_8bit': needs a CUDA card; take adamw_torch")
    if train.report_to != "none" and importlib.util.find_spec(train.report_to) is None:
        raise ValueError(f"train.report_to = {train.report_to!r}: not installed; `pip install {train.report_to}`")
    return {
        "output_dir": str(scratch),
        "seed": settings.seed,
        "data_seed": settings.seed,
        "weight_decay": train.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": train.clip_norm,
        "optim": train.optimizer,
        "gradient_checkpointing": cuda,  # on a CPU memory is not the limit
        "bf16": cuda and settings.model.dtype == "bfloat16",
        "fp16": False,
        "use_cpu": not cuda,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not finite is to be seen
        "save_strategy": "steps",
        "save_steps": train.save_every,
        "save_total_limit": 2,
        "report_to": train.report_to,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
    }


def sft_arguments(settings: config.Settings, scratch: Path) -> SFTConfig:
    """TRL's arguments for the supervised arm; the loss is on the answer's tokens only."""
    sft = settings.train.sft
    values = {
        **_common(settings, scratch),
        "max_steps": sft.steps,
        "per_device_train_batch_size": sft.micro_batch,
        "gradient_accumulation_steps": sft.batch // sft.micro_batch,
        "learning_rate": sft.learning_rate,
        "lr_scheduler_type": sft.schedule,
        "warmup_steps": math.ceil(settings.train.warmup * sft.steps),
        "completion_only_loss": True,
        # The mean over answer tokens either way; in chunks, the logits of the prompts are never made.
        "loss_type": "nll" if backend.choose(settings.train.backend) == "unsloth" else "chunked_nll",
        "max_length": None,
        "packing": False,
    }
    return arguments(SFTConfig, values)


def grpo_arguments(settings: config.Settings, scratch: Path, stop: list[int]) -> GRPOConfig:
    """TRL's arguments for GRPO, every one that matters set: its defaults are not the paper's.

    stop: ids of tokens that no answer may hold.
    """
    train = settings.train
    answers = train.group * train.prompts_per_step
    values = {
        **_common(settings, scratch),
        "max_steps": train.steps,
        "per_device_train_batch_size": train.micro_batch,
        "gradient_accumulation_steps": answers // train.micro_batch,
        "generation_batch_size": answers * train.rollout_steps,
        "num_iterations": 1,
        "num_generations": train.group,
        "max_completion_length": train.max_tokens,
        "temperature": train.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "generation_kwargs": {"suppress_tokens": stop},
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": math.ceil(train.warmup * train.steps),
        "beta": train.beta,
        "use_bias_correction_kl": False,  # the paper's k3 estimate as it is
        "epsilon": train.epsilon,
        "epsilon_high": train.epsilon_high,
        "loss_type": train.loss,
        "scale_rewards": train.scale_rewards,
        "mask_truncated_completions": False,
        "disable_dropout": False,
        "shuffle_dataset": True,
    }
    return arguments(GRPOConfig, values)


def with_prompts(pairs: Dataset, think: bool, completions: list[Any] | None = None) -> Dataset:
    """The pairs with the columns that the trainers want: `prompt`, `images` in the order of their places, not copied.

    With completions there is the column `completion` too; without, what the reward needs. Rows that are fetched
    together and show the same image get one object for it.
    """
    asked = questions(pairs, think)
    if completions is None:
        rows = pairs.select_columns(["images", "answer", "size"]).add_column("prompt", asked)
    else:
        rows = pairs.select_columns(["images"]).add_column("prompt", asked).add_column("completion", completions)
    return rows.cast_column("images", List(Image(decode=False))).with_transform(_with_images)


def _with_images(batch: dict[str, Any]) -> dict[str, Any]:
    """The rows with their images decoded, each once, in the order of their places."""
    opened = functools.cache(lambda data, path: Image().decode_example({"bytes": data, "path": path}))
    rows = [[opened(image["bytes"], image["path"]) for image in row] for row in batch["images"]]
    return {**batch, "images": [prompts.places(row) for row in rows]}


def with_answers(pairs: Dataset, think: bool) -> Dataset:
    """The pairs with the columns `prompt` and `completion`: what the supervised arm learns from.

    With `think` the pairs must have the column `thought`: the words to be learned before the box; else ValueError.
    """
    told = [prompts.numbers(box) for box in pairs["answer"]]
    if think:
        if "thought" not in pairs.column_names:
            raise ValueError("task.think: sft needs pairs with a column `thought`, which `sample` does not write")
        told = [prompts.thoughtful(*both) for both in zip(pairs["thought"], told, strict=True)]
    return with_prompts(pairs, think, [[{"role": "assistant", "content": text}] for text in told])


def prepare_scratch(scratch: Path, identity: dict[str, Any], steps: int) -> Path | None:
    """The newest whole checkpoint of this very run to go on from; checkpoints of any other run are deleted.

    Not one of the last of the `steps`: the trainer would take one step more.
    """
    mark = scratch / "identity.json"
    if mark.exists() and files.read_json(mark) != identity:
        log.warning("%s: checkpoints of other settings or pairs are deleted", scratch)
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    files.write_json(mark, identity)
    done = {int(p.name.split("-")[1]): p for p in scratch.glob("checkpoint-*") if _whole(p / "trainer_state.json")}
    return done.get(max((step for step in done if step < steps), default=-1))


def _whole(state: Path) -> bool:
    """Whether the file that the trainer writes last into a checkpoint was written to its end."""
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def shares_prefix(settings: config.Settings) -> bool:
    """Whether a group's prompt is computed once: Unsloth's trainer has log-probabilities of its own, in its loss."""
    return settings.train.shared_prefix and backend.choose(settings.train.backend) == "transformers"


def make_watch(settings: config.Settings, arm: str, scratch: Path) -> progress.ProgressCallback:
    """What is shown and kept while the arm trains."""
    train, sft = settings.train, settings.train.sft
    samples = sft.batch if arm == "sft" else train.group * train.prompts_per_step
    return progress.ProgressCallback(scratch / "log.jsonl", samples, train.save_every)


def seed_epochs(trainer: GRPOTrainer) -> None:
    """Let the order of the pairs in an epoch follow from the seed and the epoch's number.

    TRL's sampler draws each where the last one ended, so a run gone on from a checkpoint would get the first one's.
    """
    make = trainer._get_train_sampler

    def seeded(dataset: Any = None) -> Any:
        sampler: Any = make(dataset)
        sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(sampler.seed + epoch)
        return sampler

    trainer._get_train_sampler = seeded  # type: ignore[method-assign]


def make_trainer(settings: config.Settings, arm: str, folder: Path, pairs: Path, scratch: Path) -> Any:
    """TRL's trainer for the arm, over the weights in `folder`; the adapter's weights are float32."""
    processor = models.load_processor(folder, settings.model)
    cut = open_pairs(pairs / "train", cache=scratch / "cache")
    asked_at_once = settings.train.prompts_per_step * settings.train.rollout_steps
    if arm == "grpo" and len(cut) < asked_at_once:  # the trainer would end at step 0, without an error
        raise ValueError(
            f"{pairs}: {len(cut)} pairs are fewer than the {asked_at_once} prompts of a rollout; sample more, or lower "
            "train.prompts_per_step or train.rollout_steps"
        )
    if backend.choose(settings.train.backend) == "unsloth":
        weights, adapter = models.load_unsloth(folder, settings), None
    else:
        weights = models.load_weights(folder, getattr(torch, settings.model.dtype), settings.train.quantize)
        adapter = models.make_adapter(settings.train.lora)
    shared: dict[str, Any] = {"model": weights, "processing_class": processor, "peft_config": adapter}
    trainer: Any
    if arm == "sft":
        told = with_answers(cut, settings.task.think)
        trainer = SFTTrainer(args=sft_arguments(settings, scratch), train_dataset=told, **shared)
    else:
        reward: Any = make_reward(settings, scratch / "examples")
        args = grpo_arguments(settings, scratch, models.suppressed(processor))
        asked = with_prompts(cut, settings.task.think)
        trainer_of: Any = GRPOTrainer
        if shares_prefix(settings):
            trainer_of, shared["rollout_func"] = SharedPrefixTrainer, make_rollout(settings.train, processor)
        trainer = trainer_of(reward_funcs=reward, args=args, train_dataset=asked, **shared)
        seed_epochs(trainer)
    if adapter is not None:  # Unsloth has its own way with the tower
        models.disable_vision_grad(trainer.model)
    for noisy in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(noisy)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # TRL casts them to bf16 over 4-bit weights, where a rate of 1e-6 moves nothing
            parameter.data = parameter.data.float()
    return trainer


def run(settings: config.Settings, arm: str, model: str, pairs: Path, scratch: Path, out: Path) -> None:
    """Train the arm on pairs/train and write the adapter, the log, the examples and the provenance to `out`.

    Raises FileNotFoundError for missing pairs or model, ValueError for arguments that the trainer would not keep,
    FloatingPointError when the loss is not finite.
    """
    provenance = files.Provenance("train", {"pairs": pairs / "manifest.json", "model": model}, settings.model.revision)
    folder = models.resolve_model_dir(model, settings.model.revision)
    stage = config.stage_values(settings, "train")
    inputs = {name: file.model_dump() for name, file in provenance.inputs.items()}
    kind = backend.enter(settings.train.backend, scratch)
    steps = settings.train.sft.steps if arm == "sft" else settings.train.steps
    checkpoint = prepare_scratch(scratch, {"arm": arm, "settings": stage, "backend": kind, "inputs": inputs}, steps)
    torch.manual_seed(settings.seed)
    trainer = make_trainer(settings, arm, folder, pairs, scratch)
    if checkpoint:
        log.info("going on from %s", checkpoint)
    watching = make_watch(settings, arm, scratch)
    trainer.add_callback(watching)
    with watching.live:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    rows = progress.history(trainer.state.log_history)
    seconds = sum(row["seconds"] for row in rows)
    notes = {
        "arm": arm, "model": model, "backend": kind, "quantize": settings.train.quantize, "train_seconds": seconds,
        "shared_prefix": arm == "grpo" and shares_prefix(settings), "settings": stage,
    }  # fmt: skip
    with files.atomic_folder(out) as temp_path:
        trainer.model.save_pretrained(temp_path)
        (temp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if arm == "grpo":
            shutil.copytree(scratch / "examples", temp_path / "examples")
        provenance.write(temp_path / "provenance.json", seed=settings.seed, notes=notes)
    measure = "reward" if arm == "grpo" else "loss"
    seen = [row[measure] for row in rows if measure in row]
    log.info("%s: %s %.3f -> %.3f over %d steps", arm, measure, seen[0], seen[-1], len(rows))
