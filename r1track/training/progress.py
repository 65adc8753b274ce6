"""Progress: what a training run displays and logs: a table, JSON lines, examples, warnings; and when it stops."""

import json
import logging
import math
import resource
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback

from r1track.core import files
from r1track.core.errors import UserError

log = logging.getLogger(__name__)
# The trainer's names, and ours in log.jsonl: a row per optimiser step, one for step 0 where it has held-out figures.
NAMES = {
    "reward": "reward", "reward_std": "reward_std", "iou": "iou", "giou": "giou", "format": "format",
    "length_cost": "length_cost", "parsed": "parsed", "kl": "kl", "frac_reward_zero_std": "frac_reward_zero_std",
    "entropy": "entropy", "completions/mean_length": "length", "completions/clipped_ratio": "truncated",
    "mean_token_accuracy": "token_accuracy", "loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate",
    "held_out_iou": "held_out_iou", "held_out_parsed": "held_out_parsed", "held_out_seconds": "held_out_seconds",
    "seconds": "seconds", "samples_per_second": "samples_per_second", "memory_gib": "memory_gib",
}  # fmt: skip
SHOWN = (
    "reward", "iou", "parsed", "frac_reward_zero_std", "length", "kl", "entropy", "token_accuracy", "loss",
    "memory_gib",
)  # fmt: skip
PATIENCE = 10  # rollouts in a row without a learning signal before the warning
UNREADABLE = 0.05  # share of readable completions below which there is hardly a learning signal


def history(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trainer's log as our rows."""
    rows = [entry for entry in entries if {"loss", "held_out_iou"} & entry.keys()]
    return [{"step": row["step"], **{NAMES[key]: row[key] for key in NAMES if key in row}} for row in rows]


def stall_reason(rows: list[dict[str, Any]]) -> str | None:
    """Why the last steps learned nothing, with a remedy; None where they may have learned something."""
    last = [row for row in rows if "frac_reward_zero_std" in row][-PATIENCE:]
    if len(last) < PATIENCE:
        return None
    if all(row["parsed"] < UNREADABLE for row in last):
        finding = f"less than {UNREADABLE:.0%} of the completions were readable in the last {PATIENCE} rollouts"
        return f"{finding}: the reward says nothing about boxes; start from sft, or look at the saved examples"
    if all(row["frac_reward_zero_std"] == 1 for row in last):
        finding = f"in the last {PATIENCE} rollouts all completions of every group had the same reward"
        remedy = "raise train.temperature or train.group, or set train.reward to iou"
        return f"{finding}: advantages are 0, nothing is learned; {remedy}"
    return None


def keep_example(folder: Path, step: int, images: list[Image.Image], facts: dict[str, Any]) -> None:
    """Save one prompt of a rollout: `step-<n>.json` with `facts`, and its images as `step-<n>-<k>.jpg`."""
    names = [f"step-{step:06d}-{k}.jpg" for k in range(len(images))]
    folder.mkdir(parents=True, exist_ok=True)
    for image, name in zip(images, names, strict=True):
        image.convert("RGB").save(folder / name, quality=90)
    files.write_json(folder / f"step-{step:06d}.json", {"step": step, "images": names, **facts})


def _memory_gib() -> float:
    """Peak so far: of the card where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def held_out_line(rows: list[dict[str, Any]]) -> str:
    """The last held-out figures with what they cost, and the best IoU; empty where there are none."""
    measured = [row for row in rows if "held_out_iou" in row]
    if not measured:
        return ""
    last, best = measured[-1], max(measured, key=lambda row: float(row["held_out_iou"]))
    cost = f"{last['held_out_parsed']:.1%} readable, {last['held_out_seconds']:.1f} s"
    figures = (f"IoU {row['held_out_iou']:.3f} at step {row['step']}" for row in (last, best))
    return f"held-out {next(figures)} ({cost}), best {next(figures)}"


class ProgressCallback(TrainerCallback):
    """A table and a progress bar with ETA in `live`; `file` gets a row per step; stops when the loss is not finite.

    samples: answers (grpo) or pairs (sft) per optimiser step. every: steps between rows in the log.
    """

    def __init__(self, file: Path, samples: int, every: int) -> None:
        self.file, self.samples, self.every, self.warned = file, samples, every, False
        columns = TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns)
        self.live = Live(self.bar, refresh_per_second=2)

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.rows = history(state.log_history)  # of the steps before a checkpoint that this run goes on from
        files.write_text(self.file, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step)
        self.start, self.began = (time.perf_counter(), state.global_step), time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        if logs is None or not {"loss", "held_out_iou"} & logs.keys():
            return
        costs = {"seconds": time.perf_counter() - self.began, "memory_gib": _memory_gib()}
        if "loss" in logs:
            costs["samples_per_second"] = self.samples / (costs["seconds"] - logs.get("held_out_seconds", 0))
        state.log_history[-1].update(costs)
        row = history(state.log_history[-1:])[0]
        if not math.isfinite(row.get("loss", 0.0)) or not math.isfinite(row.get("grad_norm", 0.0)):
            values = f"the loss is {row['loss']} and its gradient's norm {row.get('grad_norm')} at step {row['step']}"
            raise UserError(f"{values}; lower train.learning_rate, or train in bfloat16")
        self.rows.append(row)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        self._show(state.global_step, state.max_steps)

    def _show(self, step: int, steps: int) -> None:
        last = self.rows[-8:]
        names = [name for name in SHOWN if any(name in row for row in last)]
        table = Table("step", *names, box=None, header_style="dim")
        for row in last:
            table.add_row(str(row["step"]), *(f"{row[name]:.3f}" if name in row else "" for name in names))
        self.bar.update(self.task, completed=step)
        held_out = held_out_line(self.rows)
        self.live.update(Group(table, *([held_out] if held_out else []), self.bar))
        if step % self.every == 0 or "held_out_iou" in last[-1]:
            began, first = self.start
            left = (steps - step) * (time.perf_counter() - began) / max(1, step - first)
            figures = ", ".join(f"{name} {last[-1][name]:.3f}" for name in names if name in last[-1])
            time_left = f", {timedelta(seconds=round(left))} left" if step > first else ""
            log.info("step %d of %d%s: %s", step, steps, time_left, "; ".join(filter(None, [figures, held_out])))
        if not self.warned and (reason := stall_reason(self.rows)):
            log.warning("step %d: %s", step, reason)
            self.warned = True
