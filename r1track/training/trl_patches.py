"""TRL patches: every place where r1track bends TRL, PEFT, transformers or Unsloth, with the reason.

Written for TRL 1.14.2, PEFT 0.21.2 and Unsloth 2026.10.9: `backend.WRITTEN_FOR`, which `backend.enter` checks before
any weights are read. Loading through Unsloth is in backend.py; nothing is patched there.
"""

import dataclasses
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from types import ModuleType
from typing import Any

import torch

from r1track.core.errors import UserError
from r1track.core.models import check_logits, is_frozen
from r1track.training.image_cache import ImageCache
from r1track.training.shared_prefix import shared

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # the hook for rollouts may change: TRL's version is pinned


def trl_module(name: str) -> ModuleType:
    """A module of trl.trainer as TRL's own file has it, also when Unsloth is there.

    Unsloth replaces TRL's trainers by generated ones. Those give rewards plain strings, train float32 models in
    bfloat16, cap sft's length at 4096 tokens, average the KL over completions, log no entropy and no token accuracy,
    and compute log-probabilities where a group's prompt cannot be shared. Its kernels are in the model's layers, so
    TRL's own trainers run over them, and train and log the same on both backends.
    """
    public = f"trl.trainer.{name}"
    if "unsloth" not in sys.modules:
        return importlib.import_module(public)
    private = f"trl.trainer.r1track_{name}"
    if private not in sys.modules:
        spec = importlib.util.spec_from_file_location(private, importlib.import_module(public).__file__)
        if spec is None or spec.loader is None:
            raise ImportError(f"{public}: its file cannot be read; make the environment anew")
        sys.modules[private] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[private])
    return sys.modules[private]


grpo = trl_module("grpo_trainer")
GRPOTrainer: Any = grpo.GRPOTrainer
SFTTrainer: Any = trl_module("sft_trainer").SFTTrainer


def arguments(kind: type[Any], values: dict[str, Any]) -> Any:
    """Trainer arguments of this kind, each as it was given.

    Unsloth's kinds drop names that they do not know and change some values, with no more than a printed line.
    Raises UserError naming what was dropped or changed.
    """
    unknown = set(values) - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise UserError(f"{kind.__name__} has no {sorted(unknown)}; the installed TRL is not the one that is pinned")
    args = kind(**values)
    check_arguments(args, values)
    return args


def check_arguments(args: Any, values: dict[str, Any]) -> None:
    """Raise UserError naming a trainer argument that is no longer what was given."""
    for name, value in values.items():
        now = getattr(args, name)
        if name != "report_to" and getattr(now, "value", now) != value:
            raise UserError(f"{type(args).__name__}.{name}: {value!r} became {now!r}; give a value that is left alone")


class SharedPrefixTrainer(GRPOTrainer):
    """TRL's GRPO trainer with each group's prompt computed once (shared_prefix.py) and each image encoded once.

    Three of TRL's private methods are extended. Its rollout runs with the image cache open. Its log-probabilities, of
    the policy, the old policy and the reference, are computed over `shared`. And the rows of a rollout are not
    shuffled: the rows of a group must stand together.
    """

    @cached_property
    def image_cache(self) -> ImageCache:
        return ImageCache(self.processing_class, self.model.get_base_model().model.visual)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        with self.image_cache.open():
            return super()._generate_and_score_completions(inputs)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        with _no_shuffle():
            return super()._prepare_inputs(generation_batch)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **named: Any) -> Any:
        return super()._get_per_token_logps_and_entropies(shared(model, int(self.num_generations or 1)), *args, **named)


@contextmanager
def _no_shuffle() -> Iterator[None]:
    shuffle = grpo.shuffle_sequence_dict
    grpo.shuffle_sequence_dict = lambda seq_dict: seq_dict  # type: ignore[attr-defined]
    try:
        yield
    finally:
        grpo.shuffle_sequence_dict = shuffle  # type: ignore[attr-defined]


def seed_epochs(trainer: Any) -> None:
    """Let the order of the pairs in an epoch follow from the seed and the epoch's number.

    TRL's sampler for GRPO draws each order where the last one ended, so a run resumed from a checkpoint would get the
    first epoch's order.
    """
    make = trainer._get_train_sampler

    def seeded(dataset: Any = None) -> Any:
        sampler: Any = make(dataset)
        sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(sampler.seed + epoch)
        return sampler

    trainer._get_train_sampler = seeded


def drop_reference_adapter(model: Any) -> None:
    """Let the reference of the KL be the model with its adapter off, where TRL has copied the adapter for it.

    TRL does so when it is handed a model that has an adapter already, as Unsloth's has. The adapter is new, so both are
    the same model; the copy would take memory and be saved beside the adapter.
    """
    if "ref" in model.peft_config:
        model.delete_adapter("ref")


def keep_adapter_float32(model: Any) -> None:
    """Hold what learns in float32. TRL casts it to bfloat16 over 4-bit weights, where a rate of 1e-6 moves nothing."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def check_rollouts(model: Any) -> None:
    """Let TRL's own rollout stop with words where logits are not finite; drawing from them ends in a fault of torch."""
    model.generate = partial(model.generate, logits_processor=[lambda ids, logits: check_logits(model, logits)])


def disable_vision_grad(model: Any) -> None:
    """Let a frozen vision tower run without gradients, where checkpointing makes transformers ask for them.

    model: PEFT's wrapper. What is learned stays the same; a backward pass and the kept inputs of every layer are saved.
    """
    tower = model.get_base_model().model.visual
    if is_frozen(tower):
        tower.forward = torch.no_grad()(tower.forward)
