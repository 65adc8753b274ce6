"""Train: a LoRA adapter, with TRL: the arm `grpo` by reward, the arm `sft` on true answers.

Both use the tracker's own prompt; the reward reads completions with the tracker's own parser. TRL's own trainers run
over either backend (trl_patches.py); `backend.enter` must be called before this module is imported.

Checkpoints are in a scratch folder, and the same command resumes from them after a kill; the adapter is moved to its
place when it is complete. Checkpoints that are damaged or of other settings are not resumed: they are deleted, and the
log says so (checkpoints.py).
"""

import functools
import importlib.util
import json
import logging
import math
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image, List
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig, SFTConfig

from r1track.core import card, config, files, models, prompts, schema
from r1track.core.crops import processed_size
from r1track.core.errors import UserError, naming
from r1track.core.folders import atomic_folder, check_replaceable, locked
from r1track.core.graphs import check_card
from r1track.core.pairs import OTHERS, first_rows, questions, shards
from r1track.core.pairs import load as open_pairs
from r1track.core.provenance import Provenance
from r1track.core.train_schema import Sft, Train
from r1track.training import backend, checkpoints, own_reward, progress, rewards, trl_patches
from r1track.training.evaluation import Evaluation
from r1track.training.shared_prefix import make_rollout
from r1track.training.stopping import StopCallback

log = logging.getLogger(__name__)
Reward = Callable[..., list[float]]
PROJECT = "r1track"  # under which Trackio and W&B show the runs
PARTS = {"iou": "iou", "giou": "giou", "format": "format", "length": "length_cost", "valid": "parsed"}


def make_reward(settings: config.Settings, examples: Path) -> Reward:
    """The reward that TRL calls. It logs the mean of each part, and saves a group every train.keep_every steps."""
    task, train = settings.task, settings.train
    own = own_reward.load(train.reward) if ":" in train.reward else None
    scheme: Any = "iou" if own else train.reward

    def reward(completions: Any, completion_ids: Any, answer: Any, log_metric: Any, **columns: Any) -> list[float]:
        texts = [messages[0]["content"] for messages in completions]
        parts = [
            rewards.score(text, target, scheme=scheme, size=size, think=task.think, tokens=len(ids))
            for text, target, size, ids in zip(texts, answer, columns["size"], completion_ids, strict=True)
        ]
        for k, scores in enumerate(parts):
            if own is None:
                break
            pair = {name: columns[name][k] for name in OTHERS if name in columns}
            scores["total"] = own(own_reward.answer_of(texts[k], answer[k], pair, task.think, len(completion_ids[k])))
        for text, target, scores in zip(texts, answer, parts, strict=True):
            if not math.isfinite(scores["total"]):
                raise UserError(f"the reward of {text!r} for {target} is {scores['total']}; sample the pairs again")
        for part, name in PARTS.items():
            log_metric(name, float(np.mean([scores[part] for scores in parts])))  # type: ignore[literal-required]
        step = columns["trainer_state"].global_step
        if step % train.keep_every < train.rollout_steps:
            group = [dict(scores, answer=text) for scores, text in zip(parts[: train.group], texts, strict=False)]
            images = prompts.search_last(columns["images"][0], columns["problem"][0])
            progress.keep_example(examples, step, images, {"target": list(answer[0]), "answers": group})
        return [part["total"] for part in parts]

    return reward


def _common(settings: config.Settings, scratch: Path, arm: Train | Sft, samples: int) -> dict[str, Any]:
    """Trainer arguments that both arms share; samples: per optimiser step."""
    train, cuda = settings.train, torch.cuda.is_available()
    return {
        "output_dir": str(scratch), "seed": settings.seed, "data_seed": settings.seed,
        "max_steps": arm.steps, "warmup_steps": math.ceil(train.warmup * arm.steps),
        "learning_rate": arm.learning_rate, "lr_scheduler_type": arm.schedule,
        "per_device_train_batch_size": arm.micro_batch, "gradient_accumulation_steps": samples // arm.micro_batch,
        "optim": train.optimizer, "weight_decay": train.weight_decay, "max_grad_norm": train.clip_norm,
        "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
        "gradient_checkpointing": cuda,  # on a CPU memory is not the limit
        "bf16": cuda and settings.model.dtype == "bfloat16", "fp16": False, "use_cpu": not cuda,
        "logging_steps": 1, "report_to": train.report_to, "project": PROJECT,
        "logging_nan_inf_filter": False,  # a loss that is not finite is to be seen
        "save_strategy": "steps", "save_steps": train.save_every, "save_total_limit": 2,
        "remove_unused_columns": False, "dataloader_num_workers": 0,
    }  # fmt: skip


