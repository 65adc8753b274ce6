"""Checkpoints: each is sealed by a manifest when it is complete; the newest whole one is taken up."""

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from r1track.core import files
from r1track.core.errors import UserError

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"  # in a checkpoint: the SHA-256 of its other files, by name
# What a training writes beside its checkpoints.
BESIDE = ("log.jsonl", "examples", "cache", "runs", "wandb", "best", "README.md")


class Seal(TrainerCallback):
    """Writes the manifest of a checkpoint when the trainer has written all else."""

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (checkpoint / MANIFEST).unlink(missing_ok=True)  # of an earlier run through this step
        files.write_json(checkpoint / MANIFEST, files.hashes(checkpoint))


def prepare_scratch(scratch: Path, identity: dict[str, Any], steps: int) -> Path | None:
    """The newest whole checkpoint of this run, to resume from, or None.

    Damaged checkpoints and the files of other runs are deleted, and the log says so; files of no run stay. The
    checkpoint of the last of the `steps` is left out: the trainer would make one step more. Raises UserError for a
    folder that holds such files but was not begun by a training.
    """
    mark, checkpoints = scratch / "identity.json", _numbered(scratch)
    written = [*checkpoints.values(), *(scratch / name for name in BESIDE if (scratch / name).exists())]
    if written and not mark.exists():
        raise UserError(f"{written[0]}: no training of r1track wrote it; give another --scratch, or remove it yourself")
    if mark.exists() and files.read_json(mark) != identity:
        names = ", ".join(sorted(path.name for path in written))
        log.warning("%s: deleted, as they are of other settings or pairs: %s", scratch, names or "nothing")
        for path in written:
            _delete(path)
        checkpoints = {}
    files.write_json(mark, identity)
    for step in sorted(checkpoints, reverse=True):
        if fault := _damage(checkpoints[step]):
            log.warning("%s: deleted, as %s is missing or not as it was saved", checkpoints[step], fault)
            _delete(checkpoints[step])
        elif step < steps:
            return checkpoints[step]
    return None


def _numbered(scratch: Path) -> dict[int, Path]:
    """The checkpoints in a folder, by their step."""
    named = ((path.name.removeprefix("checkpoint-"), path) for path in scratch.glob("checkpoint-*"))
    return {int(step): path for step, path in named if step.isdecimal()}


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _damage(checkpoint: Path) -> str | None:
    """Name of the first file that is missing or is not what was saved; None for a whole checkpoint."""
    try:
        saved = files.read_json(checkpoint / MANIFEST)
    except (FileNotFoundError, ValueError):
        saved = None
    if not isinstance(saved, dict) or not saved:
        return MANIFEST
    present = {name for name in saved if (checkpoint / name).is_file()}
    return next((n for n in saved if n not in present or files.hash_file(checkpoint / n) != saved[n]), None)
