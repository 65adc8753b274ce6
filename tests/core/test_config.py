"""The configuration: what is refused and how, what wins over what, and that its documents say what the model says."""

import pickle
import re
import time
import tomllib
from pathlib import Path
from typing import Any

import document
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import ValidationError

from r1track.core import config, schema
from r1track.core.files import write_json

ROOT = config.ROOT
COMMENT = re.compile(r"^( *)# ")
ENTRY = re.compile(r"^(?P<indent> *)(?P<name>[\w-]+):( (?P<value>[^ #].*?))?(  # (?P<doc>.+))?$")


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(config.ConfigError) as caught:
        config.resolve(values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"train": {"gruop": 8}}, ["train.gruop", "did you mean 'group'"]),
        ({"trian": {}}, ["trian", "did you mean 'train'"]),
        ({"train": {"lora": {"rnak": 8}}}, ["train.lora.rnak", "did you mean 'rank'"]),
        ({"vqa": {"sets": {"mine": {"itmes": 9}}}}, ["vqa.sets.mine.itmes", "did you mean 'items'"]),
        ({"score": {"zzz": 1}}, ["score.zzz", "known here: draws"]),
        ({"train": {"steps": "many"}}, ["train.steps = 'many'", "write a number"]),
        ({"train": {"steps": 1.5}}, ["train.steps = 1.5"]),
        ({"task": {"think": "maybe"}}, ["task.think = 'maybe'"]),
        ({"train": {"steps": 0}}, ["train.steps = 0", "greater than or equal to 1"]),
        ({"train": {"reward": "giou"}}, ["train.reward = 'giou'", "'paper' or 'iou'"]),
        ({"train": {"group": 7}}, ["train", "micro_batch 128 does not divide", "take one of"]),
        ({"task": {"size": 100}}, ["task.size = 100: not a multiple of 28", "take 112"]),
        ({"task": {"size": 336}}, ["task.size = 336", "model.min_pixels..max_pixels", "take a size from"]),
        ({"model": {"min_pixels": 40000}}, ["model.min_pixels = 40000: above model.max_pixels", "swap"]),
        (
            {"vqa": {"sets": {"mine": {"prompt": "<|vision_start|>{question}"}}}},
            ["vqa.sets.mine.prompt", "holds <|vision_start|>, a mark of the model's own; take it out"],
        ),
        ({"sample": {"hub_prompt": "{question}<|im_end|>"}}, ["sample.hub_prompt", "<|im_end|>", "take it out"]),
        (
            {"task": {"prompt": "{template}<|image_pad|>{search} {box}"}},
            ["task.prompt", "holds <|image_pad|>, a mark of the model's own; take it out"],
        ),
        ({"vqa": {"sets": {"mine": {"prompt": "What?"}}}}, ["vqa.sets.mine", "'What?'", "{question}"]),
        ({"train": {"start": "sft"}}, ["train", "start `sft` needs arms [sft, grpo]"]),
        ({"train": {"arms": ["grpo", "grpo"]}}, ["train", "names one twice"]),
        ({"train": {"arms": ["sft"]}, "task": {"think": True}}, ["train.arms", "no reasoning", "leave sft out"]),
        ({"train": {"rollout_steps": 4}}, ["train", "save_every 25", "rollout_steps 4", "take save_every 28"]),
        (
            {"train": {"rollout_batch": 2, "group": 64}},
            ["train", "rollout_batch 2 is below group 64", "take rollout_batch 64"],
        ),
        ({"train": {"graphs": True, "shared_prefix": False}}, ["train", "shared_prefix False", "set graphs to false"]),
        ({"train": {"graphs": True, "lora": {"dropout": 0.1}}}, ["train", "lora.dropout 0.1", "set graphs to false"]),
        ({"track": {"graphs": True, "reuse": False}}, ["track", "graphs needs reuse", "set reuse to true"]),
        ({"train": {"rollout_batch": 7}}, ["train", "rollout_batch 7 is below group 8", "or shared_prefix false"]),
        (
            {"merge": {"base": "dequantised"}, "train": {"quantize": "none"}},
            ["merge.base", "nothing was quantised", "take `original`"],
        ),
        ({"track": {"max_tokens": 15}}, ["track.max_tokens = 15: below train.max_tokens = 16", "raise it"]),
        ({"preset": "r1track-5k-think", "train": {"max_tokens": 513}}, ["track.max_tokens = 512: below", "= 513"]),
        (
            {"preset": "best", "sample": {"hub": "a/b"}},
            ["sample: negatives 0.1 and hub 'a/b'", "set negatives to 0.0, or hub to null"],
        ),
        ({"preset": "nope"}, ["preset = 'nope'", "demo", "r1track-5k"]),
        ({"train": 3}, ["train = 3: is a group of fields; write `name: value` below it"]),
        ({"data": {"sets": "mine/val"}}, ["data.sets = 'mine/val': is a group of fields; write `name: value`"]),
        ({"data": {"sets": {}}}, ["data.sets: is empty; write at least one"]),
        ({"track": {"peers": "static"}}, ["track.peers = 'static': is a list; write [static]"]),
        ({"run": None}, ["run = None: nothing stands there; write a value, or leave the line out"]),
        ({"train": {"steps": None}}, ["train.steps = None: nothing stands there; write a value"]),
    ],
)
def test_a_wrong_value_is_refused_with_field_value_and_remedy(values: dict[str, Any], parts: list[str]) -> None:
    message = refusal(values)
    assert all(part in message for part in parts), message