def sft_arguments(settings: config.Settings, scratch: Path) -> dict[str, Any]:
    """TRL's arguments for the supervised arm; the loss is on the answer's tokens only."""
    sft = settings.train.sft
    return {
        **_common(settings, scratch, sft, sft.batch),
        "completion_only_loss": True, "max_length": None, "packing": False,
        "loss_type": "chunked_nll",  # the mean over the answers' tokens; the logits of the prompts are never made
    }  # fmt: skip


def grpo_arguments(settings: config.Settings, scratch: Path, stop: list[int]) -> dict[str, Any]:
    """TRL's arguments for GRPO, every one that matters set: its defaults are not the paper's.

    stop: ids of tokens that no completion may have.
    """
    train = settings.train
    answers = train.group * train.prompts_per_step
    return {
        **_common(settings, scratch, train, answers),
        "generation_batch_size": answers * train.rollout_steps, "num_iterations": 1, "num_generations": train.group,
        "max_completion_length": train.max_tokens, "generation_kwargs": {"suppress_tokens": stop},
        "temperature": train.temperature, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0,
        "beta": train.beta,
        "use_bias_correction_kl": False,  # the paper's k3 estimate as it is
        "epsilon": train.epsilon, "epsilon_high": train.epsilon_high,
        "loss_type": train.loss, "scale_rewards": train.scale_rewards,
        "mask_truncated_completions": False, "disable_dropout": False, "shuffle_dataset": True,
    }  # fmt: skip


def with_prompts(
    pairs: Dataset, task: schema.Task, completions: list[Any] | None = None, others: Sequence[str] = ()
) -> Dataset:
    """The pairs with the columns of the trainers: `prompt`, and `images` in the order of their places, not copied.

    With completions also `completion`, for sft; without, the columns that the reward reads, and `others`. Rows that are
    fetched together share one object for the same image.
    """
    columns = dict.fromkeys(["images", "problem", *(["answer", "size", *others] if completions is None else [])])
    rows = pairs.select_columns([*columns]).add_column("prompt", questions(pairs, task))
    if completions is not None:
        rows = rows.add_column("completion", completions)
    return rows.cast_column("images", List(Image(decode=False))).with_transform(_with_images)


def _with_images(batch: dict[str, Any]) -> dict[str, Any]:
    """The rows with their images decoded, each once, in the order of their places."""
    opened = functools.cache(lambda data, path: Image().decode_example({"bytes": data, "path": path}))
    rows = [[opened(image["bytes"], image["path"]) for image in row] for row in batch["images"]]
    return {**batch, "images": [*map(prompts.places, rows, batch["problem"])]}


def with_answers(pairs: Dataset, task: schema.Task) -> Dataset:
    """The pairs with the columns `prompt` and `completion`, for sft.

    With task.think the pairs must have the column `thought`, the text before the box, without nulls; else UserError.
    """
    texts = [prompts.numbers(box, task.box) for box in pairs["answer"]]
    if task.think:
        if "thought" not in pairs.column_names or None in pairs["thought"]:
            fault = "task.think: sft needs pairs with a column `thought`, which `sample` writes from a sample.hub"
            raise UserError(f"{fault} in the format sharegpt alone; take such a data set, or leave the arm sft out")
        texts = [prompts.thoughtful(*both) for both in zip(pairs["thought"], texts, strict=True)]
    return with_prompts(pairs, task, [[{"role": "assistant", "content": text}] for text in texts])


