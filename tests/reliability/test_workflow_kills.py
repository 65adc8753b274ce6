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

import pytest
from test_kills import KILLS
from trials import hidden
from workflows import begin, end, results


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