def test_negatives_go_with_sequences_and_a_hub_without_them() -> None:
    assert config.resolve({"preset": "best"}).sample.negatives == 0.1
    assert config.resolve({"preset": "best", "sample": {"hub": "a/b", "negatives": 0.0}}).sample.hub == "a/b"
    for path in config.PRESETS.glob("*-hub.yaml"):
        assert config.resolve({"preset": path.stem}).sample.negatives == 0


def test_negatives_are_refused_by_a_stage_too_which_reads_its_own_file_and_a_change(tmp_path: Path) -> None:
    write_json(tmp_path / "sample.json", config.stage_values(config.resolve({"preset": "best"}), "sample"))
    with pytest.raises(
        config.ConfigError, match=r"^-o sample\.hub=a/b: cannot be used\n  sample: negatives 0\.1 and hub"
    ):
        config.load(tmp_path / "sample.json", ["sample.hub=a/b"])


FENCED = 39  # tokens of a fenced `[{"bbox_2d": [...], "label": "target"}]`, by Qwen's vocabulary


@pytest.mark.parametrize("preset", ["r1track-5k", "r1track-5k-think", "r1track-100k", "best", "best-7b"])
def test_tracking_and_the_merges_check_read_the_longest_form_and_all_that_training_rewards(preset: str) -> None:
    settings = config.resolve({"preset": preset})
    assert FENCED <= settings.track.max_tokens >= settings.train.max_tokens
    assert FENCED <= settings.answer_size[1] >= settings.train.max_tokens


def test_the_defaults_share_one_limit_of_an_answer_and_sft_alone_has_none() -> None:
    defaults = config.Settings()
    assert defaults.train.max_tokens == defaults.track.max_tokens == defaults.answer_size[1] == 64
    assert config.resolve({"train": {"arms": ["sft"], "max_tokens": 64}}).track.max_tokens == 16


def test_a_rate_that_yaml_reads_as_text_is_refused_and_the_remedy_is_read_as_a_number() -> None:
    values = yaml.safe_load("train: {learning_rate: 1e-6}")
    assert values["train"]["learning_rate"] == "1e-6"
    message = refusal(values)
    assert "train.learning_rate = '1e-6'" in message
    remedy = message.split("write ")[-1]
    assert remedy == "1.0e-6"
    assert yaml.safe_load(remedy) == 1e-6


def test_a_rollout_holds_a_group_at_least_and_without_shared_prefixes_its_batch_is_not_read() -> None:
    assert config.resolve({"train": {"rollout_batch": 8}}).train.group == 8
    assert not config.resolve({"train": {"rollout_batch": 7, "shared_prefix": False}}).train.shared_prefix


@pytest.mark.parametrize(
    "endpoint",
    [
        {"api_key": "sk-secret"},
        {"url": ["http://me:sk-secret@host"]},
        "http://host/?k=sk-secret",
        {"timeout": "sk-secret"},
    ],
)
def test_a_fault_in_the_endpoint_does_not_repeat_a_text_which_may_be_a_key(endpoint: Any) -> None:
    message = refusal({"track": {"endpoint": endpoint}})
    assert "track.endpoint" in message
    assert "sk-secret" not in message
    assert "track.endpoint.retries = -1" in refusal({"track": {"endpoint": {"retries": -1}}})


