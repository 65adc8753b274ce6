"""Train: what is learned from, what is logged and kept, and what is refused."""

import dataclasses
import json
import math
import shutil
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from toys import toy_pairs

from r1track.core import config, files, models, prompts, schema
from r1track.core.errors import MissingFile, UserError
from r1track.core.pairs import FEATURES
from r1track.core.pairs import load as open_pairs
from r1track.reporting import strips
from r1track.training import rewards, train, trl_patches
from r1track.training.stopping import StopCallback

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def settings(**changes: Any) -> config.Settings:
    short = {
        "eval_every": 0,
        "steps": 4,
        "save_every": 2,
        "prompts_per_step": 2,
        "group": 4,
        "micro_batch": 4,
        "learning_rate": 1e-3,
    }
    few = {"pairs": 24, "val_pairs": 12}
    return config.resolve(
        {"preset": "demo", "sample": few, "train": {**short, **changes}, "merge": {"check_pairs": 12}}
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_pairs(tmp_path_factory.mktemp("data"), settings())


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
        assert {
            "reward",
            "iou",
            "parsed",
            "kl",
            "frac_reward_zero_std",
            "entropy",
            "length",
            "loss",
            "learning_rate",
        } <= set(row)
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in row.values())
        assert 0 <= row["parsed"] <= 1
    assert files.read_json(adapter / "provenance.json")["quantize"] == "nf4"


def test_a_training_that_was_finished_before_takes_no_step_more(pairs: Path, adapter: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(adapter.parent / "scratch", tmp_path / "scratch")
    train.run(settings(), "grpo", "tiny", pairs, tmp_path / "scratch", again)
    first, second = (folder / "adapter_model.safetensors" for folder in (adapter, again))
    assert files.hash_file(first) == files.hash_file(second)
    steps = [len((folder / "log.jsonl").read_text().splitlines()) for folder in (adapter, again)]
    assert steps == [settings().train.steps] * 2


def test_the_supervised_arm_learns_the_true_answers_and_nothing_else(pairs: Path, tmp_path: Path) -> None:
    sft = {"steps": 12, "batch": 8, "micro_batch": 8, "learning_rate": 3e-3, "schedule": "linear"}
    folder = trained(tmp_path, pairs, arm="sft", sft=sft)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all("language_model" in name for name in load_file(folder / "adapter_model.safetensors"))


def test_the_supervised_arm_is_told_the_rounded_box_after_the_trackers_question(pairs: Path) -> None:
    rows = train.with_answers(open_pairs(pairs / "train"), schema.Task())
    truth = open_pairs(pairs / "train")[0]
    assert rows[0]["completion"] == [{"role": "assistant", "content": prompts.numbers(truth["answer"])}]
    texts = [part["text"] for part in rows[0]["prompt"][0]["content"] if part["type"] == "text"]
    asked = prompts.build(truth["template_box"])[0]["content"]
    assert texts == [part["text"] for part in asked if part["type"] == "text"]


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (schema.Task(), "[]"),
        (schema.Task(box="truncated"), "[]"),
        (schema.Task(think=True), "<think>nowhere</think><answer>[]</answer>"),
    ],
)
def test_the_supervised_arm_is_told_an_empty_list_where_the_target_is_not(
    task: schema.Task, text: str, pairs: Path
) -> None:
    rows = open_pairs(pairs / "train").select([0, 1])
    table = rows.remove_columns("answer").add_column("answer", [[], rows["answer"][1]], feature=FEATURES["answer"])
    table = table.add_column("thought", ["nowhere", "there"])
    first, second = train.with_answers(table, task)
    assert first["completion"] == [{"role": "assistant", "content": text}]
    assert second["completion"][0]["content"] != text


def test_a_group_about_a_missing_target_is_rewarded_and_kept(pairs: Path, tmp_path: Path) -> None:
    reward = train.make_reward(settings(), tmp_path / "examples")
    texts, logged = ["[]", "[1, 2, 30, 40]", "no"], dict[str, float]()
    state = types.SimpleNamespace(global_step=0)
    image = Image.new("RGB", (84, 84))
    values = reward(
        [[{"content": text}] for text in texts], [[1]] * 3, [[]] * 3, logged.__setitem__,
        size=[84] * 3, images=[[image] * 2] * 3, problem=[None] * 3, trainer_state=state,
    )  # fmt: skip
    assert values == [1.0, 0.0, -1.0]
    assert (logged["iou"], logged["parsed"]) == pytest.approx((1 / 3, 2 / 3))
    ((example, pictures),) = strips.examples(tmp_path / "examples", 1, think=False)
    assert example.target == ()
    assert [row.total for row in example.answers] == values
    assert [name for name, _ in pictures[1].boxes] == ["answer"]


