"""Claims about result folders: one writer at a time, nothing lost at any moment of a kill, nothing left behind."""

import multiprocessing
import os
import signal
import socket
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from r1track.core import files, folders
from r1track.core.errors import UserError

SPAWN = multiprocessing.get_context("spawn")


def hold(path: Path, pipe: Connection) -> None:
    """Write the result folder `path` until the other end of the pipe says so."""
    with folders.atomic_folder(path) as folder:
        (folder / "half").write_text("half")
        pipe.send("entered")
        pipe.recv()


@pytest.fixture
def holder(tmp_path: Path):
    """A process that writes `out`."""
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=hold, args=(tmp_path / "out", there), daemon=True)
    process.start()
    assert here.poll(60)
    return process, here


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_writer_is_refused_and_told_who_writes(holder, tmp_path):
    process, pipe = holder
    for block in (
        lambda: folders.atomic_folder(tmp_path / "out"),
        lambda: folders.resumed_folder(tmp_path / "out", {}, "track"),
    ):
        with pytest.raises(UserError) as refusal, block():
            pytest.fail("both write")
        words = f"out: is being written by process {process.pid} on {socket.gethostname()}, since 20"
        assert words in str(refusal.value)
    pipe.send("leave")
    process.join()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["half"]


def test_the_lock_of_a_killed_writer_is_taken_over_and_its_work_removed(holder, tmp_path):
    process, _ = holder
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert names(tmp_path) == [".out.lock", ".out.part"]
    with folders.atomic_folder(tmp_path / "out") as folder:
        assert names(folder) == []
        (folder / "whole").write_text("whole")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["whole"]


def test_two_writers_of_one_file_are_told_apart(tmp_path):
    with files.atomic_file(tmp_path / "f.json") as temp_path:
        temp_path.write_text("first")
        with pytest.raises(UserError, match=r"f\.json: is being written by another process"):
            files.write_text(tmp_path / "f.json", "second")
    assert (tmp_path / "f.json").read_text() == "first"
    files.write_text(tmp_path / "f.json", "third")
    assert (tmp_path / "f.json").read_text() == "third"
    assert names(tmp_path) == ["f.json"]


def test_a_longer_file_of_a_killed_writer_leaves_no_tail(tmp_path):
    (tmp_path / ".f.json.part").write_text("x" * 100)
    with files.atomic_file(tmp_path / "f.json") as temp_path, temp_path.open("r+") as stream:
        stream.write("short")
    assert (tmp_path / "f.json").read_text() == "short"


class Killed(BaseException):
    """Stands for a kill: the code behind it does not run."""


@pytest.mark.parametrize("moment", range(3))
def test_a_kill_at_any_moment_of_the_replacement_loses_nothing(moment, tmp_path, monkeypatch):
    """The moments: before the first rename, between the two, and before the replaced folder is removed."""
    with folders.resumed_folder(tmp_path / "out", {"a": 1}, "track") as folder:
        (folder / "old").write_text("old")
        files.write_json(folder / "provenance.json", {"stage": "track"})

    def killed_at(moment: int):
        renames = iter(range(9))
        real = Path.replace

        def replace(self: Path, target: Path) -> Path:
            if "out" in self.name and ".json" not in self.name and next(renames) == moment:
                raise Killed
            return real(self, target)

        return replace

    with monkeypatch.context() as patch:

        def remove(folder: Path, **_: bool) -> None:
            if folder.exists():
                raise Killed

        def write_new() -> None:
            with folders.resumed_folder(tmp_path / "out", {"a": 2}, "track") as folder:
                (folder / "new").write_text("new")
                files.write_json(folder / "provenance.json", {"stage": "track"})

        patch.setattr(Path, "replace", killed_at(moment))
        patch.setattr(folders.shutil, "rmtree", remove)
        with pytest.raises(Killed):
            write_new()
    with folders.resumed_folder(tmp_path / "out", {"a": 2}, "track") as folder:
        assert (folder / "new").read_text() == "new"
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new", "provenance.json"]


def test_the_replaced_folder_comes_back_when_the_new_one_never_took_its_place(tmp_path):
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "old").write_text("old")
    files.write_json(tmp_path / ".out.old" / "provenance.json", {"stage": "merge"})
    with pytest.raises(RuntimeError), folders.atomic_folder(tmp_path / "out", "merge"):
        raise RuntimeError("stopped again")
    assert names(tmp_path / "out") == ["old", "provenance.json"]


def test_what_a_killed_writer_left_inside_is_removed_and_never_counted(tmp_path):
    with suppress(RuntimeError), folders.resumed_folder(tmp_path / "out", {}, "track") as folder:
        (folder / "done").mkdir()
        (folder / "done" / "boxes.txt").write_text("1")
        (folder / ".next.part").mkdir()
        (folder / ".next.part" / "boxes.txt").write_text("2")
        (folder / "done" / ".times.txt.part").write_text("3")
        assert files.hashes(folder).keys() == {"done/boxes.txt"}
        raise RuntimeError("killed")
    with folders.resumed_folder(tmp_path / "out", {}, "track"):
        pass
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")) == [
        "done",
        "done/boxes.txt",
    ]


def test_unfinished_work_of_other_settings_is_removed_and_said(tmp_path, caplog):
    with suppress(RuntimeError), folders.resumed_folder(tmp_path / "out", {"steps": 1}, "track") as folder:
        (folder / "old").write_text("old")
        raise RuntimeError("killed")
    with folders.resumed_folder(tmp_path / "out", {"steps": 2}, "track") as folder:
        assert names(folder) == [folders.MARK]
    assert "out: unfinished work of other settings or inputs is removed" in caplog.text


def test_a_lock_is_freed_at_once_and_the_clock_of_its_holder_is_named(tmp_path):
    for _ in range(3):
        with folders.locked(tmp_path / "scratch"):
            assert time.strftime("%Y-%m-%d") in (tmp_path / ".scratch.lock").read_text()
    assert names(tmp_path) == []


def test_a_place_without_a_name_of_its_own_is_refused(tmp_path):
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(UserError, match=r"\.\.: has no name of its own, so it is not replaced"):
        folders.check_replaceable(tmp_path / "empty" / "below" / "..")
