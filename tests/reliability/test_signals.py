"""SIGTERM and SIGINT: a training saves its step and goes on, every other stage cleans up behind itself."""

import re
import signal
from pathlib import Path

import pytest
import yaml
from conftest import Undisturbed
from trials import CONFIG, STAGES, begin, content, end, hidden, trial, words


@pytest.mark.parametrize("arm", ["sft", "grpo"])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_told_to_stop_loses_no_step(arm, sent, undisturbed: Undisturbed, tmp_path: Path):
    """Its own checkpoints would come at the end only: what it goes on from was saved because of the signal."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"train": CONFIG["train"] | {"save_every": 4}}))
    command = words(arm, undisturbed.run, tmp_path)
    command[command.index("--config") + 1] = str(tmp_path / "config.yaml")
    log = tmp_path / f"{arm}-scratch" / "log.jsonl"
    process, report = begin(command, tmp_path, log, sent)  # when the first step is logged
    code, _, output = end(process, report)
    assert code == 128 + sent, output
    step = re.search(rf"stopped by {sent.name} after step (\d) *;", output)
    assert step, output
    assert int(step[1]) < 4
    assert hidden(tmp_path) == []
    code, _, output = trial(command, tmp_path)
    assert code == 0, output
    assert f"checkpoint-{step[1]}" in re.sub(r"\s", "", output)
    after, expected = content(tmp_path / arm), undisturbed.contents[arm]
    assert after["adapter_model.safetensors"] == expected["adapter_model.safetensors"]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("sft", "grpo")])
def test_a_stage_that_is_told_to_end_leaves_no_lock_and_goes_on(stage, undisturbed: Undisturbed, tmp_path: Path):
    command = words(stage, undisturbed.run, tmp_path)
    code, _, output = end(*begin(command, tmp_path, undisturbed.operations[stage] // 2, signal.SIGTERM))
    assert code == 143, output
    assert {name.rpartition(".")[2] for name in hidden(tmp_path) if "/" not in name} <= {"partial"}
    assert trial(command, tmp_path)[0] == 0
    assert hidden(tmp_path) == []
