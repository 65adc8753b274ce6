"""Runs at the start of every Python process that has this folder in PYTHONPATH: with FAKECARD=3090 or 4090 in its
environment, a process that imports torch finds an emulated card (fakecard.py).
"""

import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path
from typing import Any

CARD = os.environ.get("FAKECARD")


class AfterTorch(importlib.abc.MetaPathFinder):
    """Installs the card when torch has been imported, before whoever asked for it goes on."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            import fakecard

            fakecard.install(str(CARD))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if CARD:
    sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
    import fakecard

    for variable, value in fakecard.ENVIRONMENT.items():  # some are read when torch and triton are imported
        os.environ.setdefault(variable, value)
    sys.meta_path.insert(0, AfterTorch())
