"""Cards: jobs at once on emulated cards, by the records that the jobs write themselves."""

import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest

from r1track.core import cards

JOB = """
import os, sys, time
from r1track.core.cards import take_card
take_card(sys.argv[2].split(","))
begin = time.monotonic()
print(os.getpid(), flush=True)
time.sleep(float(sys.argv[1]))
print(os.environ["CUDA_VISIBLE_DEVICES"], begin, time.monotonic(), flush=True)
"""


def start(folder: Path, seconds: float, numbers: str, **place: str) -> subprocess.Popen[str]:
    """A job that works so long on one of the cards; its locks are in `folder`."""
    variables = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    variables |= {"TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path), **place}
    command = [sys.executable, "-c", JOB, str(seconds), numbers]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)


def test_eight_jobs_on_four_cards_are_never_two_on_one(tmp_path: Path) -> None:
    jobs = [start(tmp_path, 0.3, "0,1,2,3") for _ in range(8)]
    rows = [job.communicate(timeout=100)[0].split()[1:] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 8
    spans = [(card, float(begin), float(end)) for card, begin, end in rows]
    assert {card for card, _, _ in spans} <= {"0", "1", "2", "3"}
    for (one, begin, end), (two, later, last) in combinations(spans, 2):
        assert one != two or end <= later or last <= begin


def test_a_killed_job_gives_its_card_back_at_once_and_a_running_one_does_not(tmp_path: Path) -> None:
    first, second = start(tmp_path, 600, "5,7"), start(tmp_path, 600, "5,7")
    for job in (first, second):
        assert job.stdout
        job.stdout.readline()  # it has its card
    third = start(tmp_path, 0, "5,7")
    time.sleep(2)
    assert third.poll() is None, "both cards are taken"
    first.send_signal(signal.SIGKILL)
    assert third.communicate(timeout=100)[0].split()[1] in ("5", "7")
    assert second.poll() is None
    for job in (first, second):
        job.kill()
        job.communicate()


@pytest.mark.parametrize(("numbers", "given"), [(["0", "1", "2"], "GPU-4f"), (["0", "1"], ""), (["0"], None)])
def test_what_a_scheduler_gives_and_a_single_card_are_left_alone(
    numbers: list[str], given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    cards.take_card(numbers)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == given
    assert cards._locks == []
