"""Backend: which library holds the model while it trains: transformers and PEFT, or Unsloth with layers of its own.

Both are trained by TRL's own trainers (trl_patches.py). Unsloth patches transformers, PEFT and TRL as it is imported,
so it must come first: this module imports none of them at its top, and `enter` is called before any module that does.
"""

import functools
import importlib
import importlib.util
import logging
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from r1track.core import schema
from r1track.core.errors import UserError
from r1track.core.train_schema import Train

log = logging.getLogger(__name__)
Backend = Literal["unsloth", "transformers"]
Trainer = Literal["SFTTrainer", "GRPOTrainer", "SharedPrefixTrainer"]
# What trl_patches.py and this module were written for. They rely on names that another version may not have.
WRITTEN_FOR = {"trl": "1.14.2", "peft": "0.21.2", "unsloth": "2026.10.9", "unsloth_zoo": "2026.10.9"}
TRIED_WITH = {"torch": "2.13.0", "triton": "3.7.1"}


def choose(wanted: Literal["auto", "unsloth", "transformers"]) -> Backend:
    """The backend to train with: `auto` takes Unsloth where there is a CUDA card and it is installed.

    Unsloth imports without a card too, but for text models only; so the card decides, not the import.
    Raises UserError when Unsloth is asked for by name and cannot run.
    """
    installed, cuda = importlib.util.find_spec("unsloth") is not None, torch.cuda.is_available()
    if wanted == "unsloth" and not (installed and cuda):
        missing = "it is not installed" if not installed else "there is no CUDA card"
        raise UserError(f"train.backend = 'unsloth': {missing}; install environment.yml on a card, or take `auto`")
    return "unsloth" if installed and cuda and wanted != "transformers" else "transformers"


def trainer_name(train: Train, arm: str) -> Trainer:
    """The class of trl_patches.py that trains an arm, over either backend."""
    return "SFTTrainer" if arm == "sft" else "SharedPrefixTrainer" if train.shared_prefix else "GRPOTrainer"


def check_versions(backend: Backend) -> None:
    """Raise UserError for other versions of the patched libraries than the patches were written for; warn of others."""
    for name, wanted in {**WRITTEN_FOR, **TRIED_WITH}.items():
        try:
            installed = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
        if installed == wanted or (name.startswith("unsloth") and backend != "unsloth"):
            continue
        if name in WRITTEN_FOR:
            reason = f"r1track/training/trl_patches.py was written for {wanted}"
            remedy = f"`pip install {name}=={wanted}`, or make the environment anew"
            raise UserError(f"{name} {installed} is installed; {reason}: {remedy}")
        _warn_once(f"{name} {installed} is installed; r1track was tried with {wanted}")


@functools.cache  # `enter` is called by the command and by `train.run`
def _warn_once(text: str) -> None:
    log.warning(text)


def enter(wanted: Literal["auto", "unsloth", "transformers"], scratch: Path) -> Backend:
    """Choose the backend and, if it is Unsloth, import it; its compiled kernels are cached under `scratch`.

    Raises UserError for versions that the patches were not written for, and RuntimeError when TRL was imported before:
    Unsloth could then no longer patch it.
    """
    backend = choose(wanted)
    check_versions(backend)
    if backend == "unsloth" and "unsloth" not in sys.modules:
        if "trl" in sys.modules:
            raise RuntimeError("backend.enter must be called before TRL is imported; import r1track.training after it")
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(scratch / "unsloth"))
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # else it tells a hub what it runs on
        importlib.import_module("unsloth")
    return backend


def load(backend: Backend, folder: Path, settings: schema.Settings) -> tuple[Any, Any]:
    """The base in `folder`, frozen as train.quantize says, for a trainer: the model, and the adapter to put on it.

    Unsloth's model has its adapter already: then the second is None.
    Raises UserError for weights that `models.check_weights` or `models.check_finite` refuses.
    """
    from r1track.core import models

    train, adapter = settings.train, models.make_adapter(settings.train.lora)
    dtype = getattr(torch, settings.model.dtype)
    if backend == "transformers":
        return models.load_weights(folder, dtype, train.quantize), adapter
    from unsloth import FastVisionModel

    from r1track.core.vision import fewer_calls

    models.check_weights(folder)
    model, _ = FastVisionModel.from_pretrained(
        str(folder), max_seq_length=4096, dtype=dtype, random_state=settings.seed,
        load_in_4bit=train.quantize == "nf4", load_in_16bit=train.quantize == "none",
        use_exact_model_name=True,  # else a hub id may be swapped for somebody's quantised copy
        use_gradient_checkpointing="unsloth",
        fast_inference=False,  # vLLM takes one image per prompt; a pair has two
    )  # fmt: skip
    fewer_calls(model.model.visual)
    models.check_finite(model.named_parameters(), folder)
    model = FastVisionModel.get_peft_model(
        model, r=adapter.r, lora_alpha=adapter.lora_alpha, lora_dropout=adapter.lora_dropout, bias=adapter.bias,
        target_modules=adapter.target_modules, use_gradient_checkpointing="unsloth", random_state=settings.seed,
    )  # fmt: skip
    return model, None
