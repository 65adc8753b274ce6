"""What `snakemake` prints at its end: cause, remedy and log of every stage that failed; the summary of a good run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from r1track import failures
from r1track.core import config, files

ROOT = config.ROOT
SABOTAGE = """
import os, signal, sys
if "toy" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
if "vqa" in sys.argv:
    import r1track.ability.vqa
    def broken(*words):
        raise KeyError("fault")
    r1track.ability.vqa.run = broken
"""
SAMPLE = (  # the sequences are read side by side: either may be the first
    r"sample failed: mine/(one|two)/groundtruth\.txt, line 1: expected 4 finite numbers up to 1e\+06, "
    r"found '1,2,3'; restore it from the data set's archive, or correct it; a frame without the target has -1,-1,-1,-1"
)


def snakemake(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The workflow in a folder of its own, whose sitecustomize.py every stage imports first."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", *words]
    paths = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of the demo on a training split whose annotation has three numbers in a line."""
    (tmp_path / "config.yaml").write_text("preset: demo\ndata: {train: mine}\n")
    for name in ("one", "two"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "00000001.jpg").touch()
        (tmp_path / "mine" / name / "groundtruth.txt").write_text("1,2,3\n")
    (tmp_path / "mine" / "list.txt").write_text("one\ntwo\n")
    return tmp_path


def test_every_failed_stage_ends_with_its_cause_and_its_log_in_the_last_lines(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text(SABOTAGE)
    done = snakemake(folder, "--keep-going")
    assert done.returncode == 1
    above, last = done.stderr.split("At least one job did not complete successfully.\n")
    assert "Complete log" in above
    lines = last.splitlines()
    shown = dict(zip(lines[::2], lines[1::2], strict=True))
    killed = "toy failed: its process ended with exit status 137, its log names no error; "
    assert shown.pop(killed + failures.MEMORY) == "    log: results/demo/logs/toy.log"
    assert shown.pop(
        "vqa failed: KeyError: 'fault'; an error in the program; its traceback is at the end of the log"
    ) == ("    log: results/demo/logs/vqa/base.log")
    assert 'raise KeyError("fault")' in (folder / "results/demo/logs/vqa/base.log").read_text()
    ((message, log),) = shown.items()
    assert re.fullmatch(SAMPLE, message)
    assert log == "    log: results/demo/logs/sample.log"


def test_one_failed_stage_ends_with_its_cause_and_data_that_are_missing_with_theirs(folder: Path) -> None:
    """After retries, too, before each of which Snakemake removes the log."""
    done = snakemake(folder, "results/demo/pairs", "--retries", "2")
    assert done.stderr.count("Trying to restart") == 2
    cause, log = done.stderr.splitlines()[-2:]
    assert re.fullmatch(SAMPLE, cause)
    assert log == "    log: results/demo/logs/sample.log"
    (folder / "mine" / "two" / "groundtruth.txt").unlink()
    (folder / "mine" / "two" / "00000001.jpg").unlink()
    (folder / "mine" / "two").rmdir()
    done = snakemake(folder)
    assert "data.train = 'mine': mine/list.txt, line 2: no folder mine/two; unpack it" in done.stderr.splitlines()[-1]


def end_stage(folder: Path, status: int, text: str) -> Path:
    """The log of a stage `train` that wrote `text` to it and ended with `status`, run as a rule runs it."""
    log = folder / "logs" / "train.log"
    files.write_text(folder / "bin" / "r1track", f'#!/bin/sh\nprintf %s "$TEXT" >"$2"\nexit {status}\n')
    (folder / "bin" / "r1track").chmod(0o755)
    log.parent.mkdir(exist_ok=True)
    place = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TEXT": text}
    command = f"{failures.SHELL_PREFIX} r1track --log '{log}' train --config 'a b.json' --out c"
    assert subprocess.run(["bash", "-c", command], env=place).returncode == status
    return log


BEFORE = "2026-01-01 00:00:00,000 INFO r1track.training.train: step 5: loss 0.1\n"
CAUGHT = "2026-01-01 00:00:01,000 DEBUG r1track.console: "
TRACE = "\nTraceback (most recent call last):\n  File x\nValueError: y\n"
CASES = {
    "a user's error, in several lines": (
        2,
        f"{CAUGHT}stopped: a: cannot be used\n  b = 1: too small; take 2{TRACE}",
        "train failed: a: cannot be used\n  b = 1: too small; take 2",
    ),
    "an error from another process": (
        2,
        f'{CAUGHT}stopped: a is broken; mend it\nmultiprocessing.pool.RemoteTraceback: \n"""{TRACE}',
        "train failed: a is broken; mend it",
    ),
    "a card without memory": (
        1,
        f"{CAUGHT}failed: OutOfMemoryError: CUDA out of memory.{TRACE}",
        f"train failed: OutOfMemoryError: CUDA out of memory.; {failures.MEMORY}",
    ),
    "killed below a shell": (
        137,
        "",
        f"train failed: its process ended with exit status 137, its log names no error; {failures.MEMORY}",
    ),
    "interrupted": (
        130,
        "",
        "train failed: its process ended with exit status 130, its log names no error; "
        "it was interrupted: the same command continues from there",
    ),
    "a command that is not there": (
        127,
        "",
        "train failed: its process ended with exit status 127, its log names no error; see its output above",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_cause_and_remedy_are_shown(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text, message = CASES[case]
    log = end_stage(tmp_path, status, BEFORE + text)
    failures.show_end(tmp_path / "report/summary.md", [str(tmp_path)], 0)
    assert capsys.readouterr().err == f"{message}\n    log: {log}\n"


def test_a_stage_that_succeeds_after_a_failure_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end_stage(tmp_path, 1, "")
    end_stage(tmp_path, 0, "")
    failures.show_end(tmp_path / "report/summary.md", [str(tmp_path)], 0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("status", "expected"), [(2, "first 2"), (1, "again 2"), (137, "again 2")])
def test_a_retry_does_not_repeat_what_the_user_must_mend(status: int, expected: str, tmp_path: Path) -> None:
    """Before it, Snakemake removes the log; what is not repeated keeps its own."""
    log = end_stage(tmp_path, status, "first 2")
    log.unlink()
    end_stage(tmp_path, status, "again 2")
    assert log.read_text() == expected


def test_a_log_and_a_summary_of_an_earlier_run_are_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = end_stage(tmp_path, 1, f"{CAUGHT}failed: Old: fault{TRACE}")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "summary.md").write_text("# the summary\n")
    later = log.stat().st_mtime + 60
    failures.show_end(tmp_path / "report/summary.md", [str(tmp_path)], later)
    assert capsys.readouterr() == ("", "")
    os.utime(f"{log}.failed", (later, later))  # killed before it wrote a log of its own
    failures.show_end(tmp_path / "report/summary.md", [str(tmp_path)], later)
    printed = capsys.readouterr()
    assert "Old" not in printed.err
    assert "its log names no error" in printed.err
    assert printed.out == ""
    failures.show_end(tmp_path / "report/summary.md", [str(tmp_path)], 0)
    assert "the summary" in capsys.readouterr().out
