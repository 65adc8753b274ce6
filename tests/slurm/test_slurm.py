"""The workflow on SLURM, by profiles/slurm as it stands: one node with two emulated cards, which cluster.sh starts.

Its stages compute on the CPU. What SLURM gives out of cores, memory and cards, nothing enforces here.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from workflows import begin, end, results

from r1track.core import config, files

# Whether a job has ended is asked every few seconds, where the plugin's own value is 40; nothing else is changed.
SLURM = ("--workflow-profile", str(config.ROOT / "profiles/slurm"), "--slurm-init-seconds-before-status-checks", "3")
ADAPTER = "results/demo/adapters/grpo"
TRAIN: dict[str, Any] = {"arms": ["grpo"], "steps": 12, "save_every": 12}  # no checkpoint but at the end
# Of both arms in the whole workflow: there are many steps left when the first one is seen.
MANY: dict[str, Any] = {"steps": 40, "save_every": 40, "sft": {"steps": 40, "batch": 2, "micro_batch": 2}}
SUBMITTED = re.compile(r"has been submitted with SLURM jobid (\d+)")


class Whole(NamedTuple):
    """The folder of a workflow, its output, and the card that SLURM gave to each arm."""

    folder: Path
    output: str
    cards: dict[str, str]


def slurm(*words: str) -> str:
    """The output of a command of SLURM."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def facts(job: str) -> dict[str, str]:
    """What SLURM says of a job, by name."""
    words = slurm("scontrol", "--details", "show", "job", job).split()
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def meet(folder: Path, workflow: subprocess.Popen[str], minutes: float = 15) -> dict[str, str]:
    """Stop (SIGSTOP) the training of each arm after its first step, until both of them have made one.

    So they run at once however short they are, if SLURM lets them: where the second one waits for the first to end,
    this fails when the minutes are over. Returns the card that SLURM gave to each arm.
    """
    jobs, last = dict[str, str](), time.monotonic() + 60 * minutes
    while len(jobs) < 2:
        assert workflow.poll() is None, workflow.communicate()[0][-4000:]
        assert time.monotonic() < last, (jobs, slurm("squeue"))
        running = slurm("squeue", "--states=RUNNING", "--format=%i %k")
        for job, arm in re.findall(r"(\d+) rule_train_\S+_(\w+)", running):  # %k, the comment: rule and wildcards
            if arm not in jobs and (folder / f"scratch/demo/train/{arm}/log.jsonl").exists():
                slurm("scancel", "--signal=STOP", job)
                jobs[arm] = job
        time.sleep(0.05)
    given = {arm: facts(job) for arm, job in jobs.items()}
    assert {fact["JobState"] for fact in given.values()} == {"STOPPED"}, "begun, and with all that they were given"
    slurm("scancel", "--signal=CONT", *jobs.values())
    return {arm: re.sub(r".*IDX:(\d+).*", r"\1", fact["GRES"]) for arm, fact in given.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A workflow that ran on SLURM as a whole; both arms have met in it."""
    folder = tmp_path_factory.mktemp("slurm")
    workflow = begin(folder, where=SLURM, **MANY)
    try:
        cards = meet(folder, workflow)
        output = workflow.communicate()[0]
    finally:
        workflow.kill()
    assert workflow.returncode == 0, output[-4000:]
    return Whole(folder, output, cards)


def test_the_whole_workflow_ends_with_the_results_of_a_local_run(whole: Whole, tmp_path: Path) -> None:
    """Pairs, adapters, merged weights, tracks, answers, scores and verdict: all but times and speeds."""
    end(begin(tmp_path, **MANY))
    here = results(tmp_path)
    assert {name.split("/")[1] for name in here} >= {"pairs", "adapters", "models", "tracks", "vqa", "scores"}
    assert results(whole.folder) == here
    assert "Trying to restart" not in whole.output
    assert len(SUBMITTED.findall(whole.output)) == 16, "of 16 jobs, one is all that takes seconds (`groups`)"


def test_two_arms_train_at_once_each_on_a_card_of_its_own(whole: Whole) -> None:
    """By what SLURM said when both had begun, and by the records of the jobs themselves: logs and provenances."""
    cards, spans = dict[str, str](), []
    for arm in ("sft", "grpo"):
        log = (whole.folder / f"results/demo/logs/train/{arm}.log").read_text()
        (cards[arm],) = re.findall(r"CUDA_VISIBLE_DEVICES is (\S+)", log)
        record = files.read_json(whole.folder / f"results/demo/adapters/{arm}/provenance.json")
        finished = datetime.fromisoformat(record["finished"]).timestamp()
        spans.append((finished - record["wall_seconds"], finished))
    assert cards == whole.cards
    assert {*cards.values()} == {"0", "1"}
    (begin_one, end_one), (begin_two, end_two) = spans
    assert min(end_one, end_two) - max(begin_one, begin_two) > 1, spans


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed training, here and not on SLURM."""
    folder = tmp_path_factory.mktemp("trained")
    end(begin(folder, ADAPTER, **TRAIN))
    return folder


def train(trained: Path, folder: Path, disturb: Callable[[str], object]) -> tuple[str, list[int]]:
    """Train on SLURM in a copy of the folder, and disturb the job, by its number, after its first step.

    Returns the output of the workflow and the step that the training went on from, if it did. The adapter and its log
    must be those of the undisturbed training.
    """
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / ADAPTER)
    shutil.rmtree(folder / "scratch/demo/train", ignore_errors=True)
    workflow = begin(folder, ADAPTER, where=SLURM, **TRAIN)
    while not (folder / "scratch/demo/train/grpo/log.jsonl").exists() and workflow.poll() is None:
        time.sleep(0.2)
    if workflow.poll() is None:
        disturb(slurm("squeue", "--noheader", "--states=RUNNING", "--format=%i").strip())
    output = workflow.communicate()[0]
    assert workflow.returncode == 0, output
    resumed = re.findall(
        r"resuming from .*/checkpoint-(\d+)", (folder / "results/demo/logs/train/grpo.log").read_text()
    )
    weights = "adapter_model.safetensors"
    assert files.hash_file(folder / ADAPTER / weights) == files.hash_file(trained / ADAPTER / weights)
    rows = map(json.loads, (folder / ADAPTER / "log.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows] == [*range(TRAIN["steps"] + 1)]
    return output, [int(step) for step in resumed]


def run_out(job: str) -> None:
    """Stop a job, and let its time be the shortest that SLURM knows: a minute."""
    slurm("scancel", "--signal=STOP", job)
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=1")


@pytest.mark.parametrize(("status", "disturb"), [("CANCELLED", partial(slurm, "scancel")), ("TIMEOUT", run_out)])
def test_a_cancelled_or_too_long_training_is_noticed_and_sent_again_and_loses_no_step(
    status: str, disturb: Callable[[str], object], trained: Path, tmp_path: Path
) -> None:
    output, steps = train(trained, tmp_path, disturb)
    assert f"SLURM status is: '{status}'" in output
    assert "Trying to restart" in output
    assert len(SUBMITTED.findall(output)) == 2
    assert len(steps) == 1
    assert 0 < steps[0] < TRAIN["steps"]


def test_a_preempted_training_waits_and_goes_on_as_the_same_job(trained: Path, tmp_path: Path) -> None:
    """Two cards are asked for by a partition of higher priority: SLURM requeues the training, Snakemake waits."""

    def preempt(job: str) -> None:
        slurm("sbatch", "--partition=urgent", "--gpus=2", "--wait", "--output=/dev/null", "--wrap=sleep 1")
        assert facts(job)["Restarts"] == "1"

    output, steps = train(trained, tmp_path, preempt)
    assert "Trying to restart" not in output
    (job,) = SUBMITTED.findall(output)
    assert facts(job)["JobState"] == "COMPLETED"
    assert len(steps) == 1
    assert 0 < steps[0] < TRAIN["steps"]
