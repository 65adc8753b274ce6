"""Online: asks the hub about what a configuration takes from it, and downloads it into the hub's cache."""

import json
import tempfile
from pathlib import Path
from typing import Any

import httpx
from datasets import load_dataset, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

from r1track.core import hub
from r1track.core.errors import UserError, environment_fault

UNREACHABLE = (OfflineModeIsEnabled, httpx.ConnectError, httpx.TimeoutException)
SECONDS = 20  # for the hub's first answer


class Unreachable(UserError):
    """The hub does not answer."""


def probe(source: hub.Source) -> str:
    """Open a source by id and revision, read one row or a model's configuration; returns its commit and size in words.

    Raises UserError with the remedy; Unreachable where there is no network.
    """
    info = _info(source)
    try:
        if source.kind == "model":
            with tempfile.TemporaryDirectory() as folder:  # not the cache, where it would pass for a model
                file = hf_hub_download(source.name, source.described_by, revision=info.sha, local_dir=folder)
                described = json.loads(Path(file).read_text(encoding="utf-8"))
                kind = described.get("model_type") or described.get("peft_type")
            return f"{info.sha}, {kind}, {_size(info, None)}"
        builder = load_dataset_builder(source.name, source.subset, revision=info.sha)
        rows = load_dataset(source.name, source.subset, split=source.split, revision=info.sha, streaming=True)
        row = next(iter(rows))
    except Exception as error:
        raise UserError(f"{source.title}: {_reason(source, error)}") from error
    missing = [column for column in source.columns if column not in row]
    if missing:
        raise UserError(f"{source.title}: no column {', '.join(missing)}; its columns: {', '.join(sorted(row))}")
    return f"{info.sha}, one row of {source.split!r} read, {_size(info, builder)}"


def fetch(source: hub.Source) -> None:
    """Download a source, as the stages read it, into the hub's cache; goes on where an interrupted one stopped.

    Raises UserError with the remedy.
    """
    try:
        if source.kind == "model":
            snapshot_download(source.name, revision=source.revision)
        else:
            hub.load_rows(source.name, source.subset, source.split, source.revision)
    except Exception as error:
        raise UserError(f"{source.title}: {_reason(source, error)}") from error


def _info(source: hub.Source) -> Any:
    """What the hub says of a repository: commit, and files with their sizes."""
    try:
        return HfApi().repo_info(
            source.name, repo_type=source.kind, revision=source.revision, timeout=SECONDS, files_metadata=True
        )
    except UNREACHABLE as error:
        raise Unreachable(f"{source.title}: the hub cannot be reached; {hub.REMEDY}") from error
    except Exception as error:
        raise UserError(f"{source.title}: {_reason(source, error)}") from error


def _reason(source: hub.Source, error: BaseException) -> str:
    """What is wrong, and the remedy, in place of the libraries' several lines."""
    if fault := environment_fault(error):
        return fault
    behind: BaseException | None = error
    while behind and not isinstance(behind, GatedRepoError | RevisionNotFoundError | RepositoryNotFoundError):
        behind = behind.__cause__ or behind.__context__
    page = f"https://huggingface.co/{'datasets/' if source.kind == 'dataset' else ''}{source.name}"
    if isinstance(behind, GatedRepoError) or "is a gated dataset" in str(error):
        return f"its owner asks you to accept conditions; accept them at {page}, then run `hf auth login`"
    if isinstance(behind, RevisionNotFoundError):
        return f"there is no such commit; look for one at {page}/commits, or set the revision to null"
    if isinstance(behind, RepositoryNotFoundError) or isinstance(error, DatasetNotFoundError):
        return "there is no such repository; correct the id or, if it is private, run `hf auth login`"
    return f"{' '.join(str(error).split())[:300]}; correct {source.field} in the configuration"


def _size(info: Any, builder: Any) -> str:
    """The gigabytes of a repository or, of a data set, of the files that its subset is read from."""
    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    read = [name for split in (builder.config.data_files or {}).values() for name in split] if builder else []
    size = sum(n for name, n in files.items() if not builder or any(one.endswith(f"/{name}") for one in read))
    return f"{size / 1e9:.2f} GB"
