"""bench/gpu.py over the emulated card, with the tiny shape: every case of its list ends with a result."""

import json
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import share
import torch

from r1track.core import config


def test_every_case_of_the_rehearsal_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, str(config.ROOT / "bench" / "gpu.py"), "--rehearse", "--minutes", "15"]
    place = ["--out", str(tmp_path / "out"), "--scratch", str(tmp_path / "scratch")]
    done = subprocess.run([*command, *place], cwd=config.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    records = json.loads((tmp_path / "out" / "rehearsal.json").read_text())["cases"]
    assert {key: record["status"] for key, record in records.items()} == {
        case.key: "measured" for case in cases.REHEARSAL
    }
    assert {path.stem for path in (tmp_path / "scratch" / "logs").iterdir()} == set(records)
    for key, record in records.items():
        case = cases.Case.parse(key)
        if case.kind == "grpo":
            assert record["figures"]["trainer"] == ("GRPOTrainer" if case.variant == "stock" else "SharedPrefixTrainer")
        if case.backend == "unsloth":
            assert {"unsloth", "unsloth_zoo", "triton", "torchvision", "torchao", "accelerate"} <= set(
                record["versions"]
            )
        if case.kind != "build":
            assert record["figures"]["limit_gb"] == 24


def test_the_share_of_the_card_is_what_unsloth_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (torch.cuda, torch.cuda.memory):
        monkeypatch.setattr(module, "mem_get_info", lambda device=None: (70_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 5_000_000_000)
    for _ in range(2):  # a second call changes nothing
        share.hold_to(24)
        assert torch.cuda.mem_get_info() == torch.cuda.memory.mem_get_info() == (19_000_000_000, 24_000_000_000)
