"""Provenance: where a result came from, in a `provenance.json` beside it."""

import ctypes
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from r1track.core import files

PACKAGES = (
    "r1track", "torch", "torchvision", "torchao", "triton", "transformers", "trl", "peft", "accelerate", "datasets",
    "bitsandbytes", "unsloth", "unsloth_zoo", "xformers", "numpy", "pillow",
)  # fmt: skip
Notes = Mapping[str, Any] | None  # optional fields of a ProvenanceRecord


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


class Card(BaseModel):
    """A CUDA card."""

    name: str
    memory_gib: float


class Hardware(BaseModel):
    """The processor's name, the cores that this process may use, and the first CUDA card, if there is one."""

    cpu: str
    cores: int
    gpu: Card | None


def _cuda() -> Any:
    """The module torch.cuda where there is a card, else None, for which torch, a second's import, is not needed."""
    try:
        if "torch" not in sys.modules:
            ctypes.CDLL("libcuda.so.1")  # NVIDIA's driver
    except OSError:
        return None
    from torch import cuda

    return cuda if cuda.is_available() else None


def hardware() -> Hardware:
    """The machine that this process runs on."""
    card = None
    if cuda := _cuda():
        properties = cuda.get_device_properties(0)
        card = Card(name=properties.name, memory_gib=round(properties.total_memory / 2**30, 1))
    info = Path("/proc/cpuinfo")
    name = re.search(r"(?m)^model name[^:]*:\s*(.*\S)", info.read_text() if info.exists() else "")
    return Hardware(cpu=name[1] if name else platform.processor() or platform.machine(), cores=files.cores(), gpu=card)


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
        return {name: files.resolve_path(path, self.revision) for name, path in self.paths.items()}

    @property
    def base(self) -> str | None:
        """Commit of the base on the hub, whose folder in the cache has that name."""
        hub = (place.name for name, place in self.places.items() if files.on_hub(self.paths[name]) and place.exists())
        return next(hub, None)

    @cached_property
    def inputs(self) -> dict[str, Input]:
        """The inputs with their hashes, taken once, when a base on the hub is in its cache."""
        hashed = {name: files.hash_path(place) if place.exists() else None for name, place in self.places.items()}
        return {name: Input(path=self.paths[name], sha256=digest) for name, digest in hashed.items()}

    @contextmanager
    def result_file(self, path: Path, *, seed: int | None = None, notes: Notes = None) -> Iterator[Path]:
        """As atomic_file, for a result `path` that passes `check_file`; its provenance is written before the rename."""
        files.check_file(path, self.stage)
        with files.atomic_file(path) as temp_path:
            yield temp_path
            outputs = {path.name: files.hash_file(temp_path)}
            self.write(files.provenance_of(path), seed=seed, notes={"outputs": outputs, **(notes or {})})

    def write(self, path: Path, *, seed: int | None = None, notes: Notes = None) -> None:
        """Write a ProvenanceRecord to `path`. notes: its optional fields; `outputs` are by default those beside it."""
        cuda = _cuda()
        notes = notes if notes and "outputs" in notes else {"outputs": files.hashes(path.parent), **(notes or {})}
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
            peak_gpu_bytes=cuda.max_memory_reserved() if cuda else None,
            inputs=self.inputs,
            **notes,
        )
        files.write_json(path, record.model_dump(exclude_unset=True))
