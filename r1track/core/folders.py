"""Folders: a result folder appears when it is complete, one process writes it, and it replaces only its own kind.

Beside `path` a stage keeps `.NAME.lock` and its unfinished work, `.NAME.part` or `.NAME.partial`. Whoever gets the lock
removes what a killed process left (docs/reliability.md).
"""

import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from r1track.core.errors import UserError, naming
from r1track.core.files import open_locked, read_json, standing_above, sync, write_json, writer

log = logging.getLogger(__name__)
MARK = ".identity.json"  # in unfinished work: what it is the work of


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on what is written at `path`. Raises UserError, naming the holder, where another process has it."""
    file = _hidden(path, "lock")
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    with naming(path):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            stream = open_locked(file)
        except BlockingIOError:
            holder = file.read_text(encoding="utf-8") if file.exists() else "another process"
            raise UserError(f"{path}: is being written by {holder}; wait for its end, or end it") from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}")
        stream.flush()
    with stream:
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def check_replaceable(path: Path, stage: str | None = None) -> None:
    """Raise UserError, with the remedy, unless nothing is at `path`, an empty folder, or one that `stage` wrote.

    A folder is a stage's if the provenance in it, or beside it, says so, and it does not hold the working folder.
    """
    reason = ""
    if not standing_above(path).is_dir():
        reason = "lies below a file"
    elif path.is_symlink():
        reason = "is a link"
    elif path.exists() and not path.is_dir():
        reason = "is a file"
    elif path.exists() and Path.cwd().is_relative_to(path.resolve()):
        reason = "holds the working folder"
    elif path.name in ("", ".."):
        reason = "has no name of its own"
    elif any(not file.is_dir() for file in path.rglob("*")) and not (stage and stage in _writers(path)):
        reason = f"holds files that `{stage}` did not write" if stage else "is not empty"
    if reason:
        raise UserError(f"{path}: {reason}, so it is not replaced; give another --out, or remove it yourself")


def _writers(folder: Path) -> list[str | None]:
    """The stages that the provenance in a folder, and the one beside it, name."""
    return [writer(place / "provenance.json") for place in (folder, folder.parent)]


def _hidden(path: Path, kind: str) -> Path:
    """What a stage keeps beside `path`: its `lock`, unfinished work (`part`, `partial`), or the `old` result."""
    return path.with_name(f".{path.name}.{kind}")


@contextmanager
def atomic_folder(path: Path, stage: str | None = None) -> Iterator[Path]:
    """A temporary empty folder beside `path`: replaces `path` at the end of the block, removed after an exception.

    Raises UserError, before the block, for what `check_replaceable` refuses, and while another process writes it.
    """
    check_replaceable(path, stage)
    with locked(path), naming(path):
        _restore(path)
        temp_path = _hidden(path, "part")
        shutil.rmtree(temp_path, ignore_errors=True)
        temp_path.mkdir()
        try:
            yield temp_path
            _replace(path, temp_path)
        finally:
            shutil.rmtree(temp_path, ignore_errors=True)


def link_folder(source: Path, path: Path) -> None:
    """Make `path` a folder of the files of `source`, without hidden ones: hard links, or copies where there are none.

    What writes results replaces files, and changes none: so the links stay as they are when `source` is made anew.
    """

    def link(file: str, name: str) -> None:
        try:
            os.link(file, name)
        except OSError:
            shutil.copy2(file, name)

    with atomic_folder(path) as temp_path:
        ignore = shutil.ignore_patterns(".*")
        shutil.copytree(source, temp_path, ignore=ignore, copy_function=link, dirs_exist_ok=True)


@contextmanager
def resumed_folder(path: Path, identity: dict[str, Any], stage: str) -> Iterator[Path]:
    """As atomic_folder, but what the block wrote, atomically, stays for a next run with an equal `identity` (JSON)."""
    check_replaceable(path, stage)
    with locked(path), naming(path):
        _restore(path)
        temp_path = _hidden(path, "partial")
        if (path / MARK).exists():  # killed when it was complete, just before the mark was removed
            path.replace(temp_path)
        if temp_path.exists() and (not (temp_path / MARK).exists() or read_json(temp_path / MARK) != identity):
            log.warning("%s: unfinished work of other settings or inputs is removed", path)
            shutil.rmtree(temp_path)
        for leftover in sorted(temp_path.rglob(".*.*")):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            elif leftover.name != MARK:
                leftover.unlink(missing_ok=True)
        temp_path.mkdir(exist_ok=True)
        write_json(temp_path / MARK, identity)
        yield temp_path
        _replace(path, temp_path)
        (path / MARK).unlink()


def _restore(path: Path) -> None:
    """Put back, or remove, the replaced folder that a process left which was killed between the two renames."""
    old = _hidden(path, "old")
    if old.exists() and not path.exists():
        old.replace(path)
    shutil.rmtree(old, ignore_errors=True)


def _replace(path: Path, temp_path: Path) -> None:
    """Give a complete folder its name; what was there goes only when the new one is in its place."""
    sync(temp_path)
    old = _hidden(path, "old")
    if path.exists():
        path.replace(old)
    temp_path.replace(path)
    shutil.rmtree(old, ignore_errors=True)