def make_watch(settings: config.Settings, arm: str, scratch: Path) -> progress.ProgressCallback:
    """The callback that displays and logs the training of an arm."""
    train, sft = settings.train, settings.train.sft
    samples = sft.batch if arm == "sft" else train.group * train.prompts_per_step
    return progress.ProgressCallback(scratch / "log.jsonl", samples, train.save_every)


def make_trainer(settings: config.Settings, arm: str, folder: Path, pairs: Path, scratch: Path) -> Any:
    """TRL's trainer for the arm, over the weights in `folder`; the adapter's weights are float32.

    Raises UserError for fewer pairs than a rollout has prompts, and for trainer arguments that are not left as given.
    """
    train, processor = settings.train, models.load_processor(folder, settings.model)
    rows = open_pairs(pairs / "train", cache=scratch / "cache")
    for size in sorted(set(rows["size"])):
        if processed_size((size, size), settings.model) != (size, size):
            limits = f"model.min_pixels..max_pixels = {settings.model.min_pixels}..{settings.model.max_pixels}"
            raise UserError(f"{pairs}: a search region of {size} x {size} pixels is resized by {limits}; widen them")
    prompts_per_rollout = train.prompts_per_step * train.rollout_steps
    if arm == "grpo" and len(rows) < prompts_per_rollout:  # the trainer would end at step 0, without an error
        raise UserError(
            f"{pairs}: {len(rows)} pairs are fewer than the {prompts_per_rollout} prompts of a rollout; sample more, "
            "or lower train.prompts_per_step or train.rollout_steps"
        )
    model, adapter = backend.load(backend.choose(train.backend), folder, settings)
    trainer_class = getattr(trl_patches, backend.trainer_name(train, arm))
    parts: dict[str, Any] = {"model": model, "processing_class": processor, "peft_config": adapter}
    if arm == "sft":
        values = sft_arguments(settings, scratch)
        parts |= {"args": trl_patches.arguments(SFTConfig, values)}
        parts |= {"train_dataset": with_answers(rows, settings.task)}
    else:
        values = grpo_arguments(settings, scratch, models.suppressed(processor))
        parts |= {"args": trl_patches.arguments(GRPOConfig, values)}
        parts |= {"reward_funcs": make_reward(settings, scratch / "examples")}
        others = [name for name in OTHERS if name in rows.column_names] if ":" in train.reward else []
        parts |= {"train_dataset": with_prompts(rows, settings.task, others=others)}
        parts |= {"rollout_func": make_rollout(settings, processor)} if train.shared_prefix else {}
    trainer = trainer_class(**parts)
    if arm == "grpo":
        trl_patches.seed_epochs(trainer)
    trl_patches.check_arguments(trainer.args, values)
    trl_patches.drop_reference_adapter(trainer.model)
    trl_patches.disable_vision_grad(trainer.model)
    trl_patches.keep_adapter_float32(trainer.model)
    trl_patches.check_rollouts(trainer.model)
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    return trainer


def _name_base(file: Path, model: str, commit: str | None) -> None:
    """Let an adapter_config.json name base and class as they were given, so that AutoPeftModel finds them."""
    names = {"base_model_class": "Qwen2_5_VLForConditionalGeneration", "parent_library": "transformers"}
    base = {"base_model_name_or_path": model, "revision": commit, "task_type": None, "auto_mapping": names}
    files.write_json(file, files.read_json(file) | base)