def test_a_batch_of_a_billion_answers_is_refused_at_once() -> None:
    begin = time.process_time()
    message = refusal({"train": {"group": 1_000_000_007, "prompts_per_step": 6, "micro_batch": 4}})
    assert "take one of [1, 2, 3, 6]" in message
    assert time.process_time() - begin < 1


def test_every_fault_is_named_at_once() -> None:
    message = refusal({"train": {"gruop": 8, "steps": "x"}, "seed": -1})
    assert len(message.splitlines()) == 4


def test_config_wins_over_preset_and_preset_over_default() -> None:
    defaults, preset = config.Settings(), yaml.safe_load((config.PRESETS / "demo.yaml").read_text())
    settings = config.resolve({"preset": "demo", "train": {"steps": 3}})
    assert settings.train.steps == 3 != preset["train"]["steps"]
    assert settings.task.size == preset["task"]["size"] != defaults.task.size
    assert settings.train.weight_decay == defaults.train.weight_decay
    assert "weight_decay" not in preset["train"]


def test_named_sets_replace_those_of_the_preset() -> None:
    settings = config.resolve({"data": {"sets": {"mine": "somewhere"}}})
    assert settings.data.sets == {"mine": "somewhere"}


def test_a_section_of_comments_alone_changes_nothing() -> None:
    assert config.resolve({"train": None, "report": None}) == config.resolve({})


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = config.resolve({})
    with pytest.raises(ValidationError, match="frozen"):
        settings.train.steps = 5  # type: ignore[misc]


def test_the_run_is_named_after_the_preset_unless_set() -> None:
    assert config.resolve({}).run == "demo"
    assert config.resolve({"run": "mine"}).run == "mine"


@pytest.mark.parametrize("stage", config.NEEDS)
def test_a_stage_reads_back_what_was_resolved_for_it(stage: str, tmp_path: Path) -> None:
    settings = config.resolve({"seed": 3})
    file = tmp_path / f"{stage}.json"
    write_json(file, config.stage_values(settings, stage))
    assert config.stage_values(config.load(file), stage) == config.stage_values(settings, stage)


@pytest.mark.parametrize("stage", config.NEEDS)
def test_a_stage_cannot_read_a_section_that_it_does_not_depend_on(stage: str, tmp_path: Path) -> None:
    file = tmp_path / f"{stage}.json"
    write_json(file, config.stage_values(config.resolve({}), stage))
    loaded = config.load(file)
    for settings in (loaded, loaded.model_copy(), pickle.loads(pickle.dumps(loaded))):
        for name in schema.Settings.model_fields:
            if name in config.NEEDS[stage]:
                assert getattr(settings, name) == getattr(config.resolve({}), name)
            else:
                assert not hasattr(settings, name)
                with pytest.raises(
                    config.SectionError, match=rf"{stage}\.json: has no section `{name}`, only .*; give"
                ):
                    getattr(settings, name)


def test_the_file_of_another_stage_is_refused_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "train.json", config.stage_values(config.resolve({}), "train"))
    settings = config.load(tmp_path / "train.json")
    with pytest.raises(config.ConfigError, match=r"train\.json: has no section `track`"):
        config.stage_values(settings, "track")
    with pytest.raises(config.ConfigError, match=r"train\.json: has no section `merge`"):
        settings.answer_size  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        settings.trian  # type: ignore[attr-defined]  # noqa: B018


def test_settings_from_config_yaml_have_every_section() -> None:
    settings = config.load(ROOT / "config.yaml")
    assert settings.model_dump().keys() == schema.Settings.model_fields.keys()


@pytest.mark.parametrize("preset", sorted(path.stem for path in config.PRESETS.glob("*.yaml")))
def test_every_preset_can_be_used(preset: str) -> None:
    assert config.resolve({"preset": preset}).run == preset


@pytest.mark.parametrize(("preset", "tokens"), [("r1track-5k", 64), ("r1track-5k-think", 512)])
def test_the_5k_presets_hold_the_figures_of_the_paper(preset: str, tokens: int) -> None:
    settings = config.resolve({"preset": preset})
    train, task = settings.train, settings.task
    assert (train.group, train.beta, train.reward, train.temperature) == (5, 1e-2, "paper", 1.0)
    assert (task.size, settings.sample.pairs, task.think) == (336, 5000, tokens == 512)
    assert (train.max_tokens, train.warmup, train.clip_norm, train.weight_decay) == (tokens, 0.1, 1.0, 1e-2)
    assert (settings.model.min_pixels, settings.model.max_pixels) == (50176, 313600)
    assert train.steps * train.prompts_per_step == pytest.approx(25 * settings.sample.pairs, rel=1e-3)


