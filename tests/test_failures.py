"""The last words of `snakemake`: cause, remedy and log of every stage that failed; a good run's summary."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from r1track import failures
from r1track.core import config

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
    r"sample stopped: mine/(one|two)/groundtruth\.txt, line 1: expected 4 finite numbers with commas between, "
    r"found '1,2,3'; restore it from the data set's archive"
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
    told = dict(zip(lines[::2], lines[1::2], strict=True))
    killed = "toy stopped: its process ended with Signals.SIGKILL: 9, without a word in its log; "
    assert told.pop(killed + failures.MEMORY) == "    log: results/demo/logs/toy.log"
    assert told.pop("vqa stopped: KeyError: 'fault'; a fault of the program, whose whole traceback ends the log") == (
        "    log: results/demo/logs/vqa/base.log"
    )
    assert 'raise KeyError("fault")' in (folder / "results/demo/logs/vqa/base.log").read_text()
    ((said, log),) = told.items()
    assert re.fullmatch(SAMPLE, said)
    assert log == "    log: results/demo/logs/sample.log"


def test_one_failed_stage_ends_with_its_cause_and_data_that_are_missing_with_theirs(folder: Path) -> None:
    done = snakemake(folder, "results/demo/pairs")
    cause, log = done.stderr.splitlines()[-2:]
    assert re.fullmatch(SAMPLE, cause)
    assert log == "    log: results/demo/logs/sample.log"
    (folder / "mine" / "two" / "groundtruth.txt").unlink()
    (folder / "mine" / "two" / "00000001.jpg").unlink()
    (folder / "mine" / "two").rmdir()
    done = snakemake(folder)
    assert "data.train = 'mine': 1 of 2 sequences, first 'two', are missing" in done.stderr.splitlines()[-1]


def log_of(folder: Path, stage: str, how: str, own: str) -> list[str]:
    """Snakemake's log of a run in which one stage failed, whose own log says `own`."""
    (folder / "own.log").write_text(own)
    command = f"set -euo pipefail;  r1track --log {folder / 'own.log'} {stage} --config 'a b.json' --out c"
    (folder / "run.log").write_text(f"RuleException:\nCalledProcessError in file x\nCommand '{command}' {how}.\n[Sun\n")
    return [str(folder / "run.log")]


BEFORE = "2026-01-01 00:00:00,000 INFO r1track.training.train: step 5: loss 0.1\n"
CAUGHT = "2026-01-01 00:00:01,000 DEBUG r1track.cli: "
TRACE = "\nTraceback (most recent call last):\n  File x\nValueError: y\n"
CASES = {
    "a user's error, in several lines": (
        "returned non-zero exit status 2",
        f"{CAUGHT}stopped: a: cannot be used\n  b = 1: too small; take 2{TRACE}",
        "train stopped: a: cannot be used\n  b = 1: too small; take 2",
    ),
    "an error from another process": (
        "returned non-zero exit status 2",
        f'{CAUGHT}stopped: a is broken; mend it\nmultiprocessing.pool.RemoteTraceback: \n"""{TRACE}',
        "train stopped: a is broken; mend it",
    ),
    "a card without memory": (
        "returned non-zero exit status 1",
        f"{CAUGHT}failed: OutOfMemoryError: CUDA out of memory.{TRACE}",
        f"train stopped: OutOfMemoryError: CUDA out of memory.; {failures.MEMORY}",
    ),
    "killed below a shell": (
        "returned non-zero exit status 137",
        "",
        f"train stopped: its process ended with exit status 137, without a word in its log; {failures.MEMORY}",
    ),
    "interrupted": (
        "returned non-zero exit status 130",
        "",
        "train stopped: its process ended with exit status 130, without a word in its log; "
        "it was interrupted: the same command goes on from there",
    ),
    "a command that is not there": (
        "returned non-zero exit status 127",
        "",
        "train stopped: its process ended with exit status 127, without a word in its log; its last words stand above",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_cause_and_remedy_are_told(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how, own, told = CASES[case]
    failures.tell(log_of(tmp_path, "train", how, BEFORE + own), str(tmp_path), 0)
    assert capsys.readouterr().err == f"{told}\n    log: {tmp_path / 'own.log'}\n"


def test_a_log_and_a_summary_of_an_earlier_run_are_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = log_of(tmp_path, "train", "returned non-zero exit status 1", f"{CAUGHT}failed: Old: fault{TRACE}")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "summary.md").write_text("# the summary\n")
    later = (tmp_path / "own.log").stat().st_mtime + 60
    failures.tell(logs, str(tmp_path), later)
    said = capsys.readouterr()
    assert "Old" not in said.err
    assert "without a word" in said.err
    assert said.out == ""
    failures.tell(logs, str(tmp_path), 0)
    assert "the summary" in capsys.readouterr().out
