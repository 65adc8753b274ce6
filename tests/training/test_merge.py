"""Merge: what changes, what is kept, and that a small update survives where PEFT's own merge loses it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from toys import toy_pairs

from r1track.core import config, files, models
from r1track.core.errors import UserError
from r1track.core.pairs import held_out
from r1track.core.records import MergeRecord
from r1track.training import merge, train

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def settings(onto: str = "original", **changes: Any) -> config.Settings:
    short = {"steps": 4, "save_every": 2, "prompts_per_step": 2, "group": 4, "micro_batch": 4, "learning_rate": 1e-3}
    few = {"pairs": 24, "val_pairs": 24}
    values = {"sample": few, "train": {**short, **changes}, "merge": {"check_pairs": 24, "base": onto}}
    made: config.Settings = config.resolve({"preset": "demo", **values})
    return made


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_pairs(tmp_path_factory.mktemp("data"), settings())


@pytest.fixture(scope="module")
def adapter(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train.run(settings(), "grpo", "tiny", pairs, folder / "scratch", folder / "adapter")
    return folder / "adapter"


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
    asked, images = held_out(pairs, 24, settings().task)
    loaded = models.load("tiny", settings().model, adapter=adapter), models.load(str(merged), settings().model)
    on, off = (models.generate(each, asked, images, max_tokens=16, batch=24) for each in loaded)
    assert on == off


def test_without_pairs_the_weights_are_the_same_and_the_agreement_is_said_to_be_unmeasured(
    merged: Path, adapter: Path, tmp_path: Path
) -> None:
    merge.run(settings(), "tiny", adapter, None, tmp_path / "out")
    assert files.hash_file(tmp_path / "out" / "model.safetensors") == files.hash_file(merged / "model.safetensors")
    assert files.read_json(tmp_path / "out" / "merge.json")["agreement"] is None


def test_the_record_of_a_merge_has_every_field_and_is_refused_with_another(merged: Path, tmp_path: Path) -> None:
    record = files.read_record(merged / "merge.json", MergeRecord)
    content = files.read_json(merged / "merge.json")
    assert record.model_dump() == content
    assert (content["pairs"], content["base"], content["onto"]) == (24, "tiny", "original")
    assert [*content] == [
        "pairs", "agreement", "agreement_original", "agreement_as_trained", "update_kept", "base", "onto",
    ]  # fmt: skip
    files.write_json(tmp_path / "merge.json", {**content, "onto": "elsewhere", "more": 1})
    with pytest.raises(UserError, match=r"merge\.json: onto: Input should be .*; more: Extra inputs"):
        files.read_record(tmp_path / "merge.json", MergeRecord)


def test_the_merged_folder_holds_the_processor_files_of_the_base(merged: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        assert files.hash_file(merged / name) == files.hash_file(models.TINY / name)


def test_an_adapter_that_changes_nothing_is_refused(adapter: Path, pairs: Path, tmp_path: Path) -> None:
    empty = shutil.copytree(adapter, tmp_path / "empty")
    weights = load_file(empty / "adapter_model.safetensors")
    save_file({k: torch.zeros_like(v) if "lora_B" in k else v for k, v in weights.items()},
              empty / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="the adapter changes no weight; train longer"):
        merge.run(settings(), "tiny", empty, pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def linears(model: Any) -> dict[str, torch.Tensor]:
    """Weights of the language model's linear layers, by name, in float32."""
    found = {}
    for name, module in model.named_modules():
        if ".language_model." in name and isinstance(module, torch.nn.Linear):
            weight = module.weight
            if hasattr(weight, "quant_state"):
                weight = merge.dequantize_4bit(weight.data, weight.quant_state)
            found[name] = weight.detach().float()
    return found


def test_dequantised_weights_are_those_that_training_computes_with() -> None:
    in_training = linears(models.load_weights(models.TINY, torch.float16, "nf4"))
    for name, weight in linears(models.load_weights(models.TINY, torch.float16)).items():
        assert torch.equal(merge.dequantised(weight.half()).float(), in_training[name])
        assert not torch.equal(weight, in_training[name])


