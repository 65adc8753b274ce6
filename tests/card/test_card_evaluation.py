"""Held-out pairs answered during a training over Unsloth: the figures, no trace in the adapter, and what is kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from card_runs import settings
from toys import held_out_by_generate

from r1track.core import files
from r1track.training import evaluation, train


def trained(folder: Path, pairs: Path, arm: str, dtype: str = "bfloat16", **changes: Any) -> str:
    """Train in folder/scratch; the hash of the adapter at folder/adapter."""
    run = settings(dtype=dtype, scale_rewards="none", **changes)
    train.run(run, arm, "tiny", pairs, folder / "scratch", folder / "adapter")
    return files.hash_file(folder / "adapter" / evaluation.WEIGHTS)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "adapter" / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("arm", ["grpo", "sft"])
def test_held_out_pairs_are_answered_without_a_trace_in_the_adapter(arm: str, pairs: Path, tmp_path: Path) -> None:
    dropout = {"lora": {"dropout": 0.2}}
    without = trained(tmp_path / "without", pairs, arm, eval_every=0, **dropout)
    assert trained(tmp_path / "with", pairs, arm, eval_every=1, **dropout) == without
    assert files.read_json(tmp_path / "with" / "adapter" / "provenance.json")["backend"] == "unsloth"
    rows = rows_of(tmp_path / "with")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(0 <= row["held_out_iou"] <= 1 and 0 < row["held_out_parsed"] <= 1 for row in rows)


def test_the_figures_are_those_of_plain_transformers_with_the_same_adapter(pairs: Path, tmp_path: Path) -> None:
    sft = {"steps": 2, "batch": 8, "micro_batch": 4, "learning_rate": 2e-2}  # enough to change answers
    changes = {"quantize": "none", "eval_every": 1, "eval_pairs": 7, "sft": sft}
    trained(tmp_path, pairs, "sft", "float32", **changes)
    rows, made = rows_of(tmp_path), settings(dtype="float32", **changes)
    for step, adapter in ((0, None), (2, tmp_path / "adapter")):
        overlap, readable = held_out_by_generate(made, pairs, adapter, 7, 12)
        assert rows[step]["held_out_iou"] == pytest.approx(overlap, abs=1e-9)
        assert rows[step]["held_out_parsed"] == pytest.approx(readable)
    assert rows[0]["held_out_iou"] != rows[2]["held_out_iou"], "the training changed no answer: nothing is compared"


@pytest.mark.parametrize("arm", ["grpo", "sft"])
def test_where_the_held_out_iou_falls_at_the_end_best_keeps_the_earlier_adapter_and_last_does_not(
    arm: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (0.3, 0.6, 0.2)  # held-out IoU before the first step, and after each of two

    def measure(self: evaluation.Evaluation) -> dict[str, float]:
        iou = script[self.trainer.state.global_step]
        return {"held_out_iou": iou, "held_out_parsed": 1.0, "held_out_seconds": 0.0}

    monkeypatch.setattr(evaluation.Evaluation, "measure", measure)
    steady = {"eval_every": 1, "schedule": "constant_with_warmup"}
    sft = {**settings().train.sft.model_dump(), "schedule": "constant_with_warmup"}
    best, last = (trained(tmp_path / keep, pairs, arm, keep=keep, sft=sft, **steady) for keep in ("best", "last"))
    one = trained(tmp_path / "one", pairs, arm, steps=1, sft={**sft, "steps": 1}, **steady)
    assert best == one != last
    kept = {keep: files.read_json(tmp_path / keep / "adapter" / "provenance.json")["kept"] for keep in ("best", "last")}
    end = {"last_step": 2, "last_held_out_iou": 0.2}
    assert kept["best"] == {"keep": "best", "step": 1, "held_out_iou": 0.6, **end}
    assert kept["last"] == {"keep": "last", "step": 2, "held_out_iou": 0.2, **end}
