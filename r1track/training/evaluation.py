"""Evaluation: greedy answers to held-out pairs while an arm trains: their mean IoU, and the share that can be read.

The training goes on as if there had been none: nothing is drawn from a random generator, dropout is off, the model
stays in training mode (in the other one, bitsandbytes repacks 4-bit weights on a CPU, for good).
"""

import shutil
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import TrainerCallback
from trl.models.utils import unwrap_model_for_generation

from r1track.core import generation, models, prompts, schema
from r1track.core.pairs import held_out_rows, questions
from r1track.core.provenance import KeptAdapter
from r1track.training import rewards
from r1track.training.shared_prefix import complete

WEIGHTS = "adapter_model.safetensors"
BEST = "best.safetensors"  # in a checkpoint; a folder there with WEIGHTS in it would be loaded as a second adapter


class Evaluation(TrainerCallback):
    """Answers held-out pairs before the first step, every train.eval_every steps and after the last.

    The figures go to the trainer's log, and so wherever that is reported to. With train.keep `best`, the best adapter
    so far is in `scratch`/best, and its weights in every checkpoint: a run goes on with those that it had there.
    """

    def __init__(self, settings: schema.Settings, arm: str, model: Path, pairs: Path, scratch: Path, trainer: Any):
        self.settings, self.trainer, self.best = settings, trainer, scratch / "best" / WEIGHTS
        train = settings.train
        self.processor = models.load_processor(model, settings.model)  # one of its own: the trainer changes its one
        self.rows = held_out_rows(pairs, train.eval_pairs)
        self.images = [prompts.places(*row) for row in zip(self.rows["images"], self.rows["problem"], strict=True)]
        messages: Any = questions(self.rows, settings.task)
        self.texts: Any = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompts_per_rollout = min(train.rollout_batch // train.group, train.prompts_per_step * train.rollout_steps)
        self.batch = train.sft.micro_batch if arm == "sft" else max(1, prompts_per_rollout)

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        shutil.rmtree(self.best.parent, ignore_errors=True)
        if not state.global_step:
            self.trainer.log(self.measure())
        elif (best := self._in_checkpoint(state)).is_file():
            self.best.parent.mkdir()
            shutil.copyfile(best, self.best)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        train = self.settings.train
        if state.global_step % train.eval_every and state.global_step < state.max_steps:
            return
        figures = self.measure()
        for name, value in figures.items():
            self.trainer._metrics["train"][name].append(value)  # a part of the step's own log
        if train.keep == "best" and all(figures["held_out_iou"] > row["held_out_iou"] for row in _later(state)):
            self.trainer.model.save_pretrained(self.best.parent)

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.best.is_file():
            shutil.copyfile(self.best, self._in_checkpoint(state))

    def _in_checkpoint(self, state: Any) -> Path:
        return self.best.parents[1] / f"checkpoint-{state.global_step}" / BEST

    def measure(self) -> dict[str, float]:
        """The held-out figures by their names in the log: the mean IoU, in which an unreadable answer counts 0, and
        to a pair without the target `[]` counts 1; the share of readable answers; and the seconds that this took."""
        began, think, trainer = time.perf_counter(), self.settings.task.think, self.trainer
        for module in trainer.model.train().modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
            loaded = models.Loaded(model, self.processor, model.device)
            decoder = generation.Decoder(loaded, max_tokens=self.settings.train.max_tokens, think=think)
            both = self.texts, self.images
            completions = complete(decoder, *both, generation.greedy, decoder.ended, batch=self.batch)[1]
        trainer.model.train()
        answers = self.processor.tokenizer.batch_decode([c.tokens for c in completions], skip_special_tokens=True)
        texts = [prompts.complete(text, think) or text for text in answers]
        rows = zip(texts, self.rows["answer"], self.rows["size"], strict=True)
        scores = [rewards.score(text, box, scheme="iou", size=size, think=think) for text, box, size in rows]
        iou, parsed = (float(np.mean([score[part] for score in scores])) for part in ("iou", "valid"))
        return {"held_out_iou": iou, "held_out_parsed": parsed, "held_out_seconds": time.perf_counter() - began}

    def kept(self, out: Path, keep: Literal["last", "best"]) -> KeptAdapter:
        """Which adapter is the result; at `out` is the last one, which the best takes the place of if it is to."""
        rows = _later(self.trainer.state)
        chosen = rows[-1] if keep == "last" else max(rows, key=lambda row: row["held_out_iou"])
        if keep == "best":
            shutil.copyfile(self.best, out / WEIGHTS)
        last = {f"last_{name}": rows[-1][name] for name in ("step", "held_out_iou")}
        return KeptAdapter(keep=keep, step=chosen["step"], held_out_iou=chosen["held_out_iou"], **last)


def _later(state: Any) -> list[dict[str, Any]]:
    """The entries of the trainer's log with held-out figures, without that of the model before it was trained."""
    return [row for row in state.log_history if row["step"] and "held_out_iou" in row]
