"""Train and merge: what moves, what does not, and what a killed run leaves behind."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from r1track import config, files, merge, models, prompts, sample, train
from r1track.pairs import load as open_pairs
from r1track.toy import world

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def settings(**changes: Any) -> config.Settings:
    short = {"steps": 4, "save_every": 2, "prompts_per_step": 2, "group": 4, "micro_batch": 4, "learning_rate": 1e-3}
    few = {"pairs": 24, "val_pairs": 12}
    return config.resolve(
        {"preset": "demo", "sample": few, "train": {**short, **changes}, "merge": {"check_pairs": 12}}
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    world.write_split(folder / "train", "train", sequences=8, length=16, seed=5)
    sample.run(settings(), folder / "train", folder / "pairs")
    return folder / "pairs"


def trained(folder: Path, pairs: Path, arm: str = "grpo", **changes: Any) -> Path:
    train.run(settings(**changes), arm, "tiny", pairs, folder / "scratch", folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="module")
def adapter(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"), pairs)


def test_the_adapter_has_moved_and_sits_on_the_named_language_layers_only(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    assert len(weights) == 2 * 4 * len(TARGETS)  # A and B, four layers
    for name, value in weights.items():
        assert "language_model" in name
        assert any(target in name for target in TARGETS)
        assert value.dtype == torch.float32
    assert all(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)  # B begins at zero


def test_every_step_is_logged_with_its_parts(adapter: Path) -> None:
    rows = [json.loads(line) for line in (adapter / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert {"reward", "iou", "parsed", "kl", "flat_groups", "entropy", "length", "loss", "learning_rate"} <= set(
            row
        )
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in row.values())
        assert 0 <= row["parsed"] <= 1
    assert files.read_json(adapter / "provenance.json")["quantize"] == "nf4"


def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_adapter(
    adapter: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def kill(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train.Watch, "on_step_end", kill, raising=False)
        with pytest.raises(Killed):
            trained(tmp_path, pairs)
    assert not (tmp_path / "adapter").exists()
    assert (tmp_path / "scratch" / "checkpoint-2").is_dir()
    trained(tmp_path, pairs)
    once, twice = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "adapter"))
    assert all(torch.equal(once[name], twice[name]) for name in once)
    steps = [json.loads(line)["step"] for line in (tmp_path / "adapter" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_checkpoints_of_other_settings_are_not_taken_up(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    assert train.prepare_scratch(scratch, {"rate": 1}) is None
    (scratch / "checkpoint-2").mkdir()
    (scratch / "checkpoint-2" / "trainer_state.json").write_text("{}")
    assert train.prepare_scratch(scratch, {"rate": 1}) == scratch / "checkpoint-2"
    assert train.prepare_scratch(scratch, {"rate": 2}) is None
    assert not (scratch / "checkpoint-2").exists()


def test_the_loss_stops_the_run_when_it_is_not_finite() -> None:
    watch = train.Watch()
    state = type("State", (), {"global_step": 7, "max_steps": 9, "log_history": [{}]})()
    watch.on_train_begin(None, state, None)
    watch.on_step_begin(None, state, None)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 7; lower train\.learning_rate"):
        watch.on_log(None, state, None, logs={"reward": 0.1, "loss": math.nan})
    watch.on_train_end(None, state, None)


def test_the_supervised_arm_learns_the_true_answers_and_nothing_else(pairs: Path, tmp_path: Path) -> None:
    sft = {"steps": 12, "batch": 8, "micro_batch": 8, "learning_rate": 3e-3, "schedule": "linear"}
    folder = trained(tmp_path, pairs, arm="sft", sft=sft)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all("language_model" in name for name in load_file(folder / "adapter_model.safetensors"))


def test_the_supervised_arm_is_told_the_rounded_box_after_the_trackers_question(pairs: Path) -> None:
    rows = train.with_answers(open_pairs(pairs / "train"))
    truth = open_pairs(pairs / "train")[0]
    assert rows[0]["completion"] == [{"role": "assistant", "content": prompts.numbers(truth["answer"])}]
    texts = [part["text"] for part in rows[0]["prompt"][0]["content"] if part["type"] == "text"]
    asked = prompts.build(truth["template_box"])[0]["content"]
    assert texts == [part["text"] for part in asked if part["type"] == "text"]


def test_the_language_layers_are_held_in_four_bits_and_the_vision_tower_is_not() -> None:
    model = models.load_weights(models.TINY, torch.float32, "nf4")
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if name.endswith("_proj")}
    assert {kind for name, kind in kinds.items() if "language_model" in name} == {"Linear4bit"}
    assert {kind for name, kind in kinds.items() if "visual" in name} == {"Linear"}


def test_unquantised_weights_train_too(pairs: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path, pairs, quantize="none", steps=1, save_every=1)
    weights = load_file(folder / "adapter_model.safetensors")
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert files.read_json(folder / "provenance.json")["quantize"] == "none"


@pytest.fixture(scope="module")
def merged(adapter: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "grpo"
    merge.run(settings(), "tiny", adapter, pairs, out)
    return out


def test_merged_weights_differ_from_the_base_in_the_adapters_targets_only(merged: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (models.TINY, merged))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    for name in changed:
        assert "visual" not in name
        assert any(f"{target}.weight" in name for target in TARGETS)
    assert {value.dtype for value in after.values()} == {torch.float16}


def test_adapter_on_and_merged_give_the_same_greedy_answers(merged: Path, adapter: Path, pairs: Path) -> None:
    found = files.read_json(merged / "merge.json")
    assert found["agreement"] == 1
    assert 0 < found["agreement_as_trained"] <= 1
    questions, images = merge.held_out(settings(), pairs)
    loaded = models.load("tiny", settings().model, adapter=adapter), models.load(str(merged), settings().model)
    on, off = (models.answer(each, questions, images, max_tokens=16, batch=12) for each in loaded)
    assert on == off


def test_without_pairs_the_weights_are_the_same_and_the_agreement_is_said_to_be_unmeasured(
    merged: Path, adapter: Path, tmp_path: Path
) -> None:
    merge.run(settings(), "tiny", adapter, None, tmp_path / "out")
    assert files.hash_file(tmp_path / "out" / "model.safetensors") == files.hash_file(merged / "model.safetensors")
    assert files.read_json(tmp_path / "out" / "merge.json")["agreement"] is None


def test_the_merged_folder_holds_the_processor_files_of_the_base(merged: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        assert files.hash_file(merged / name) == files.hash_file(models.TINY / name)


def test_an_adapter_that_changes_nothing_is_refused(adapter: Path, pairs: Path, tmp_path: Path) -> None:
    empty = shutil.copytree(adapter, tmp_path / "empty")
    weights = load_file(empty / "adapter_model.safetensors")
    from safetensors.torch import save_file

    save_file({k: torch.zeros_like(v) if "lora_B" in k else v for k, v in weights.items()},
              empty / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="the adapter changes no weight; train for longer"):
        merge.run(settings(), "tiny", empty, pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
