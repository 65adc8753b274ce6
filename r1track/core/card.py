"""Card: the README.md of an adapter or a merged model, for those who copy its folder or find it on the hub.

It has what the stage knows. `r1track push` adds name and scores, in place of FOLDER and PENDING.
"""

import json
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from r1track.core import files, prompts
from r1track.core.provenance import ProvenanceRecord
from r1track.core.records import MergeRecord
from r1track.core.schema import Task

FOLDER = '"."  # this folder'
PENDING = "Not in this folder: `r1track push` adds them from the run's report."
LICENCES = ("license", "license_name", "license_link")


def write(
    folder: Path, kind: Literal["adapter", "model"], settings: dict[str, Any], arm: str, model: str, commit: str | None,
    weights: Path, manifest: Path,
) -> None:  # fmt: skip
    """Write the README.md of an adapter or a merged model in `folder`; it names no path.

    settings: sections by name, as the stage `train` reads them. model: the initial model as given; commit: its own on
    the hub; weights: where it lies here. manifest: of the pairs; left out where it is not there.
    """
    base, base_commit = _origin(model, commit)
    licence: dict[str, Any] = _licence(weights)
    data = ModelCardData(
        base_model=base if files.on_hub(base) else None, library_name="peft" if kind == "adapter" else "transformers",
        base_model_relation="adapter" if kind == "adapter" else "finetune", pipeline_tag="image-text-to-text",
        tags=["visual-object-tracking", "r1track", arm], **licence,
    )  # fmt: skip
    pairs = files.read_json(manifest) if manifest.is_file() else {}
    task = Task.model_validate(settings["task"])
    form = task.box if task.prompt else "rounded"
    parts = [
        part["text"].replace(prompts.numbers([0] * 4, form), "{box}") if "text" in part else None  # None: an image
        for part in prompts.question(task, [0] * 4)[0]["content"]
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["quoted"] = json.dumps
    text = environment.get_template("card.md.j2").render(
        kind=kind, data=data, base=_name(base), commit=base_commit, licence=licence, over=_name(model), own=commit,
        arm=arm, pairs=pairs, sequences=pairs.get("splits", {}).get("train", {}).get("sequences", []), parts=parts,
        form=form, folder=FOLDER, pending=PENDING, **settings,
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")


def _origin(model: str, commit: str | None) -> tuple[str, str | None]:
    """The base, and its commit, that a merged model comes from; of any other model, the model itself."""
    merged = Path(model) / "merge.json"
    if not merged.is_file():
        return model, commit
    record = files.read_record(merged.with_name("provenance.json"), ProvenanceRecord)
    return _origin(files.read_record(merged, MergeRecord).base, record.base)


def _name(model: str) -> str:
    """A model's hub id, or the last part of its path."""
    return model if files.on_hub(model) else Path(model).name


def _licence(weights: Path) -> dict[str, str]:
    """What the card of a base says of its licence, by the hub's fields."""
    try:
        data = ModelCard.load(weights / "README.md").data  # ValueError where there is none
    except (OSError, ValueError):
        return {}
    return {field: str(data[field]) for field in LICENCES if data.get(field)}
