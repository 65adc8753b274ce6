"""A whole workflow, killed at random moments: the same command goes on to the same results, and no hand is needed.

The number of kills is a tenth of `KILLS`, which `make torture` sets; `make test` leaves this to it. And a signal to
the workflow alone reaches the stage that runs.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from dry_runs import jobs
from test_kills import KILLS
from trials import hidden
from workflows import HERE, begin, end, results


def kill_session(workflow: subprocess.Popen[str]) -> None:
    subprocess.run(["pkill", "-9", "-s", str(workflow.pid)], check=False)
    workflow.communicate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of an undisturbed workflow, and the seconds that it took."""
    folder, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    end(begin(folder))
    return folder, time.monotonic() - began


@pytest.mark.skipif("KILLS" not in os.environ, reason="takes minutes: `make torture`")
def test_a_killed_workflow_goes_on_to_the_same_results_without_a_hand(whole, tmp_path):
    folder, seconds = whole
    moments, kills = random.Random(11), max(1, KILLS // 10)
    for kill in range(kills):
        workflow = begin(tmp_path)
        time.sleep(moments.uniform(0.05, 0.9) * seconds / (1 + kill % 3))
        kill_session(workflow)
    end(begin(tmp_path))
    assert results(tmp_path) == results(folder)
    left = [name for name in hidden(tmp_path / "results") + hidden(tmp_path / "scratch") if "snakemake" not in name]
    assert left == []


def test_a_signal_to_snakemake_reaches_the_training_which_loses_no_step(tmp_path: Path) -> None:
    """As a cluster sends it: to that process alone. The checkpoints of the training itself would come at its end."""
    adapter, log = "results/demo/adapters/grpo", tmp_path / "scratch/demo/train/grpo/log.jsonl"
    command = partial(begin, tmp_path, adapter, arms=["grpo"], steps=20, save_every=20)
    workflow = command()
    while not log.exists() and workflow.poll() is None:  # until the first step is logged
        time.sleep(0.05)
    workflow.send_signal(signal.SIGTERM)
    output = workflow.communicate()[0]
    assert workflow.returncode == 1, output
    step = re.search(
        r"stopped by SIGTERM after step (\d+)", (tmp_path / "results/demo/logs/train/grpo.log").read_text()
    )
    assert step
    assert int(step[1]) < 20
    assert "train failed: its process ended with exit status 143" in output
    assert "the same command continues from there" in output
    assert not (tmp_path / adapter).exists()
    end(command())
    log_text = (tmp_path / "results/demo/logs/train/grpo.log").read_text()
    assert re.search(rf"resuming from .*/checkpoint-{step[1]}\b", log_text)
    rows = map(json.loads, (tmp_path / adapter / "log.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows] == [*range(21)]


def test_a_part_of_tracking_that_is_killed_costs_itself_and_the_joined_bytes_are_those_without_parts(
    tmp_path: Path,
) -> None:
    tracks, toy = "results/demo/tracks/base/toy-val", {"train_sequences": 1, "val_sequences": 4, "length": 40}

    def command(folder: Path, parts: int) -> subprocess.Popen[str]:
        track = {"batch": 1, "max_tokens": 16, "parts": parts}
        one_after_another = (*HERE, "--cores", "1")
        return begin(folder, tracks, where=one_after_another, sections={"toy": toy, "track": track})

    end(command(tmp_path / "whole", 1))
    folder = tmp_path / "parts"
    workflow, place = command(folder, 2), folder / "scratch/demo/parts/base/toy-val"
    done, victim, finished = None, None, list[Path]()
    while not finished and workflow.poll() is None:  # one part is done, and the other one has its first sequence
        time.sleep(0.02)
        done = next((part for part in (place / "1", place / "2") if part.is_dir()), None)
        if done:
            victim = "12".replace(done.name, "")
            finished = [path for path in place.glob(f".{victim}.partial/*") if not path.name.startswith(".")]
    assert done
    for process in psutil.Process(workflow.pid).children(recursive=True):
        words = process.cmdline()
        if "--part" in words and words[words.index("--part") + 1] == victim and process.name() != "bash":
            process.kill()
    output = workflow.communicate()[0]
    assert workflow.returncode == 1, output
    assert "track failed: its process ended with exit status 137" in output
    assert not (place / str(victim)).exists()
    assert not (folder / tracks).exists()
    written = (done.stat().st_mtime_ns, [path.stat().st_mtime_ns for path in [*finished, *done.glob("*/*")]])

    again = command(folder, 2)
    while again.poll() is None:  # the parts are removed when they are joined
        if done.is_dir() and (place / str(victim)).is_dir():
            moved = [place / str(victim) / path.name for path in finished]
            seen = (done.stat().st_mtime_ns, [path.stat().st_mtime_ns for path in [*moved, *done.glob("*/*")]])
            break
        time.sleep(0.01)
    output = again.communicate()[0]
    assert again.returncode == 0, output
    ran = jobs(output)
    assert (ran["part"], ran["track"]) == (1, 1)
    assert seen == written, "neither the other part nor the sequences that the killed one had finished are made again"
    whole, joined = (
        {name: digest for name, digest in results(place).items() if "tracks/" in name}
        for place in (tmp_path / "whole", folder)
    )
    assert len([name for name in whole if name.endswith("_001.txt")]) == 4
    assert joined == whole