def test_each_merge_is_its_base_plus_the_update_rounded_once(adapter: Path, pairs: Path, tmp_path: Path) -> None:
    config_of = files.read_json(adapter / "adapter_config.json")
    scale, stored = config_of["lora_alpha"] / config_of["r"], load_file(adapter / "adapter_model.safetensors")
    before = linears(models.load_weights(models.TINY, torch.float16))
    for onto in ("original", "dequantised"):
        merge.run(settings(onto), "tiny", adapter, pairs, tmp_path / onto)
        after = linears(models.load_weights(tmp_path / onto, torch.float16))
        for name, weight in before.items():
            a, b = (stored[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
            start = weight if onto == "original" else merge.dequantised(weight.half())
            exact = start.double() + scale * (b @ a)
            error = (after[name].double() - exact).abs()
            # half a unit in the last place of float16, and float32's own error in the sum
            assert (error <= 2.0**-11 * exact.abs().clamp(min=2.0**-14) * 1.01 + 1e-7).all()


def test_a_dequantised_merge_answers_as_the_adapter_did_in_training(adapter: Path, pairs: Path, tmp_path: Path) -> None:
    merge.run(settings("dequantised"), "tiny", adapter, pairs, tmp_path / "out")
    found = files.read_json(tmp_path / "out" / "merge.json")
    assert found["onto"] == "dequantised"
    assert found["agreement"] == found["agreement_as_trained"]
    assert found["agreement"] > found["agreement_original"]


def test_a_tiny_step_survives_the_merge_and_is_lost_in_a_merge_into_four_bits(pairs: Path, tmp_path: Path) -> None:
    made = settings(learning_rate=1.0e-4, steps=4)
    train.run(made, "grpo", "tiny", pairs, tmp_path / "scratch", tmp_path / "adapter")
    merge.run(made, "tiny", tmp_path / "adapter", pairs, tmp_path / "ours")
    base = models.load_weights(models.TINY, torch.float32, "nf4")
    held = linears(base)
    adapted: Any = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    wanted = {
        name.split("base_model.model.")[1]: module.get_delta_weight("default").float()
        for name, module in adapted.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    four = linears(adapted.merge_and_unload())
    original = linears(models.load_weights(models.TINY, torch.float32))
    ours = linears(models.load_weights(tmp_path / "ours", torch.float32))

    def kept(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> float:
        """How much of the update arrived: its projection onto what changed, 1 when all of it did."""
        dot = sum(((after[n] - before[n]) * update).sum().item() for n, update in wanted.items())
        return dot / sum((update**2).sum().item() for update in wanted.values())

    assert abs(files.read_json(tmp_path / "ours" / "merge.json")["update_kept"] - kept(ours, original)) < 1e-3
    assert kept(ours, original) > 0.98
    assert abs(kept(four, held)) < 0.05


def test_an_update_below_what_16_bits_can_hold_is_said_to_be_lost(
    pairs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = settings(learning_rate=1.0e-5, steps=2)
    train.run(made, "grpo", "tiny", pairs, tmp_path / "scratch", tmp_path / "adapter")
    merge.run(made, "tiny", tmp_path / "adapter", None, tmp_path / "out")
    assert files.read_json(tmp_path / "out" / "merge.json")["update_kept"] < 0.5
    assert "of the update is lost in rounding to torch.float16: train for longer" in caplog.text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_merged_folder_loads_in_plain_transformers(dtype: str, adapter: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    base = shutil.copytree(models.TINY, tmp_path / "base")
    models.load_weights(models.TINY, getattr(torch, dtype)).save_pretrained(base)
    merge.run(settings(), str(base), adapter, None, tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("[1, 2]")


def test_a_merge_into_dequantised_weights_needs_an_adapter_that_was_trained_over_them(
    adapter: Path, pairs: Path, tmp_path: Path
) -> None:
    plain = shutil.copytree(adapter, tmp_path / "plain")
    notes = files.read_json(plain / "provenance.json")
    files.write_json(plain / "provenance.json", {**notes, "quantize": "none"})
    with pytest.raises(ValueError, match=r"over 16 bits, not over dequantised weights; take merge\.base original"):
        merge.run(settings("dequantised"), "tiny", plain, pairs, tmp_path / "out")


def test_pairs_that_are_not_there_are_refused_before_the_merge(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "_write_merged", lambda *words: pytest.fail("the merge began"))
    with pytest.raises(FileNotFoundError, match="nowhere/val: no Parquet shards; run `r1track sample` first"):
        merge.run(settings("original"), "tiny", adapter, tmp_path / "nowhere", tmp_path / "out")


def test_a_merge_that_changes_answers_is_refused(adapter: Path, pairs: Path, tmp_path: Path) -> None:
    strict = settings("original")
    strict = strict.model_copy(update={"merge": strict.merge.model_copy(update={"min_agreement": 1.0})})
    wrong = shutil.copytree(adapter, tmp_path / "wrong")
    rank = files.read_json(wrong / "adapter_config.json")

    def broken(folder: Path, adapter: Path, onto: str, out: Path) -> None:
        files.write_json(adapter / "adapter_config.json", {**rank, "lora_alpha": 40 * rank["lora_alpha"]})
        write(folder, adapter, onto, out)
        files.write_json(adapter / "adapter_config.json", rank)

    write = merge._write_merged
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "_write_merged", broken)
        with pytest.raises(
            ValueError, match=r"agree on 0\.\d+ of 24 held-out pairs, less than merge\.min_agreement = 1"
        ):
            merge.run(strict, "tiny", wrong, pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
