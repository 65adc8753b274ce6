"""Evaluation: what is measured on held-out pairs during training, that training is none the wiser, and what is kept."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import held_out_by_generate, toy_pairs

from r1track.core import config, files, models
from r1track.core.boxes import iou
from r1track.core.pairs import held_out_rows
from r1track.training import evaluation, progress, train

FEW = {"pairs": 24, "val_pairs": 12}
SCRIPT = (0.3, 0.5, 0.6, 0.6, 0.2)  # held-out IoU before the first step and after each of four: step 2 is the best


class Stopped(Exception):
    """Stands for a kill."""


def settings(**changes: Any) -> config.Settings:
    sft = {"steps": 4, "batch": 4, "micro_batch": 4, "learning_rate": 1e-2, "schedule": "constant_with_warmup"}
    short = {
        "steps": 4, "save_every": 1, "prompts_per_step": 2, "group": 4, "micro_batch": 4, "learning_rate": 1e-3,
        "quantize": "none", "warmup": 0.0, "eval_every": 1, "sft": sft,
    }  # fmt: skip
    return config.resolve({"preset": "demo", "sample": FEW, "train": {**short, **changes}})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_pairs(tmp_path_factory.mktemp("data"), settings())


def trained(folder: Path, pairs: Path, arm: str, **changes: Any) -> str:
    """Train in folder/scratch; the hash of the adapter at folder/adapter."""
    train.run(settings(**changes), arm, "tiny", pairs, folder / "scratch", folder / "adapter")
    return files.hash_file(folder / "adapter" / evaluation.WEIGHTS)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "adapter" / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out figures by the step alone, so that they fall at the end."""

    def measure(self: evaluation.Evaluation) -> dict[str, float]:
        value = SCRIPT[self.trainer.state.global_step]
        return {"held_out_iou": value, "held_out_parsed": 1.0, "held_out_seconds": 0.0}

    monkeypatch.setattr(evaluation.Evaluation, "measure", measure)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("arm", ["sft", "grpo"])
def test_evaluation_changes_no_byte_of_the_adapter_whatever_is_drawn_in_training(
    arm: str, quantize: str, pairs: Path, tmp_path: Path
) -> None:
    changes = {"quantize": quantize, "lora": {"dropout": 0.2}}
    hashes = {
        trained(tmp_path / name, pairs, arm, **changes, **more)
        for name, more in {"without": {"eval_every": 0}, "with": {}, "best": {"eval_pairs": 5}}.items()
    }
    assert len(hashes) == 1


def test_the_figures_are_those_of_greedy_answers_by_generate_and_every_row_that_was_to_have_them_has_them(
    pairs: Path, tmp_path: Path
) -> None:
    changes = {"eval_every": 3, "eval_pairs": 7}
    trained(tmp_path, pairs, "grpo", **changes)
    rows = {row["step"]: row for row in rows_of(tmp_path)}
    assert list(rows) == [0, 1, 2, 3, 4]
    assert [step for step, row in rows.items() if "held_out_iou" in row] == [0, 3, 4]
    assert rows[0].keys() == {"step", "held_out_iou", "held_out_parsed", "held_out_seconds", "seconds", "memory_gib"}
    for step in (3, 4):
        assert 0 < rows[step]["held_out_seconds"] < rows[step]["seconds"]
        own = rows[step]["seconds"] - rows[step]["held_out_seconds"]
        assert rows[step]["samples_per_second"] == pytest.approx(8 / own)
    made = settings(**changes)
    for step, adapter in ((0, None), (4, tmp_path / "adapter")):
        overlap, readable = held_out_by_generate(made, pairs, adapter, 7, 16)
        assert rows[step]["held_out_iou"] == pytest.approx(overlap, abs=1e-9)
        assert rows[step]["held_out_parsed"] == pytest.approx(readable)


