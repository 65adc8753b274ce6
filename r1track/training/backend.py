"""Backend: which library trains. Unsloth patches transformers, PEFT and TRL as it is imported, so it must come first.

That is why this module imports none of them, and why `enter` is called before any module that does.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Literal

import torch

Backend = Literal["unsloth", "transformers"]


def choose(wanted: Literal["auto", "unsloth", "transformers"]) -> Backend:
    """The backend to train with: `auto` takes Unsloth where there is a CUDA card and it is installed.

    Unsloth imports without a card too, but for text models only; so the card decides, not the import.
    Raises ValueError when Unsloth is asked for by name and cannot run.
    """
    installed, cuda = importlib.util.find_spec("unsloth") is not None, torch.cuda.is_available()
    if wanted == "unsloth" and not (installed and cuda):
        missing = "it is not installed" if not installed else "there is no CUDA card"
        raise ValueError(f"train.backend = 'unsloth': {missing}; install environment.yml on a card, or take `auto`")
    return "unsloth" if installed and cuda and wanted != "transformers" else "transformers"


def enter(wanted: Literal["auto", "unsloth", "transformers"], scratch: Path) -> Backend:
    """Choose the backend and, if it is Unsloth, import it; its compiled kernels are cached under `scratch`.

    Raises RuntimeError when TRL was imported before, which Unsloth could then no longer patch.
    """
    backend = choose(wanted)
    if backend == "unsloth" and "unsloth" not in sys.modules:
        if "trl" in sys.modules:
            raise RuntimeError(
                "backend.enter must be called before TRL is imported; import r1track.training.train after it"
            )
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(scratch / "unsloth"))
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # else it tells a hub what it runs on
        importlib.import_module("unsloth")
    return backend
