"""The plan of memory and hours: what a setting changes in it, and that the advice it gives holds."""

import re
from typing import Any

import document
import pytest
import yaml
from measured import counted, plan_of

from r1track.core import config
from r1track.preflight import memory


@pytest.mark.parametrize(("size", "bf16", "nf4"), [("3B", 7.5, 3.4), ("7B", 16.6, 6.9)])
def test_the_full_shapes_have_the_published_sizes(size: str, bf16: float, nf4: float) -> None:
    model = counted(f"Qwen/Qwen2.5-VL-{size}-Instruct", "bfloat16")
    assert model.weights["none"] / 1e9 == pytest.approx(bf16, abs=0.05)
    assert model.weights["nf4"] / 1e9 == pytest.approx(nf4, abs=0.05)
    vision = memory.full_size(size).vision_config
    assert (vision.depth, vision.intermediate_size, vision.num_heads, vision.window_size) == (32, 3420, 16, 112)
    assert list(vision.fullatt_block_indexes) == [7, 15, 23, 31]


@pytest.mark.parametrize("missing", ["somebody/their-model", "./nowhere", "Qwen/Qwen2.5-VL-72B-Instruct"])
def test_a_shape_that_is_not_known_is_refused_with_a_remedy(missing: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf"model\.base = '{missing}': its shape is not known here; give a folder"
    ):
        memory.shape_of(missing, None)


def changed(values: dict[str, Any], field: str, value: str) -> dict[str, Any]:
    """The nested values with one more, its text as in YAML."""
    section, _, rest = field.partition(".")
    inner = changed(values.get(section, {}), rest, value) if rest else yaml.safe_load(value)
    return {**values, section: inner}


@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        ("train sft", {"train.quantize", "train.sft.micro_batch", "train.lora.rank"}),
        ("train grpo", {"train.quantize", "train.prompts_per_step", "train.rollout_steps", "task.size"}),
        ("vqa", {"vqa.batch", "vqa.max_pixels"}),
    ],
)
def test_every_suggested_change_is_valid_and_makes_the_stage_fit(stage: str, fields: set[str]) -> None:
    values: dict[str, Any] = {
        "preset": "r1track-5k",
        "model": {"base": "Qwen/Qwen2.5-VL-7B-Instruct"},
        "train": {"arms": ["sft", "grpo"], "quantize": "none", "group": 8, "prompts_per_step": 4, "micro_batch": 8,
                  "rollout_steps": 2, "save_every": 24, "shared_prefix": False},
    }  # fmt: skip
    if stage == "vqa":
        values["vqa"] = {"batch": 64, "sets": {"mine": {}}}
    chosen, budget = config.resolve(values), 20e9 if stage == "train sft" else 24e9
    assert plan_of(chosen, stage).peak[0] > budget
    found = memory.remedies(chosen, stage, budget)
    assert {change.split(": ")[0] for change in found} == fields
    for change, peak in found.items():
        other = config.resolve(changed(values, *change.split(": ")))
        assert plan_of(other, stage).peak[0] == peak <= budget


def test_where_no_single_change_is_enough_none_is_suggested() -> None:
    chosen = config.resolve({"preset": "r1track-5k"})
    assert memory.remedies(chosen, "train grpo", 3e9) == {}


def test_every_term_is_either_counted_exactly_or_named_an_estimate() -> None:
    both = config.resolve({"preset": "demo", "train": {"arms": ["sft", "grpo"]}})
    names = {name for each in memory.plan(both) for terms in each.moments.values() for name in terms}
    exact = {"weights", "adapter", "gradients", "optimiser", "KV cache", "pixel values", "image features"}
    exact |= {"prefixes", "room for drafts"}
    assert names == memory.ESTIMATES | exact | {"text layers' inputs", "image layers' inputs"}


