"""Stages of a small run as commands, and trials of them in processes that die at a given moment.

A trial runs a command in a process of its own. `kill_at` counts the operations on files (a file opened for writing,
renamed or removed, a folder made or removed) below the working folder: just before that operation the process kills
itself. So every moment between two operations can be tried, and a trial is the same on any machine.
"""

import itertools
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from r1track.core import files

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["r1track.training.train", "r1track.tracking.track", "r1track.reporting.report", "cv2"])
CONFIG: dict[str, Any] = {
    "preset": "demo",
    "toy": {"train_sequences": 3, "val_sequences": 2, "length": 6},
    "sample": {"pairs": 24, "val_pairs": 4, "max_gap": 3, "shard_rows": 8},
    "train": {
        "arms": ["sft", "grpo"], "steps": 4, "group": 2, "prompts_per_step": 2, "micro_batch": 4, "save_every": 1,
        "sft": {"steps": 4, "batch": 2, "micro_batch": 2},
    },
    "merge": {"check_pairs": 4, "min_agreement": 0.0},
    "score": {"draws": 100},
    "vqa": {"batch": 16, "kl_prompts": 2, "sets": {"easy-vqa": {"items": 16, "max_tokens": 8}}},
    "verdict": {"min_items": 8, "draws": 100},
    "report": {"strips": 1, "strip_frames": 2},
}  # fmt: skip
SETTINGS = ("--config", "{run}/config.yaml")
TRAIN = ("train", *SETTINGS, "--model", "tiny", "--pairs", "{run}/pairs", "--arm")
# In the order in which one needs the other. Each writes {out}.
STAGES = {
    "toy": ("toy", *SETTINGS, "--out", "{out}"),
    "pairs": ("sample", *SETTINGS, "--root", "{run}/toy/train", "--processes", "1", "--out", "{out}"),
    "sft": (*TRAIN, "sft", "--scratch", "{scratch}", "--out", "{out}"),
    "grpo": (*TRAIN, "grpo", "--scratch", "{scratch}", "--out", "{out}"),
    "merged": ("merge", *SETTINGS, "--model", "tiny", "--adapter", "{run}/sft", "--pairs", "{run}/pairs",
               "--out", "{out}"),
    "tracks": ("track", *SETTINGS, "--model", "tiny", "--root", "{run}/toy/val", "--out", "{out}"),
    "scores.json": ("score", "--tracks", "{run}/tracks", "--root", "{run}/toy/val", "--out", "{out}"),
    "base": ("vqa", *SETTINGS, "--model", "tiny", "--out", "{out}"),
    "tuned": ("vqa", *SETTINGS, "--model", "{run}/merged", "--pairs", "{run}/pairs", "--out", "{out}"),
    "verdict.json": ("verdict", *SETTINGS, "--base", "{run}/base", "--tuned", "{run}/tuned", "--out", "{out}"),
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def make_config(run: Path) -> None:
    """The configuration of a small run, as its folder's config.yaml."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG))


def words(stage: str, run: Path, folder: Path) -> list[str]:
    """The command of a stage that reads the run and writes to `folder`."""
    places = {"run": run, "out": folder / stage, "scratch": folder / f"{stage}-scratch"}
    return [word.format(**places) for word in STAGES[stage]]


def trial(command: list[str], folder: Path, kill_at: int = 0) -> tuple[int, int, str]:
    """Exit code (-9 when killed), operations on files below `folder`, and output of a command."""
    process, report = begin(command, folder, kill_at, signal.SIGKILL)
    return end(process, report)


def begin(command: list[str], folder: Path, moment: int | Path = 0, sent: int = signal.SIGSTOP) -> tuple[Any, Path]:
    """The process of a command, which sends itself a signal at a moment, and the file of its output.

    moment: the number of an operation, or the file whose first opening for writing it is.
    """
    report = folder.with_name(f"{folder.name}.{time.monotonic_ns()}.log")
    process = FORK.Process(target=_run, args=(command, folder, moment, sent, report))
    process.start()
    return process, report


def end(process: Any, report: Path) -> tuple[int, int, str]:
    """As `trial`, when the process ends."""
    process.join()
    output = report.read_text()
    return process.exitcode or 0, output.count("\n#operation"), output


def wait_until_stopped(process: Any) -> None:
    """Return when the process has stopped itself, and not ended."""
    while process.is_alive() and Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0] != "T":
        time.sleep(0.02)
    assert process.is_alive()


def _run(command: list[str], folder: Path, moment: int | Path, sent: int, report: Path) -> None:
    import torch
    from typer.testing import CliRunner

    from r1track.cli import app

    torch.set_num_threads(1)
    count, stream = itertools.count(1), os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    inside, moments = f"{folder}{os.sep}", [moment]

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
        if (changes or (event == "open" and (arguments[2] or 0) & WRITES)) and str(arguments[0]).startswith(inside):
            os.write(stream, b"\n#operation")
            number = next(count)
            if moments and (number == moments[0] or str(arguments[0]) == str(moments[0])):
                moments.clear()
                os.kill(os.getpid(), sent)

    sys.addaudithook(on_event)
    result = CliRunner().invoke(app, command)
    os.write(stream, f"\n{result.output}\n{result.exception!r}\n".encode())
    os._exit(result.exit_code)


def content(path: Path) -> dict[str, str]:
    """SHA-256 of a result's files, by name: of one file, or of all in a folder, hidden ones and provenance too."""
    if path.is_file():
        return {path.name: files.hash_file(path)}
    return {
        file.relative_to(path).as_posix(): files.hash_file(file) for file in sorted(path.rglob("*")) if file.is_file()
    }


def hidden(folder: Path) -> list[str]:
    """Hidden files and folders, which a command leaves only where it was killed."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(".*"))