@pytest.mark.parametrize("behind", ["", "."])  # ignored, as in tracking
@pytest.mark.parametrize("answer", ["[]", "[9, 9, 40, 40]", "no"])
def test_held_out_pairs_without_the_target_count_one_for_an_empty_list_and_nothing_for_a_box(
    answer: str, behind: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(eval_pairs=12)
    mixed = toy_pairs(tmp_path, config.resolve({"preset": "demo", "sample": {**FEW, "negatives": 0.5}}))
    trainer = train.make_trainer(made, "grpo", models.TINY, pairs, tmp_path / "scratch")
    measured = evaluation.Evaluation(made, "grpo", models.TINY, mixed, tmp_path, trainer)
    monkeypatch.setattr(measured.processor.tokenizer, "batch_decode", lambda rows, **_: [answer + behind] * len(rows))
    figures, truth = measured.measure(), held_out_rows(mixed, 12)["answer"]
    negatives = sum(not box for box in truth)
    assert negatives == 6
    overlaps = [float(iou([9, 9, 40, 40], box)) if box else 0.0 for box in truth]
    wanted = {"[]": (negatives / 12, 0.5), "no": (0.0, 0.0), "[9, 9, 40, 40]": (np.mean(overlaps), 1.0)}[answer]
    assert (figures["held_out_iou"], figures["held_out_parsed"]) == pytest.approx(wanted)


@pytest.mark.parametrize("arm", ["sft", "grpo"])
def test_where_the_held_out_iou_falls_at_the_end_best_keeps_the_earlier_adapter_and_last_does_not(
    arm: str, pairs: Path, tmp_path: Path, script: None
) -> None:
    sft = settings().train.sft.model_dump()
    best, last = (trained(tmp_path / keep, pairs, arm, keep=keep) for keep in ("best", "last"))
    two = trained(tmp_path / "two", pairs, arm, steps=2, sft={**sft, "steps": 2})
    assert best == two != last
    kept = {keep: files.read_json(tmp_path / keep / "adapter" / "provenance.json")["kept"] for keep in ("best", "last")}
    end = {"last_step": 4, "last_held_out_iou": 0.2}
    assert kept["best"] == {"keep": "best", "step": 2, "held_out_iou": 0.6, **end}
    assert kept["last"] == {"keep": "last", "step": 4, "held_out_iou": 0.2, **end}


def test_a_real_training_that_goes_wrong_keeps_what_it_had_before(pairs: Path, tmp_path: Path) -> None:
    """The learning rate rises from 0 to far too much."""
    wrong = {"warmup": 0.75, "sft": {**settings().train.sft.model_dump(), "learning_rate": 0.3}}
    best, last = (trained(tmp_path / keep, pairs, "sft", keep=keep, **wrong) for keep in ("best", "last"))
    assert best != last
    rows, kept = rows_of(tmp_path / "best"), files.read_json(tmp_path / "best" / "adapter" / "provenance.json")["kept"]
    course = {row["step"]: row["held_out_iou"] for row in rows if row["step"]}
    assert kept["held_out_iou"] == max(course.values()) > course[4] == kept["last_held_out_iou"]
    assert course[kept["step"]] == kept["held_out_iou"]


@pytest.mark.parametrize("moment", ["step", "best", "save", "seal"])
def test_a_training_killed_at_any_moment_keeps_the_same_best_adapter(
    moment: str, pairs: Path, tmp_path: Path, script: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    from r1track.training import checkpoints

    whole = trained(tmp_path / "whole", pairs, "sft", keep="best")
    owner, method, calls = {
        "step": (progress.ProgressCallback, "on_step_begin", 4),  # the best is checkpoint 2's, and 3 is there
        "best": (PeftModel, "save_pretrained", 3),  # while the best of step 2 is written
        "save": (evaluation.Evaluation, "on_save", 2),
        "seal": (checkpoints.Seal, "on_save", 4),
    }[moment]  # fmt: skip
    plain, numbers = getattr(owner, method), iter(range(1, 100))

    def stopping(*args: Any, **named: Any) -> Any:
        if next(numbers) == calls:
            raise Stopped
        return plain(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, stopping)
        with pytest.raises(Stopped):
            trained(tmp_path / "killed", pairs, "sft", keep="best")
    assert trained(tmp_path / "killed", pairs, "sft", keep="best") == whole
    provenance = files.read_json(tmp_path / "killed" / "adapter" / "provenance.json")
    assert provenance["kept"]["step"] == 2
    courses = [[row.get("loss") for row in rows_of(tmp_path / name)] for name in ("whole", "killed")]
    assert courses[0] == courses[1]  # the training went on from its last adapter, not from its best
    assert len(courses[0]) == 5


def test_the_best_adapter_outlives_the_rotation_of_checkpoints_and_damage_to_it_is_seen(
    pairs: Path, tmp_path: Path, script: None, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trained(tmp_path, pairs, "sft", keep="best")
    scratch = tmp_path / "scratch"
    assert sorted(path.name for path in scratch.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    copies = [scratch / "checkpoint-3" / evaluation.BEST, scratch / "best" / evaluation.WEIGHTS]
    assert [files.hash_file(copy) for copy in copies] == [whole, whole]
    shutil.rmtree(scratch / "best")  # a run goes on with the copy in the checkpoint
    assert trained(tmp_path, pairs, "sft", keep="best") == whole
    copies[0].write_bytes(b"cut")
    assert trained(tmp_path, pairs, "sft", keep="best") == whole
    assert f"checkpoint-3: deleted, as {evaluation.BEST} is missing or not as it was saved" in caplog.text


def test_best_without_held_out_answers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keep `best` needs held-out answers; set eval_every to 25, say"):
        settings(eval_every=0, keep="best")


def test_nothing_is_drawn_from_the_random_generators(pairs: Path, tmp_path: Path) -> None:
    made = settings(lora={"dropout": 0.5})
    trainer = train.make_trainer(made, "grpo", models.TINY, pairs, tmp_path)
    measured = evaluation.Evaluation(made, "grpo", models.TINY, pairs, tmp_path, trainer)
    before = torch.get_rng_state()
    first, second = measured.measure(), measured.measure()
    assert torch.equal(before, torch.get_rng_state())
    assert first["held_out_iou"] == second["held_out_iou"]
    assert math.isfinite(first["held_out_iou"])
    assert all(module.training for module in trainer.model.modules())