@pytest.mark.parametrize(
    ("problem", "widths"),
    [
        (None, [30, 60, 90]),
        ("<image>[1, 2, 3, 4] in <image_1>.<image> Where is it in the second image?<image>", [30, 90, 60]),
        ("<image>Look at image 1.<image><image>It is at [1, 2, 3, 4] in <image_2>.", [60, 90, 30]),
        (prompts.flat(prompts.build([1, 2, 3, 4], second_box=[1, 2, 3, 4])), [30, 60, 90]),
    ],
)
def test_boxes_lie_on_the_search_region_which_is_the_last_picture_wherever_the_question_has_it(
    problem: str | None, widths: list[int], tmp_path: Path
) -> None:
    images = [Image.new("RGB", (width, 90)) for width in (30, 60, 90)]
    reward = train.make_reward(settings(), tmp_path / "examples")
    columns = {"size": [84], "images": [images], "problem": [problem]}
    state = types.SimpleNamespace(global_step=0)
    reward([[{"content": "[1, 2, 20, 25]"}]], [[1]], [[1.0, 2.0, 20.0, 25.0]], {}.__setitem__,
           trainer_state=state, **columns)  # fmt: skip
    ((_, pictures),) = strips.examples(tmp_path / "examples", 1, think=False)
    assert [picture.width for picture in pictures] == widths
    assert [[name for name, _ in picture.boxes] for picture in pictures] == [[], [], ["answer", "truth"]]


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


def test_a_group_is_kept_now_and_then_with_its_images_answers_and_rewards(adapter: Path) -> None:
    kept = sorted((adapter / "examples").glob("*.json"))
    assert [files.read_json(path)["step"] for path in kept] == [0]
    example = files.read_json(kept[0])
    assert len(example["answers"]) == 4
    for answer in example["answers"]:
        again = rewards.score(answer["answer"], example["target"], scheme="iou", size=84)
        assert answer["total"] == again["total"]
    assert [Image.open(kept[0].parent / name).size for name in example["images"]] == [(84, 84), (84, 84)]


def test_trainer_arguments_that_the_library_does_not_know_or_changes_are_refused() -> None:
    @dataclasses.dataclass
    class Changed:
        beta: float = 0.0
        batch: int = 1

        def __post_init__(self) -> None:
            self.batch = 8

    assert trl_patches.arguments(Changed, {"beta": 0.1}).beta == 0.1
    with pytest.raises(ValueError, match=r"Changed has no \['betta'\]"):
        trl_patches.arguments(Changed, {"betta": 0.1})
    with pytest.raises(ValueError, match=r"Changed\.batch: 4 became 8"):
        trl_patches.arguments(Changed, {"batch": 4})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graphs": True}, r"train\.graphs: true, but torch finds no CUDA card here"),
        ({"optimizer": "adamw_8bit"}, r"train\.optimizer = 'adamw_8bit': needs a CUDA card"),
        ({"backend": "unsloth"}, r"train\.backend = 'unsloth': .*; install environment\.yml on a card"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_before_training(
    changes: dict[str, str], message: str, pairs: Path, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    (tmp_path / "scratch" / "checkpoint-2").mkdir(parents=True)  # of other settings: a run would delete it
    (tmp_path / "scratch" / "identity.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, pairs, **changes)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoint-2", "identity.json", "scratch"]


def test_fewer_pairs_than_a_rollout_asks_are_refused(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"24 pairs are fewer than the 32 prompts of a rollout; sample more, or lower"):
        trained(tmp_path, pairs, prompts_per_step=16, rollout_steps=2)


def test_sft_with_thinking_needs_pairs_that_hold_thoughts(pairs: Path) -> None:
    with pytest.raises(ValueError, match="pairs with a column `thought`"):
        train.with_answers(open_pairs(pairs / "train"), schema.Task(think=True))


def test_the_vision_towers_layers_get_adapters_when_asked(pairs: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path, pairs, steps=1, lora={"vision": True})
    weights = load_file(folder / "adapter_model.safetensors")
    model = models.load_weights(models.TINY, torch.float32)
    linears = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear and "visual" in name}
    adapted = {name.split("base_model.model.")[1].split(".lora_")[0] for name in weights if "visual" in name}
    assert adapted == linears


def test_missing_pairs_are_noticed_before_checkpoints_of_other_pairs_are_deleted(tmp_path: Path) -> None:
    """A mistyped --pairs has no manifest, so its run would look like one of other pairs."""
    (tmp_path / "scratch" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "scratch" / "identity.json").write_text("{}")
    with pytest.raises(MissingFile, match=r"mistyped/train: no Parquet shards; run `r1track sample` first"):
        trained(tmp_path, tmp_path / "mistyped")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoint-2", "identity.json", "scratch"]


def test_a_damaged_base_is_noticed_before_checkpoints_of_the_whole_one_are_deleted(pairs: Path, tmp_path: Path) -> None:
    base = shutil.copytree(models.TINY, tmp_path / "base")
    (base / "config.json").write_text("{")
    (tmp_path / "scratch" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "scratch" / "identity.json").write_text("{}")
    with pytest.raises(UserError, match=r"base/config\.json: not valid JSON .*; copy the model again"):
        train.run(settings(), "grpo", str(base), pairs, tmp_path / "scratch", tmp_path / "adapter")
    assert (tmp_path / "scratch" / "checkpoint-2").is_dir()


def test_a_trainer_that_ends_early_by_itself_is_a_fault_and_no_signal(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(StopCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_training_stop = True

    monkeypatch.setattr(train, "StopCallback", Ending)
    with pytest.raises(RuntimeError, match=r"the trainer ended after step 1 of \d+, though no signal told it to"):
        trained(tmp_path, pairs)
    assert not (tmp_path / "adapter").exists()
