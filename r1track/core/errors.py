"""Errors: what a user can mend, apart from faults of this program."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = "most likely memory ran out: `r1track doctor` names settings that make a stage fit (more in docs/faq.md)"
RIGHT = "give yourself the right to it, or give another place"
SPACE, PATH = "free some space there", "correct the path"
REMEDIES = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: "free some space within your quota",
    errno.EROFS: "make it writable, or give another place",
    errno.EACCES: RIGHT,
    errno.EPERM: RIGHT,
    errno.ENOMEM: MEMORY,
    errno.EMFILE: "raise the limit of open files: `ulimit -n 65536`",
    errno.EIO: "the disk or the network fails; see the system's log",
    errno.ESTALE: "the network folder went away; mount it again",
} | dict.fromkeys((errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP), PATH)


class UserError(ValueError):
    """What the user can mend: file or field, value, remedy. Exit status 2. pydantic wants a ValueError of checks."""


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that is not there."""


def environment_fault(error: BaseException, place: Path | None = None) -> str | None:
    """What of the machine caused an error, with remedy, or None. place: what was written, where none names a file."""
    behind: BaseException | None = error
    while behind is not None:
        if type(behind).__name__ in ("MemoryError", "OutOfMemoryError") or "allocate memory" in str(behind):
            return f"{str(behind) or 'no memory is left'}; {MEMORY}"
        code, named = _code(behind), getattr(behind, "filename", None)
        where = Path(named) if isinstance(named, str) else place
        if code in REMEDIES and (behind is error or REMEDIES[code] != PATH):
            free = f" ({_free(where) / 1e9:.1f} GB are free)" if where and REMEDIES[code] == SPACE else ""
            go_on = "" if REMEDIES[code] == PATH else ", then the same command goes on"
            return f"{f'{where}: ' if where else ''}{os.strerror(code)}{free}; {REMEDIES[code]}{go_on}"
        behind = behind.__cause__ or behind.__context__
    return None


def _code(error: BaseException) -> int | None:
    """The system's number of an error; libraries that are not Python's own give it in words, or not at all."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if "enforce fail at inline_container" in str(error) and "Reader" not in str(error):
        return errno.ENOSPC  # torch.save says no more when the disk is full
    number = re.search(r"\(os error (\d+)\)", str(error))
    return int(number[1]) if number else None


def _free(path: Path) -> int:
    """Bytes that are free where `path` is to be."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(existing).free


@contextmanager
def naming(place: Path) -> Iterator[None]:
    """What the machine stops in this block, such as a full disk, is a UserError that names `place`."""
    try:
        yield
    except Exception as error:
        fault = None if isinstance(error, UserError) else environment_fault(error, place)
        if fault is None:
            raise
        raise UserError(fault) from error


@contextmanager
def reading(place: Path, remedy: str) -> Iterator[None]:
    """Let what a library says of files that it cannot read, by any kind of error, be a UserError that names `place`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or environment_fault(error):
            raise
        raise UserError(f"{place}: cannot be read ({error!r}); {remedy}") from error
