"""Each stage on a disk that is full or read-only: place and remedy in one message, then the same command goes on."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Undisturbed
from trials import STAGES, content, hidden, trial, words

PAGE = 4096
Mount = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """A disk of 64 MB at a folder, and a function that mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)

    try:
        mount("size=64m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a disk")
    yield folder, mount
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def check(command: list[str], stage: str, folder: Path, undisturbed: Undisturbed, words_of_error: str) -> None:
    code, _, output = trial(command, folder)
    assert code == 2, output
    message = " ".join(output.split("error: ")[-1].split())
    assert f"{folder}/" in message.partition(words_of_error)[0]
    assert "the same command goes on" in message
    assert "Traceback" not in output


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_full_disk_stops_a_stage_with_its_place_and_it_goes_on(stage, share, disk, undisturbed: Undisturbed):
    folder, mount = disk
    result = undisturbed.run / stage
    paths = [result] if result.is_file() else [path for path in result.rglob("*") if path.is_file()]
    pages = sum(-(-path.stat().st_size // PAGE) for path in paths)
    room = int(share * pages)
    if share and not room:
        pytest.skip("the result has one page")
    mount(f"remount,size={PAGE * (room + 1)}")
    (folder / "filler").write_bytes(b"x" * PAGE)  # a disk of no page cannot be made
    command = words(stage, undisturbed.run, folder)
    check(command, stage, folder, undisturbed, "No space left on device (0.0 GB are free); free some space there")
    mount("remount,size=64m")
    (folder / "filler").unlink()
    code, _, output = trial(command, folder)
    assert code == 0, output
    after, expected = content(folder / stage), undisturbed.contents[stage]
    assert after.keys() == expected.keys()
    assert {name for name, digest in expected.items() if digest not in (None, after[name])} == set()
    assert hidden(folder) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_read_only_disk_stops_a_stage_before_its_work(stage, disk, undisturbed: Undisturbed):
    folder, mount = disk
    mount("remount,ro")
    command = words(stage, undisturbed.run, folder)
    check(command, stage, folder, undisturbed, "Read-only file system; make it writable, or give another place")
