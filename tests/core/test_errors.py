"""Claims about errors: what user or machine caused is one message and exit status 2, a bug keeps its traceback."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from r1track import cli
from r1track.core import errors


def stop(monkeypatch: pytest.MonkeyPatch, error: BaseException, log: Path) -> tuple[int, str, BaseException | None]:
    """Exit code, terminal text and exception of a command whose stage raises `error`."""

    def run(*_: object) -> None:
        raise error

    monkeypatch.setattr("r1track.tracking.submit.run", run)
    result = CliRunner().invoke(cli.app, ["--log", str(log), "submit", "--tracks", "a", "--out", "b.zip"])
    return result.exit_code, " ".join(result.output.split()), result.exception


MACHINE = {
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "data/x"), "data/x: No space left on device ("),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), "free some space within your quota"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "x"), "make it writable, or give another place"),
    "no right": (PermissionError(errno.EACCES, "Permission denied", "x"), "give yourself the right to it"),
    "open files": (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    "memory": (MemoryError(), "most likely memory ran out"),
    "card's memory": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "Tried to allocate 2 GiB"),
    "file as folder": (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x/y"), "x/y: Not a directory; correct"),
    "file for a folder": (FileExistsError(errno.EEXIST, "File exists", "x"), "x: File exists; correct the path"),
    "safetensors": (RuntimeError("I/O error: No space left on device (os error 28)"), "free some space there"),
    "torch.save": (
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
        "free some space",
    ),
}


@pytest.mark.parametrize("name", MACHINE)
def test_what_the_machine_stopped_is_one_message_with_a_remedy(name, tmp_path, monkeypatch):
    error, words = MACHINE[name]
    code, output, _ = stop(monkeypatch, error, tmp_path / "log")
    assert code == 2
    assert words in output
    assert "Traceback" not in output
    assert "Traceback" in (tmp_path / "log").read_text()


def test_an_error_behind_another_is_seen(tmp_path, monkeypatch):
    outer = RuntimeError("the library's own words")
    outer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "free some space there, then the same command goes on" in stop(monkeypatch, outer, tmp_path / "log")[1]


@pytest.mark.parametrize("bug", [ValueError("zip() argument 2 is shorter"), KeyError("ao"), OSError("no number")])
def test_a_bug_keeps_its_traceback(bug, tmp_path, monkeypatch):
    code, output, exception = stop(monkeypatch, bug, tmp_path / "log")
    assert (code, exception) == (1, bug)
    assert "error:" not in output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_named_with_its_place_by_every_library(tmp_path):
    def by_python() -> None:
        Path("/dev/full").write_text("x" * 100_000)

    def by_torch() -> None:
        torch.save(torch.zeros(1_000_000), "/dev/full")

    for write in (by_python, by_torch):
        words = r"(out|/dev/full): No space left on device \([\d.]+ GB are free\)"
        with pytest.raises(errors.UserError, match=words), errors.naming(tmp_path / "out"):
            write()


def test_safetensors_names_the_place_that_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match=r"out: "), errors.naming(tmp_path / "out"):
        save_file({"a": torch.zeros(3)}, tmp_path / "file" / "model.safetensors")
