"""The preset `released`: the authors' checkpoints are asked in their own words, and adapters among them are loaded.

The words are those of the public repository Wangbiao2/R1-Track at f585b82; no checkpoint was to be had here.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1track.core import config, models, prompts, schema
from r1track.core.errors import MissingFile, UserError
from r1track.core.files import read_json
from r1track.core.train_schema import Lora
from r1track.tracking import predictors, track
from r1track.tracking.track_files import read_track

PRESET = config.resolve({"preset": "released"})
PLEASE = (
    "Please identify the target specified by the bounding box [241,66,329,154] in the first image and locate it in the "
    "second image. \n Return the coordinates in [x_min,y_min,x_max,y_max] format."
)
LATER = (
    "<image> <image>Given two images, you need to:\n1. Analyze and Identify the target object marked by bounding box "
    "[241,66,329,154] in <image_1>;\n2. Re-locate this target in <image_2>;\n3. Return [x_min, y_min, x_max, y_max] "
    "coordinates of the target in <image_2>."
)
THINK = (
    "You FIRST think about the reasoning process as an internal monologue and then provide the final answer. \n The "
    "reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in <answer> "
    "</answer> tags. "
)
WORDS = {
    "R1-Track-GRPO-wo-Think-100k": LATER,
    "R1-Track-GRPO-wo-Think-5k": "<image><image>" + PLEASE,
    "R1-Track-GRPO-5k": "<image><image>" + THINK + PLEASE,
    "R1-Track-SFT-5k-lora": "<image><image>" + PLEASE,
    "R1-Track-SFT-100k-lora": LATER,
}
OLD = {"model.language_model.layers.": "model.layers.", "model.visual.": "visual."}  # of tensors, new to old


@pytest.mark.parametrize("name", WORDS)
def test_each_checkpoint_is_asked_byte_for_byte_in_the_words_that_it_was_trained_on(name: str) -> None:
    asked = predictors.settings_for(PRESET, f"extra:{name}")
    question = prompts.question(asked.task, [241.99, 66.5, 329.2, 154.0])
    assert prompts.flat(question) == WORDS[name]
    extra = PRESET.track.extra[name]
    lora = name.endswith("lora")
    assert (extra.adapter if lora else extra.model) == f"WangBiao/{name}"
    assert asked.model.base == ("Qwen/Qwen2.5-VL-3B-Instruct" if lora else f"WangBiao/{name}")
    thinks = name == "R1-Track-GRPO-5k"
    assert (asked.task.think, asked.track.max_tokens) == ((True, 512) if thinks else (False, 64))


def test_the_preset_trains_nothing_and_tracks_every_checkpoint_with_the_references_rules() -> None:
    assert (PRESET.train.arms, [*PRESET.track.extra]) == ([], [*WORDS])
    assert (PRESET.track.widen, PRESET.track.min_side, PRESET.task.size) == (1.0, 1.0, 336)


def settings(**extra: Any) -> config.Settings:
    return config.resolve({"track": {"extra": {"mine": {"model": "tiny", "max_tokens": 16, **extra}}}})


def test_literal_marks_in_a_prompt_stay_text_behind_the_images() -> None:
    asked = predictors.settings_for(settings(prompt="{template}{search}<image> <image>Where is {box}?"), "extra:mine")
    (message,) = prompts.question(asked.task, [1, 2, 3, 4])
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["image", "image", "text"]
    assert message["content"][2]["text"] == "<image> <image>Where is [1, 2, 3, 4]?"


def test_text_between_thoughts_and_answer_is_allowed(toy: Path, tmp_path: Path, answer_with: Any) -> None:
    answer_with(lambda text, images: "<think>left</think> So it is here: <answer>[32, 32, 52, 52]</answer>")
    words = PRESET.track.extra["R1-Track-GRPO-5k"].prompt
    chosen = settings(model="someone/model", prompt=words, think=True)
    track.run(chosen, "extra:mine", toy, tmp_path / "out")
    (first, *_) = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert set(read_track(tmp_path / "out", first).statuses[1:]) <= {"ok", "clipped"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on all linear layers of the tiny model, the vision tower's too, that changes its answers."""
    from peft import get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = models.load_weights(models.TINY, torch.float32)
    adapted = get_peft_model(model, models.make_adapter(Lora(rank=4, vision=True)))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder)
    return folder


def tracks(folder: Path) -> dict[str, list[str]]:
    return {path.name: read_track(folder, path.name).answers for path in sorted(folder.iterdir()) if path.is_dir()}


def test_an_adapter_is_loaded_over_its_base_under_the_names_of_either_time(
    adapter: Path, toy: Path, tmp_path: Path
) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {}
    for name, value in weights.items():
        for new, old in OLD.items():
            name = name.replace(f"base_model.model.{new}", f"base_model.model.{old}")
        renamed[name] = value
    assert not renamed.keys() & weights.keys()
    (tmp_path / "old").mkdir()
    save_file(renamed, tmp_path / "old" / "adapter_model.safetensors")
    (tmp_path / "old" / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    for name, place in (("new", adapter), ("older", tmp_path / "old"), ("none", None)):
        track.run(settings(adapter=str(place) if place else None), "extra:mine", toy, tmp_path / name)
    assert tracks(tmp_path / "new") == tracks(tmp_path / "older") != tracks(tmp_path / "none")
    inputs = read_json(tmp_path / "new" / "provenance.json")["inputs"]
    assert inputs["adapter"]["path"] == str(adapter)
    assert inputs["adapter"]["sha256"]


def test_an_adapter_that_is_none_or_goes_to_a_server_is_refused(adapter: Path, tmp_path: Path) -> None:
    chosen = settings(adapter=str(tmp_path))
    with pytest.raises(MissingFile, match=r"no adapter_config\.json in it"):
        predictors.load_predictor(predictors.settings_for(chosen, "extra:mine"), "extra:mine")
    served = chosen.track.model_copy(update={"endpoint": schema.Endpoint(url="http://127.0.0.1:9/v1")})
    with pytest.raises(UserError, match=r"the server does not get the adapter of extra:mine"):
        predictors.load_predictor(chosen.model_copy(update={"track": served}), "extra:mine")