def run(settings: config.Settings, arm: str, model: str, pairs: Path, scratch: Path, out: Path) -> None:
    """Train the arm on pairs/train and write the adapter, the log, the examples and the provenance to `out`.

    One process at a time may write to `out` and to `scratch`. Raises UserError, before any work, for what this machine
    cannot do, then for missing pairs or model, for arguments that the trainer would not keep, and when the loss is not
    finite.
    """
    check_replaceable(out, "train")
    train = settings.train
    if train.optimizer == "adamw_8bit" and not torch.cuda.is_available():
        raise UserError("train.optimizer = 'adamw_8bit': needs a CUDA card; take adamw_torch")
    if train.graphs and arm == "grpo":
        check_card("train.graphs")
    if train.report_to != "none" and importlib.util.find_spec(train.report_to) is None:
        raise UserError(
            f"train.report_to = {train.report_to!r}: not installed; `pip install {train.report_to}`, or set it to none"
        )
    kind = backend.enter(train.backend, scratch)
    for split in ("train", "val") if train.eval_every else ("train",):
        shards(pairs / split)  # before anything is written, and checkpoints of other pairs are deleted
    if arm == "grpo" and ":" in train.reward:
        own_reward.try_on(train.reward, first_rows(pairs / "train"), settings.task.think)
    with atomic_folder(out, "train") as temp_path, locked(scratch):
        _train(settings, arm, model, pairs, scratch, temp_path, kind)


def _train(
    settings: config.Settings, arm: str, model: str, pairs: Path, scratch: Path, out: Path, kind: backend.Backend
) -> None:
    for name, value in {"WANDB_PROJECT": PROJECT, "WANDB_DIR": str(scratch)}.items():
        os.environ.setdefault(name, value)
    made_from: dict[str, Path | str] = {"pairs": pairs / "manifest.json", "model": model}
    if arm == "grpo" and (file := own_reward.source(settings.train.reward)):
        made_from["reward"] = file
    provenance = Provenance("train", made_from, settings.model.revision)
    folder = models.resolve_model_dir(model, settings.model.revision)
    models.check_weights(folder)  # of a damaged base, before checkpoints of the whole one are deleted
    stage = config.stage_values(settings, config.stage_file("train", arm))
    inputs = {name: file.model_dump() for name, file in provenance.inputs.items()}
    steps = settings.train.sft.steps if arm == "sft" else settings.train.steps
    identity = {"arm": arm, "settings": stage, "backend": kind, "inputs": inputs}
    checkpoint = checkpoints.prepare_scratch(scratch, identity, steps)
    torch.manual_seed(settings.seed)
    trainer = make_trainer(settings, arm, folder, pairs, scratch)
    if checkpoint:
        log.info("resuming from %s", checkpoint)
    watching = make_watch(settings, arm, scratch)
    stop = StopCallback(settings.train.rollout_steps if arm == "grpo" else 1)
    held_out = Evaluation(settings, arm, folder, pairs, scratch, trainer) if settings.train.eval_every else None
    for callback in (watching, *([held_out] if held_out else []), checkpoints.Seal, stop):
        trainer.add_callback(callback)
    with watching.live, naming(scratch), stop.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if (last := trainer.state.global_step) < steps:
        if not stop.received:
            raise RuntimeError(f"the trainer ended after step {last} of {steps}, though no signal told it to")
        name = signal.Signals(stop.received).name
        log.warning("stopped by %s after step %d; the same command goes on from there", name, last)
        raise SystemExit(128 + stop.received)
    rows = progress.history(trainer.state.log_history)
    seconds = sum(row["seconds"] for row in rows)
    notes = {
        "arm": arm, "model": model, "backend": kind, "quantize": settings.train.quantize, "train_seconds": seconds,
        "trainer": backend.trainer_name(settings.train, arm), "settings": stage,
        "shared_prefix": arm == "grpo" and settings.train.shared_prefix,
    }  # fmt: skip
    trainer.model.save_pretrained(out)
    if held_out:
        notes["kept"] = held_out.kept(out, settings.train.keep)
    _name_base(out / "adapter_config.json", model, provenance.base)
    card.write(out, "adapter", stage, arm, model, provenance.base, folder, pairs / "manifest.json")
    (out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if (scratch / "examples").is_dir():
        shutil.copytree(scratch / "examples", out / "examples")
    provenance.write(out / "provenance.json", seed=settings.seed, notes=notes)
    measure = "reward" if arm == "grpo" else "loss"
    seen = [row[measure] for row in rows if measure in row]
    log.info("%s: %s %.3f -> %.3f over %d steps", arm, measure, seen[0], seen[-1], steps)
