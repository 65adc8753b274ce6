"""The hub: what a configuration takes from it, and what of that is in its cache on this machine.

Nothing large is imported before a hub id is named: the plan of a run looks here too.
"""

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from r1track.core import files
from r1track.core.schema import Settings

REMEDY = "run `r1track fetch` where there is a network, with the same HF_HOME"
COMMIT = re.compile(r"[0-9a-f]{40}")


class Source(NamedTuple):
    """A repository on the hub that a field of the configuration names; of a data set also what of it is read."""

    field: str
    kind: Literal["model", "dataset"]
    name: str
    revision: str | None  # None: the newest
    subset: str | None = None
    split: str | None = None
    columns: tuple[str, ...] = ()
    described_by: str = "config.json"  # of a model; adapters have another file

    @property
    def title(self) -> str:
        """Id and revision."""
        return f"{self.name} at {self.revision or 'the newest commit'}"

    @property
    def command(self) -> str:
        """The line for a shell that downloads the whole repository."""
        kind = " --repo-type dataset" if self.kind == "dataset" else ""
        return f"hf download {self.name}{kind}" + (f" --revision {self.revision}" if self.revision else "")


def named(settings: Settings) -> list[Source]:
    """The models and data sets that a run takes, from wherever, in the order of the configuration."""
    model, extras, sample = settings.model, settings.track.extra.items(), settings.sample
    pairs = sample.hub if settings.train.arms else None  # which are needed for training alone
    return [
        Source("model.base", "model", model.base, model.revision),
        *([Source("sample.hub", "dataset", pairs, sample.hub_revision, None, "train", ("images",))] if pairs else []),
        *(Source(f"track.extra.{name}.model", "model", extra.model, extra.revision) for name, extra in extras),
        *(
            Source(
                f"track.extra.{name}.adapter",
                "model",
                extra.adapter,
                extra.adapter_revision,
                described_by="adapter_config.json",
            )
            for name, extra in extras
            if extra.adapter
        ),
        *(
            Source(f"vqa.sets.{name}", "dataset", one.source, one.revision, one.subset, one.split, one.columns)
            for name, one in settings.vqa.sets.items()
        ),
    ]


def sources(settings: Settings) -> list[Source]:
    """Those of `named` that a run takes from the hub."""
    return [source for source in named(settings) if files.on_hub(source.name)]


def snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a data set of which the hub's cache has every file, as after `hf download`; None otherwise."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    with suppress(CachedRepoTreeNotFoundError, OSError):
        get_cached_repo_tree(name, repo_type="dataset", revision=revision)
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    return None


def commands(sources: list[Source]) -> list[str]:
    """The lines for a shell that download sources: each once, with the fields that name it as a comment."""
    needs = dict[str, list[str]]()
    for source in sources:
        needs.setdefault(source.command, []).append(f"{source.field}, {here(source)}")
    return [f"{command}  # {'; '.join(fields)}" for command, fields in needs.items()]


def cached_bytes(source: Source) -> int | None:
    """Bytes that the cache has of what a run reads of a source; None where that is not complete."""
    if source.kind == "model":
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source.name, source.described_by, revision=source.revision)
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
        index = folder / "model.safetensors.index.json"
        shards = set(files.read_json(index)["weight_map"].values()) if index.is_file() else {}
        whole = [shards or {"model.safetensors"}, {"adapter_model.safetensors"}]
        complete = any(all((folder / name).is_file() for name in names) for names in whole)
        return folder_bytes(folder) if complete else None
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    owner, _, name = source.name.partition("/")
    folder = Path(config.HF_DATASETS_CACHE, f"{owner}___{camelcase_to_snakecase(name)}")
    for file in folder.glob(f"{source.subset or '*'}/*/{source.revision or '*'}/dataset_info.json"):
        splits = files.read_json(file).get("splits") or {}
        if source.split in splits:
            return int(splits[source.split]["num_bytes"])
    copy = snapshot(source.name, source.revision)
    return folder_bytes(copy) if copy else None


def here(source: Source) -> str:
    """What `cached_bytes` says, in words."""
    size = cached_bytes(source)
    return "not in the cache" if size is None else f"{size / 1e9:.2f} GB in the cache"


def folder_bytes(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def load_rows(source: str, subset: str | None, split: str | None, revision: str | None) -> Any:
    """`datasets.load_dataset`; where the hub is out of reach, also from what `hf download` left in its cache.

    A folder has a cache for each state of its files: with the `configs` of a README.md, `datasets` itself would give
    the rows from before a file was changed. Raises errors of many kinds, those of the libraries below.
    """
    import datasets

    cache = None if files.on_hub(source) else str(Path(datasets.config.HF_DATASETS_CACHE, _state(Path(source))))
    try:
        return datasets.load_dataset(source, subset, split=split, revision=revision, cache_dir=cache)
    except Exception:
        folder = snapshot(source, revision) if files.on_hub(source) else None
        if folder is None:
            raise
        return datasets.load_dataset(str(folder), subset, split=split)


def commit_of(rows: Any) -> str | None:
    """The commit on the hub from which rows were read; None for those of a folder."""
    places = (Path(file["filename"]).parts for file in rows.cache_files)  # one part of which has its name
    return next((part for parts in places for part in parts if COMMIT.fullmatch(part)), None)


def _state(folder: Path) -> str:
    """A name for the present state of the files in a folder: another one after each change of theirs."""
    present = (file for file in sorted(folder.rglob("*")) if file.is_file())  # a link may lead nowhere
    states = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in present]
    return hashlib.sha256(repr([folder.resolve(), states]).encode()).hexdigest()[:16]