def test_training_hours_follow_from_the_operations_and_the_rollouts_tokens() -> None:
    chosen = config.resolve({"preset": "r1track-5k"})
    plan, train = plan_of(chosen, "train grpo"), chosen.train
    calls = -(-train.group * train.prompts_per_step // train.rollout_batch)
    evaluations = train.steps / train.eval_every * -(-train.eval_pairs // (train.rollout_batch // train.group))
    tokens = (train.steps * calls + evaluations) * train.max_tokens
    assert plan.hours * 3600 == pytest.approx(plan.flops / memory.RATE + tokens * memory.TOKEN_SECONDS)
    twice = config.resolve({"preset": "r1track-5k", "train": {"steps": 2 * train.steps}})
    assert plan_of(twice, "train grpo").hours == pytest.approx(2 * plan.hours)
    without = config.resolve({"preset": "r1track-5k", "train": {"eval_every": 0}})
    assert plan_of(without, "train grpo").flops < plan.flops < 1.02 * plan_of(without, "train grpo").flops
    learning = {"lora": {"vision": True}, "shared_prefix": False, "eval_every": 0}
    five, four = (
        plan_of(config.resolve({"preset": "r1track-5k", "train": {**learning, "beta": beta}}), "train grpo")
        for beta in (0.01, 0.0)
    )
    assert four.flops == pytest.approx(five.flops * 4 / 5)  # no reference: one pass of five less


def test_a_frozen_tower_is_planned_to_look_once_with_a_shared_prefix_and_never_to_learn() -> None:
    def flops(shared: bool, vision: bool, beta: float) -> float:
        train = {"shared_prefix": shared, "lora": {"vision": vision}, "beta": beta}
        return plan_of(config.resolve({"preset": "r1track-5k", "train": train}), "train grpo").flops

    chosen = config.resolve({"preset": "r1track-5k"})
    images = 2 * (chosen.task.size // 14) ** 2 * memory.Model(chosen).flops[1]
    images *= chosen.train.steps * chosen.train.prompts_per_step
    group = chosen.train.group
    # Rollout, reference, loss, recomputed, backward: frozen, the last two fall away; shared, all but the first.
    assert flops(False, True, 0.01) - flops(False, False, 0.01) == pytest.approx(2 * group * images)
    assert flops(True, True, 0.01) - flops(True, False, 0.01) == pytest.approx(4 * images)


def test_with_a_shared_prefix_prompts_are_planned_once_per_group_and_answers_each() -> None:
    stock, ours = (
        plan_of(config.resolve({"preset": "best", "train": {"shared_prefix": each}}), "train grpo")
        for each in (False, True)
    )
    chosen = config.resolve({"preset": "best"})
    train, each = chosen.train, memory.question(chosen, 1, chosen.train.max_tokens)
    tokens, shared_tokens = train.group * (each.prompt + each.answer), each.prompt + train.group * each.answer
    for moment, name in (("loss", "text layers' inputs"), ("backward", "text layers' inputs")):
        assert stock.moments[moment][name] / ours.moments[moment][name] == pytest.approx(tokens / shared_tokens)
    for name in ("logits", "weights", "adapter"):
        assert stock.moments["loss"][name] == ours.moments["loss"][name]
    grown = "rollout: answers"
    assert ours.moments[grown]["KV cache"] == stock.moments[grown]["KV cache"]  # the cache itself is repeated
    assert stock.flops / ours.flops > 4
    assert ours.peak[0] < stock.peak[0]


@pytest.mark.parametrize("backend", ["auto", "transformers", "unsloth"])
@pytest.mark.parametrize("preset", sorted(path.stem for path in config.PRESETS.glob("*.yaml")))
def test_every_preset_fits_a_card_of_24_gb_as_it_stands(preset: str, backend: str) -> None:
    for plan in memory.plan(config.resolve({"preset": preset, "train": {"backend": backend}})):
        assert plan.peak[0] < 24e9, plan.stage


def test_the_table_in_the_documents_is_the_codes() -> None:
    page = (config.ROOT / "docs" / "memory.md").read_text()
    assert document.memory_table() in page, "run `make docs`"
    for name in ("README.md", "docs/training.md"):
        assert document.preset_table() in (config.ROOT / name).read_text(), "run `make docs`"
    tabled = set(re.findall(r"^\| `([\w-]+)`", document.preset_table(), re.MULTILINE))
    assert tabled == {path.stem for path in config.PRESETS.glob("*.yaml")} - {"demo", "released"}
