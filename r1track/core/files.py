"""Files: atomic writes, hashes and provenance. A file has its final name only when it is complete."""

import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from r1track.core.errors import UserError, naming
from r1track.core.text import read_text

log = logging.getLogger(__name__)
PACKAGES = (
    "r1track", "torch", "torchvision", "torchao", "triton", "transformers", "trl", "peft", "accelerate", "datasets",
    "bitsandbytes", "unsloth", "unsloth_zoo", "xformers", "numpy", "pillow",
)  # fmt: skip
RecordT = TypeVar("RecordT", bound=BaseModel)
Notes = Mapping[str, Any] | None  # optional fields of a ProvenanceRecord


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


def resolve_path(name: str | Path, revision: str | None = None) -> Path:
    """The path of a file, folder or model: `tiny` is in this package, a hub id (of a revision) in the hub's cache."""
    if str(name) == "tiny":
        return Path(__file__).parents[1] / "toy" / "tiny"
    if not on_hub(name):
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(str(name), "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else Path(name)


def provenance_of(path: Path) -> Path:
    """Where the provenance of a result that is one file stands."""
    return path.with_name(f"{path.name}.provenance.json")


def writer(provenance: Path) -> str | None:
    """The stage that a provenance.json names; None where there is none, or it has another form."""
    record = read_json(provenance) if provenance.is_file() else None
    return record.get("stage") if isinstance(record, dict) else None


def check_file(path: Path, stage: str | None = None) -> None:
    """Raise UserError, with the remedy, for a file at `path`, unless its provenance says that `stage` wrote it.

    A provenance of another stage is not replaced either, nor can anything be written below a file.
    """
    beside, above = provenance_of(path), next(folder for folder in path.absolute().parents if folder.exists())
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


def versions() -> dict[str, str]:
    """Versions of Python and of those PACKAGES that are installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def git_commit() -> str:
    """The commit of the repository that holds this package, with `-dirty` after changes; "unknown" where installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # not that of a repository around the environment
        return "unknown"
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root, capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return run.stdout.strip()


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Card(BaseModel):
    """A CUDA card."""

    name: str
    memory_gib: float


class Hardware(BaseModel):
    """The processor's name, the cores that this process may use, and the first CUDA card, if there is one."""

    cpu: str
    cores: int
    gpu: Card | None


def hardware() -> Hardware:
    """The machine that this process runs on."""
    import torch

    card = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        card = Card(name=properties.name, memory_gib=round(properties.total_memory / 2**30, 1))
    info = Path("/proc/cpuinfo")
    name = re.search(r"(?m)^model name[^:]*:\s*(.*\S)", info.read_text() if info.exists() else "")
    return Hardware(cpu=name[1] if name else platform.processor() or platform.machine(), cores=cores(), gpu=card)


class Input(BaseModel):
    """What a result was made from: the path or hub id as given, and its SHA-256, null where it is no local file."""

    path: str
    sha256: str | None


class KeptAdapter(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The step whose adapter a training wrote, by train.keep, and its last step, each with its held-out IoU."""

    keep: Literal["last", "best"]
    step: int
    held_out_iou: float
    last_step: int
    last_held_out_iou: float


class ProvenanceRecord(BaseModel):
    """The content of a provenance.json. Only some stages write the fields that have a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    stage: str
    finished: str  # UTC, ISO 8601
    git_commit: str
    versions: dict[str, str]
    hardware: Hardware
    seed: int | None
    base: str | None  # commit of the base on the hub
    wall_seconds: float
    cpu_seconds: float
    peak_cpu_bytes: int
    peak_gpu_bytes: int | None
    inputs: dict[str, Input]  # by what they are to the stage: split, model, pairs, ...
    outputs: dict[str, str] = {}  # SHA-256 of the result's files, by their names in its folder
    settings: dict[str, Any] | None = None  # as in results/<run>/config/<stage>.json
    model: str | None = None  # train, track
    arm: str | None = None  # train
    backend: str | None = None
    trainer: str | None = None  # the class that trained, in training/trl_patches.py
    quantize: str | None = None
    train_seconds: float | None = None
    shared_prefix: bool | None = None
    kept: KeptAdapter | None = None  # where held-out pairs were answered during training
    endpoint: dict[str, str] | None = None  # track
    start: str | None = None
    sequences: int | None = None
    frames: int | None = None


class Provenance:
    """Where a result came from: created when the work starts, written beside the result when it is done.

    inputs: files, folders and bases (`resolve_path`) by what they are to the stage. revision: of a base on the hub.
    """

    def __init__(self, stage: str, inputs: Mapping[str, Path | str], revision: str | None = None):
        self.stage, self.revision = stage, revision
        self.paths = {name: str(path) for name, path in inputs.items()}
        self.started, self.cpu_started = time.time(), cpu_seconds()

    @cached_property
    def places(self) -> dict[str, Path]:
        """Where the inputs lie, looked up once: a newer copy of a base may reach the hub's cache while a stage runs."""
        return {name: resolve_path(path, self.revision) for name, path in self.paths.items()}

    @property
    def base(self) -> str | None:
        """Commit of the base on the hub, whose folder in the cache has that name."""
        hub = (place.name for name, place in self.places.items() if on_hub(self.paths[name]) and place.exists())
        return next(hub, None)

    @cached_property
    def inputs(self) -> dict[str, Input]:
        """The inputs with their hashes, taken once, when a base on the hub is in its cache."""
        hashed = {name: hash_path(place) if place.exists() else None for name, place in self.places.items()}
        return {name: Input(path=self.paths[name], sha256=digest) for name, digest in hashed.items()}

    @contextmanager
    def result_file(self, path: Path, *, seed: int | None = None, notes: Notes = None) -> Iterator[Path]:
        """As atomic_file, for a result `path` that passes `check_file`; its provenance is written before the rename."""
        check_file(path, self.stage)
        with atomic_file(path) as temp_path:
            yield temp_path
            outputs = {path.name: hash_file(temp_path)}
            self.write(provenance_of(path), seed=seed, notes={"outputs": outputs, **(notes or {})})

    def write(self, path: Path, *, seed: int | None = None, notes: Notes = None) -> None:
        """Write a ProvenanceRecord to `path`. notes: its optional fields; `outputs` are by default those beside it."""
        import torch

        notes = notes if notes and "outputs" in notes else {"outputs": hashes(path.parent), **(notes or {})}
        record = ProvenanceRecord(
            stage=self.stage,
            finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            git_commit=git_commit(),
            versions=versions(),
            hardware=hardware(),
            seed=seed,
            base=self.base,
            wall_seconds=round(time.time() - self.started, 3),
            cpu_seconds=round(cpu_seconds() - self.cpu_started, 3),
            peak_cpu_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            peak_gpu_bytes=torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None,
            inputs=self.inputs,
            **notes,
        )
        write_json(path, record.model_dump(exclude_unset=True))
