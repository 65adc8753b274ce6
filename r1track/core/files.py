"""Files: atomic writes, hashes and provenance. What stands at its final name is whole."""

import hashlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

PACKAGES = (
    "r1track", "torch", "torchvision", "triton", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes",
    "unsloth", "unsloth_zoo", "torchao", "xformers", "numpy", "pillow",
)  # fmt: skip


def _temp_path(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; renamed to it when the block ends well, removed when it does not."""
    temp_path = _temp_path(path)
    try:
        yield temp_path
        temp_path.replace(path)
    finally:
        temp_path.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary empty folder beside `path`; it replaces `path` when the block ends well."""
    temp_path = _temp_path(path)
    shutil.rmtree(temp_path, ignore_errors=True)
    temp_path.mkdir(parents=True)
    try:
        yield temp_path
        if path.exists():
            shutil.rmtree(path)
        temp_path.replace(path)
    finally:
        shutil.rmtree(temp_path, ignore_errors=True)


@contextmanager
def resumed_folder(path: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """As atomic_folder, but what the block has written stays when it does not end well, for a run of equal `identity`.

    What the block leaves half written is its own affair: it should write each part atomically.
    """
    temp_path = path.with_name(f".{path.name}.partial")
    mark = temp_path / ".identity.json"
    if not mark.exists() or read_json(mark) != identity:
        shutil.rmtree(temp_path, ignore_errors=True)
        temp_path.mkdir(parents=True)
        write_json(mark, identity)
    yield temp_path
    mark.unlink()
    if path.exists():
        shutil.rmtree(path)
    temp_path.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as temp_path:
        temp_path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError names the file when it does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it and rerun the stage that writes it") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of sections (an empty one is an empty dict); ValueError names the file when it is none."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(value, dict | None):
        raise ValueError(f"{path}: expected sections of `field: value`, found {type(value).__name__}")
    return value or {}


def on_hub(name: str | Path) -> bool:
    """Whether a name is a hub id: two words around a slash, and no file or folder of that name is here."""
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(name))) and not Path(name).exists()


def resolve_path(name: str | Path, revision: str | None = None) -> Path:
    """Where a file, a folder or a base lies: `tiny` in this package, a hub id in the hub's cache, else its own path.

    revision: of a hub id; None for the newest. An id that is not in the cache is a path that does not exist.
    """
    if str(name) == "tiny":
        return Path(__file__).parents[1] / "toy" / "tiny"
    if not on_hub(name):
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    kept = try_to_load_from_cache(str(name), "config.json", revision=revision)
    return Path(kept).parent if isinstance(kept, str) else Path(name)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by its name in there (hidden files and provenance left out)."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    seen = [path for path in found if not path.name.startswith(".") and not path.name.endswith("provenance.json")]
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in seen}


def hash_path(path: Path) -> str:
    """SHA-256 of a file, or of a folder's names and file hashes, see `hashes`."""
    if path.is_file():
        return hash_file(path)
    lines = "".join(f"{name}\0{digest}\n" for name, digest in hashes(path).items())
    return hashlib.sha256(lines.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str:
    """The commit of the working tree that this package runs from (`-dirty` when it differs), or "unknown"."""
    here = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return run.stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, and the CUDA card where there is one."""
    import torch

    found: dict[str, Any] = {"cpu": _cpu_model(), "cores": cores(), "gpu": None}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found["gpu"] = {"name": card.name, "memory_gib": round(card.total_memory / 2**30, 1)}
    return found


class Provenance:
    """Where a result came from: started with the work, written beside the result when it is done.

    inputs: files, folders and bases, see `resolve_path`. revision: of the base, where it is on the hub.
    """

    def __init__(self, stage: str, inputs: Iterable[Path | str], revision: str | None = None):
        self.stage, self.revision = stage, revision
        self.inputs = [Path(p) for p in inputs]
        self.hashed: dict[str, str | None] | None = None
        self.started = time.time()
        self.cpu_started = time.process_time()

    @cached_property
    def places(self) -> dict[str, Path]:
        """Where the inputs lie, looked up once: a newer copy of a base may reach the hub's cache while a stage runs."""
        return {str(p): resolve_path(p, self.revision) for p in self.inputs}

    def hashes(self) -> dict[str, str | None]:
        """Hashes of the inputs, taken once, when a base on the hub is in its cache; None for what is not here."""
        if self.hashed is None:
            self.hashed = {name: hash_path(place) if place.exists() else None for name, place in self.places.items()}
        return self.hashed

    def write(self, path: Path, *, seed: int | None = None, **notes: Any) -> None:
        """Write to `path` commit, versions, hardware, seed, times, memory, hashes of input and output, notes.

        `base` is the commit of a base on the hub, else null.
        """
        import torch

        one = path.name.removesuffix("provenance.json").removesuffix(".")  # else it is about all of its folder
        commits = [place.name for name, place in self.places.items() if on_hub(name) and place.exists()]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
        record = {
            "stage": self.stage,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "git_commit": git_commit(),
            "versions": versions(),
            "hardware": hardware(),
            "seed": seed,
            "base": next(iter(commits), None),
            "wall_seconds": round(time.time() - self.started, 3),
            "cpu_seconds": round(time.process_time() - self.cpu_started, 3),
            "peak_cpu_bytes": peak,
            "peak_gpu_bytes": gpu,
            "inputs": self.hashes(),
            "outputs": {one: hash_file(path.with_name(one))} if one else hashes(path.parent),
            **notes,
        }
        write_json(path, record)
