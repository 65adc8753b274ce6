"""Progress: what is shown and kept while training, when it warns, and when it stops."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from r1track.core import files
from r1track.core.errors import UserError
from r1track.training import progress


class State:
    """What a callback sees of the trainer."""

    def __init__(self, history: list[dict[str, Any]]) -> None:
        self.log_history = history
        self.global_step, self.max_steps = len(history), 20


def logged(watching: progress.ProgressCallback, state: State, **values: float) -> None:
    state.global_step += 1
    logs = {"step": state.global_step, "loss": 0.1, **values}
    state.log_history.append(logs)
    watching.on_step_begin(None, state, None)
    watching.on_log(None, state, None, logs=logs)


def begun(folder: Path, history: list[dict[str, Any]] | None = None) -> tuple[progress.ProgressCallback, State]:
    watching, state = progress.ProgressCallback(folder / "log.jsonl", samples=32, every=5), State(history or [])
    watching.on_train_begin(None, state, None)
    return watching, state


def test_the_file_has_a_line_per_step_at_once_and_again_after_a_checkpoint(tmp_path: Path) -> None:
    watching, state = begun(tmp_path)
    for k in range(3):
        logged(watching, state, reward=0.1 * k, frac_reward_zero_std=0.5, iou=0.2)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(
        row["memory_gib"] > 0 and row["samples_per_second"] == pytest.approx(32 / row["seconds"]) for row in rows
    )
    again, state = begun(tmp_path, state.log_history[:2])  # the third step came after the checkpoint
    logged(again, state, reward=0.9)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["reward"]) for row in rows] == [(1, 0.0), (2, 0.1), (3, 0.9)]


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (0.1, math.nan)])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(loss: float, norm: float, tmp_path: Path) -> None:
    watching, state = begun(tmp_path)
    with pytest.raises(UserError, match=r"the loss is .* at step 1; lower train\.learning_rate"):
        logged(watching, state, loss=loss, grad_norm=norm)


def rows(n: int, **values: float) -> list[dict[str, float]]:
    return [{"step": k, "frac_reward_zero_std": 0.5, "parsed": 1.0, **values} for k in range(n)]


@pytest.mark.parametrize(
    ("course", "reason"),
    [
        (rows(10, frac_reward_zero_std=1.0), "all completions of every group had the same reward"),
        (rows(10, parsed=0.01), "less than 5% of the completions were readable"),
        (rows(9, frac_reward_zero_std=1.0), None),
        ([*rows(9, frac_reward_zero_std=1.0), *rows(1)], None),
        ([*rows(9, parsed=0.0), *rows(1)], None),
        (rows(30), None),
        ([{"step": k, "loss": 1.0} for k in range(30)], None),  # sft has no groups
    ],
)
def test_it_warns_when_nothing_can_be_learned_and_only_then(course: list[dict[str, Any]], reason: str | None) -> None:
    found = progress.stall_reason(course)
    assert found is None if reason is None else reason in (found or "")


def test_the_warning_comes_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watching, state = begun(tmp_path)
    for _ in range(14):
        logged(watching, state, reward=-1.0, frac_reward_zero_std=1.0, parsed=0.0)
    assert caplog.text.count("the reward says nothing about boxes") == 1


def test_an_example_is_kept_with_its_images(tmp_path: Path) -> None:
    progress.keep_example(tmp_path / "kept", 25, [Image.new("RGB", (8, 8)), Image.new("L", (6, 6))], {"target": [1, 2]})
    kept = files.read_json(tmp_path / "kept" / "step-000025.json")
    assert kept == {"step": 25, "images": ["step-000025-0.jpg", "step-000025-1.jpg"], "target": [1, 2]}
    assert [Image.open(tmp_path / "kept" / name).size for name in kept["images"]] == [(8, 8), (6, 6)]