def uncommented(text: str) -> list[str]:
    """The lines of config.yaml that hold fields and sections, as they stand when every `# ` in front is deleted."""
    lines = [line for line in text.splitlines() if not line.startswith("# ") or "  # " in line]
    return [COMMENT.sub(r"\1", line) for line in lines if line]


def written_fields(text: str) -> dict[str, tuple[Any, str]]:
    """The fields of config.yaml by dotted path, with value and documentation, read from its lines alone."""
    fields: dict[str, tuple[Any, str]] = {}
    parents: dict[int, str] = {}
    for line in uncommented(text):
        entry = ENTRY.match(line)
        assert entry, line
        column = len(entry["indent"])
        parents = {c: name for c, name in parents.items() if c < column} | {column: entry["name"]}
        if entry["value"]:
            fields[".".join(parents.values())] = (yaml.safe_load(entry["value"]), entry["doc"])
    return fields


def test_comments_of_config_yaml_and_documentation_of_the_model_agree_in_both_directions() -> None:
    written = written_fields((ROOT / "config.yaml").read_text())
    del written["preset"]
    model = dict(config.fields())
    items = {f"vqa.sets.easy-vqa.{name}": info for name, info in schema.VqaSet.model_fields.items()}
    expected = {path: info for path, info in model.items() if path not in ("preset", "vqa.sets")} | items
    assert set(written) == set(expected)
    for path, info in expected.items():
        default = info.get_default(call_default_factory=True, validated_data={})
        assert written[path] == (default, info.description), path


def test_config_yaml_with_every_comment_taken_away_sets_exactly_the_defaults() -> None:
    text = (ROOT / "config.yaml").read_text()
    values = yaml.safe_load("\n".join(uncommented(text)))
    assert config.Settings.model_validate(values) == config.Settings()


def test_config_yaml_begins_with_the_demo_and_changes_nothing_of_it() -> None:
    text = (ROOT / "config.yaml").read_text()
    assert text.splitlines()[0] == "preset: demo"
    assert config.resolve(yaml.safe_load(text)) == config.resolve({})


def test_documents_made_from_the_model_are_up_to_date() -> None:
    remedy = "run `make docs`"
    assert (ROOT / "config.yaml").read_text() == document.config_yaml(), remedy
    assert (ROOT / "docs" / "configuration.md").read_text() == document.reference(), remedy


def test_the_conda_environment_pins_what_the_package_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["gpu"]
    pins = dict(line.split("==") for line in wanted if "==" in line and not line.startswith("easy-vqa"))
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(line.split("==") for line in environment[-1]["pip"] if "==" in line)
    assert conda == pins


@pytest.mark.parametrize(("lock", "extra"), [("requirements.lock", "cpu"), ("requirements-card.lock", "gpu")])
def test_a_lock_names_versions_only_and_satisfies_the_package(lock: str, extra: str) -> None:
    lines = (ROOT / lock).read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines)
    locked = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in map(Requirement, project["dependencies"] + extras[extra] + extras["dev"]):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_the_lock_without_a_card_leaves_what_is_cudas_to_torch() -> None:
    assert not re.findall(r"(?m)^(?:cuda|nvidia|triton).*", (ROOT / "requirements.lock").read_text())
    assert re.findall(r"(?m)^nvidia.*", (ROOT / "requirements-card.lock").read_text())


def test_a_preset_over_another_changes_only_what_it_names() -> None:
    plain, think = (config.resolve({"preset": name}) for name in ("r1track-5k", "r1track-5k-think"))
    assert think.task == plain.task.model_copy(update={"think": True})
    assert (think.sample, think.model, think.train.lora) == (plain.sample, plain.model, plain.train.lora)


def test_a_field_may_be_set_to_null_and_a_section_may_be_empty() -> None:
    values = yaml.safe_load("train:\nmodel: {revision: null}\nsample: {hub: null}\n")
    assert config.resolve(values) == config.resolve({})
