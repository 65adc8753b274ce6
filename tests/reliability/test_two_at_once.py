"""Two of a stage in one folder: one result, and one refusal that names who writes it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Undisturbed
from trials import STAGES, begin, content, end, hidden, trial, wait_until_stopped, words

FOLDERS = [stage for stage in STAGES if not stage.endswith(".json")]


def check(stage: str, folder: Path, undisturbed: Undisturbed) -> None:
    """The folder has the one result, and nothing else."""
    after, expected = content(folder / stage), undisturbed.contents[stage]
    assert after.keys() == expected.keys()
    assert {name for name, digest in expected.items() if digest not in (None, after[name])} == set()
    assert hidden(folder) == []


@pytest.mark.parametrize("stage", FOLDERS)
def test_the_second_is_refused_and_the_first_ends_well(stage, undisturbed: Undisturbed, tmp_path):
    command = words(stage, undisturbed.run, tmp_path)
    first, report = begin(command, tmp_path, undisturbed.operations[stage] // 2)
    wait_until_stopped(first)
    code, _, output = trial(command, tmp_path)
    assert code == 2
    holder = f"{stage}: is being written by process {first.pid} on {socket.gethostname()}, since 2"
    assert holder in " ".join(output.split())
    os.kill(first.pid, signal.SIGCONT)
    code, _, output = end(first, report)
    assert code == 0, output
    check(stage, tmp_path, undisturbed)


def test_two_trainings_in_one_scratch_are_told_apart(undisturbed: Undisturbed, tmp_path):
    command = words("sft", undisturbed.run, tmp_path)
    first, _ = begin(command, tmp_path, undisturbed.operations["sft"] // 2)
    wait_until_stopped(first)
    code, _, output = trial([*command[:-1], str(tmp_path / "elsewhere")], tmp_path)
    assert code == 2
    assert f"sft-scratch: is being written by process {first.pid}" in " ".join(output.split())
    first.kill()
    first.join()
    assert trial(command, tmp_path)[0] == 0
    check("sft", tmp_path, undisturbed)


def test_a_process_on_a_machine_of_another_name_is_told_whose_it_is(undisturbed: Undisturbed, tmp_path):
    """As a cluster's nodes on one disk; the host names differ by a namespace."""
    command = words("tracks", undisturbed.run, tmp_path)
    first, report = begin(command, tmp_path, undisturbed.operations["tracks"] // 2)
    wait_until_stopped(first)
    if not shutil.which("unshare"):
        pytest.skip("no tool that makes namespaces")
    script = 'hostname elsewhere && exec "$0" -m r1track "$@"'
    second = ["unshare", "--uts", "bash", "-c", script, sys.executable, *command]
    done = subprocess.run(second, capture_output=True, text=True)
    os.kill(first.pid, signal.SIGCONT)
    assert end(first, report)[0] == 0
    if "unshare" in done.stderr:
        pytest.skip("no right to make a namespace")
    assert done.returncode == 2
    assert f"is being written by process {first.pid} on {socket.gethostname()}" in " ".join(done.stderr.split())
    check("tracks", tmp_path, undisturbed)
