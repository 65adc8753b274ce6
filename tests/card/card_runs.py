"""What the card's tests share: short configurations, and steps of a trainer whose loss is the same wherever it runs.

python tests/card/card_runs.py PAIRS QUANTIZE OUT.pt     the reference: TRL over transformers, without a card
"""

import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch

from r1track.core import config, models


def settings(*, think: bool = False, templates: int = 1, dtype: str = "bfloat16", **train: Any) -> config.Settings:
    """Two optimiser steps of the demo, each of two prompts with four completions."""
    short = {
        "backend": "unsloth", "steps": 2, "save_every": 2, "prompts_per_step": 2, "group": 4, "micro_batch": 4,
        "eval_every": 0, "beta": 0.05, "learning_rate": 1e-3, "warmup": 0.0, "max_tokens": 12,
        "sft": {"steps": 2, "batch": 8, "micro_batch": 4, "learning_rate": 1e-3},
    }  # fmt: skip
    return config.resolve(
        {
            "preset": "demo", "model": {"dtype": dtype}, "task": {"think": think, "templates": templates},
            "sample": {"pairs": 24, "val_pairs": 12}, "merge": {"check_pairs": 12}, "train": {**short, **train},
        }
    )  # fmt: skip


def step_settings(backend: str, quantize: str, shared_prefix: bool) -> config.Settings:
    """Float32, all four pairs of `mixed_pairs` in one step."""
    return settings(
        dtype="float32", backend=backend, quantize=quantize, shared_prefix=shared_prefix, prompts_per_step=4,
        micro_batch=16,
    )  # fmt: skip


def make_trainer(run: config.Settings, arm: str, pairs: Path, scratch: Path) -> Any:
    from r1track.training import train

    torch.manual_seed(run.seed)
    trainer = train.make_trainer(run, arm, models.TINY, pairs, scratch)
    trainer.model.train()  # as train() would: in eval mode bitsandbytes repacks 4-bit weights on a CPU, for good
    return trainer


def set_adapter(trainer: Any) -> None:
    """Give every weight of the adapter a value that follows from its name alone; far from 0, so that KL is large."""
    with torch.no_grad():
        for name, value in trainer.model.named_parameters():
            if "lora_" in name:
                seed = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                value.copy_(torch.randn(value.shape, generator=seed) * 0.1)


def step_of(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Loss, log-probabilities and gradients of one micro-batch."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")}
    trainer.current_gradient_accumulation_steps = 1  # as train() would set it
    trainer.model.train()
    trainer.model.zero_grad()

    def logps() -> torch.Tensor:
        with torch.no_grad():
            keep = inputs["completion_ids"].shape[1]
            return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, keep, **images)[0]

    policy = logps()
    with trainer.model.disable_adapter():
        reference = logps()
    trainer._metrics["train"].clear()
    loss = trainer._compute_loss(trainer.model, {**inputs, "ref_per_token_logps": reference})
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    logs = {name: trainer._metrics["train"][name][0] for name in ("kl", "entropy")}
    real = inputs["completion_mask"].bool()
    return {
        "loss": loss.item(), "policy": policy[real], "reference": reference[real], "gradients": gradients, **logs,
    }  # fmt: skip


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of two gradients over the norm of the second."""
    assert a.keys() == b.keys()
    apart = torch.cat([(a[name] - b[name]).flatten() for name in b]).norm()
    return (apart / torch.cat([value.flatten() for value in b.values()]).norm()).item()


def write_reference(pairs: Path, quantize: str, out: Path) -> None:
    """The inputs of a step and what stock TRL makes of them; advantages are given, so that no group is flat."""
    from r1track.training.shared_prefix import make_rollout

    run = step_settings("transformers", quantize, False)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(run, "grpo", pairs, Path(scratch))
        trainer.rollout_func = make_rollout(run, trainer.processing_class)  # TRL's own is in eval mode
        rows = [trainer.train_dataset[k] for k in range(4) for _ in range(trainer.num_generations)]
        inputs = trainer._generate_and_score_completions(rows)
        inputs["advantages"] = torch.linspace(1, 2, len(rows))
        set_adapter(trainer)
        torch.save({"inputs": inputs, "step": step_of(trainer, inputs)}, out)


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
