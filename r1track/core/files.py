"""Files: atomic writes, hashes and provenance. A file has its final name only when it is complete."""

import fcntl
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import BaseModel, ValidationError

from r1track.core.errors import UserError, naming
from r1track.core.text import read_text

log = logging.getLogger(__name__)
RecordT = TypeVar("RecordT", bound=BaseModel)


def open_locked(file: Path) -> TextIO:
    """Open a file for appending, under a lock that ends with the process. BlockingIOError while another holds it."""
    while True:
        stream = file.open("a+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise
        except OSError as error:  # a network file system without locks
            log.warning("%s: cannot be locked (%s); do not write there twice at once", file, error.strerror)
            return stream
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                return stream
        stream.close()  # its holder has just renamed or removed it


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path, renamed to `path` at the end of the block. UserError while another process writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp_path = path.with_name(f".{path.name}.part")
    with naming(path):
        try:
            lock = open_locked(temp_path)
        except BlockingIOError:
            raise UserError(f"{path}: is being written by another process; wait for its end") from None
        with lock:
            lock.truncate(0)
            try:
                yield temp_path
                sync(temp_path)
                temp_path.replace(path)
            finally:
                temp_path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the system write a file, or all files of a folder, to the disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as temp_path:
        temp_path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given. Raises UserError for NaN."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """A value as the text of a JSON file. Raises ValueError for NaN."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path, remedy: str = "") -> Any:
    """Read a JSON file; UserError names a file that is missing, no text or no JSON. remedy: by default for results."""
    text = read_text(path, remedy or "run the stage that writes it, or correct the path")
    remedy = remedy or "delete it and rerun the stage that writes it"
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # no JSON, an integer of too many digits, or nested without end
        raise UserError(f"{path}: not valid JSON ({error}); {remedy}") from error


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python's own reader takes the last of two fields of one name in silence."""
    values = dict(fields)
    if len(values) < len(fields):
        name, _ = Counter(name for name, _ in fields).most_common(1)[0]
        raise ValueError(f"the field {name!r} stands twice")
    return values


def read_record(path: Path, record: type[RecordT]) -> RecordT:
    """Read a JSON file as a record; UserError names the file and the fields that do not fit."""
    try:
        return record.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: {field_faults(error)}; delete it and rerun the stage that writes it") from None


def field_faults(error: ValidationError) -> str:
    """The fields that a record refused, each with the reason, on one line."""
    fields = ((".".join(map(str, fault["loc"])), fault) for fault in error.errors())
    return "; ".join(f"no field {f!r}" if e["type"] == "missing" else f"{f}: {e['msg']}" for f, e in fields)


def on_hub(name: str | Path) -> bool:
    """Whether a name is a hub id: two words with a slash between, and no file or folder has that path."""
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(name))) and not Path(name).exists()


def resolve_path(name: str | Path, revision: str | None = None, file: str = "config.json") -> Path:
    """The path of a file, folder or model: `tiny` is in this package, a hub id (of a revision) in the hub's cache.

    file: which one the cache has of a model; of an adapter it is `adapter_config.json`.
    """
    if str(name) == "tiny":
        return Path(__file__).parents[1] / "toy" / "tiny"
    if not on_hub(name):
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(str(name), file, revision=revision)
    return Path(cached).parent if isinstance(cached, str) else Path(name)


def provenance_of(path: Path) -> Path:
    """Where the provenance of a result that is one file stands."""
    return path.with_name(f"{path.name}.provenance.json")


def writer(provenance: Path) -> str | None:
    """The stage that a provenance.json names; None where there is none, or it has another form."""
    record = read_json(provenance) if provenance.is_file() else None
    return record.get("stage") if isinstance(record, dict) else None


def standing_above(path: Path) -> Path:
    """The nearest thing above `path` that is there: a folder, or a file below which nothing can be written."""
    return next(place for place in path.absolute().parents if place.exists())


def check_file(path: Path, stage: str | None = None) -> None:
    """Raise UserError, with the remedy, for a file at `path`, unless its provenance says that `stage` wrote it.

    A provenance of another stage is not replaced either, nor can anything be written below a file.
    """
    beside, above = provenance_of(path), standing_above(path)
    ours = stage is not None and writer(beside) == stage
    faults = {
        path: os.path.lexists(path) and not (ours and path.is_file() and not path.is_symlink()),
        beside: stage is not None and os.path.lexists(beside) and not ours,
        above: not above.is_dir(),
    }
    for place in [place for place, wrong in faults.items() if wrong]:
        raise UserError(f"{place}: is there, and this command did not write it; give another name, or remove it")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by its path in it; without provenance and what is hidden."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith("provenance.json")]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: hash_file(path) for name, path in names.items() if not f"/{name}".count("/.")}


def hash_path(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of a folder's files (see `hashes`)."""
    if path.is_file():
        return hash_file(path)
    lines = "".join(f"{name}\0{digest}\n" for name, digest in hashes(path).items())
    return hashlib.sha256(lines.encode()).hexdigest()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
