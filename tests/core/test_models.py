"""Models: the embedded base is a real Qwen2.5-VL, a batch is answered as its rows alone, a wrong base is refused."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import easy_vqa
import lessons
import numpy as np
import pytest
import teach
import tiny_model
import torch
from copied_weights import NO_JSON, edited, renamed, spoiled, without
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from r1track.core import config, files, models, prompts
from r1track.core.errors import UserError

SETTINGS = config.resolve({"preset": "demo"})


@pytest.fixture(scope="module")
def tiny() -> models.Loaded:
    return models.load("tiny", SETTINGS.model)


LAYER = "model.language_model.layers.1."


@pytest.fixture(scope="module")
def drawn() -> lessons.Lessons:
    return lessons.Lessons(99)


def test_the_embedded_base_is_small_and_opens_in_plain_transformers() -> None:
    assert (models.TINY / "model.safetensors").stat().st_size <= 8e6
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(models.TINY)
    assert model.dtype == torch.float16
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 4e6
    assert AutoTokenizer.from_pretrained(models.TINY).eos_token == "<|im_end|>"


def test_the_embedded_tokenizer_is_the_one_that_the_code_makes() -> None:
    new, stored = tiny_model.make_tokenizer(), AutoTokenizer.from_pretrained(models.TINY)
    assert new.get_vocab() == stored.get_vocab()
    assert new.chat_template == stored.chat_template


def test_every_whole_number_of_a_crop_is_one_token_and_texts_survive_the_round_trip(tiny: models.Loaded) -> None:
    tokenizer = tiny.processor.tokenizer
    assert all(len(tokenizer(str(n))["input_ids"]) == 1 for n in range(449))
    questions = easy_vqa.get_test_questions()[0][:200]
    answer = prompts.ground_answer([1, 2, 30, 40], "red star")
    for text in (*questions, answer, "[1, 2, 3, 4]", *easy_vqa.get_answers()):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("kind", ["vqa", "ground", "pair"])
def test_lessons_are_patched_as_the_processor_patches_them(
    kind: str, tiny: models.Loaded, drawn: lessons.Lessons
) -> None:
    item = getattr(drawn, kind)()
    images = [Image.fromarray(image) for image in item.images]
    inputs = models.inputs(tiny, [item.question], [images])
    ours = teach.patches(np.stack(item.images), tiny.processor.image_processor)
    assert torch.equal(inputs["pixel_values"], ours)


def test_answers_do_not_depend_on_the_batch(tiny: models.Loaded, drawn: lessons.Lessons) -> None:
    items = [getattr(drawn, kind)() for kind in ("pair", "vqa", "ground", "pair", "vqa", "pair")]
    questions = [item.question for item in items]
    images = [[Image.fromarray(image) for image in item.images] for item in items]
    together = models.generate(tiny, questions, images, max_tokens=16, batch=6)
    alone = models.generate(tiny, questions, images, max_tokens=16, batch=1)
    assert together == alone


def test_no_vision_token_can_be_answered(tiny: models.Loaded) -> None:
    tokenizer = tiny.processor.tokenizer
    assert {tokenizer.decode([i]) for i in models.suppressed(tiny.processor)} == set(models.VISION_TOKENS)


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model 'nothing': no such folder; give a model's folder, a hub id"):
        models.resolve_model_dir("nothing")
    with pytest.raises(FileNotFoundError, match=r"no config\.json in it"):
        models.resolve_model_dir(str(tmp_path))


def test_a_chat_template_is_found_in_either_of_its_places_or_missed(tmp_path: Path) -> None:
    folder = shutil.copytree(models.TINY, tmp_path / "base")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="there is no chat template; take an Instruct model"):
        models.load_processor(folder, SETTINGS.model)
    files.write_json(folder / "chat_template.json", {"chat_template": template})
    assert models.load_processor(folder, SETTINGS.model).chat_template == template


def test_teaching_lowers_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teach.make(tmp_path / "base", seed=1, look=12, steps=12, settle=2, batch=16)
    loaded = models.load(str(tmp_path / "base"), SETTINGS.model)
    log = files.read_json(tmp_path / "base" / "made.json")
    assert loaded.processor.tokenizer.get_vocab() == tiny_model.make_tokenizer().get_vocab()
    assert log["steps"] == 12
    assert log["log"][-1]["pair_loss"] < log["log"][0]["pair_loss"]
    assert log["looked"][-1]["loss"] < log["looked"][0]["loss"]


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        (without(".layers.1."), {}, rf"12 missing \({LAYER}input_layernorm.weight, "),
        (renamed("^", "model."), {}, r"51 missing .*, 50 not in the model \(model.language_model.model.embed_tokens"),
        (renamed("^", "base_model.model."), {}, r"93 missing .*, 92 not in the model \(base_model.model.model."),
        (renamed("q_proj", "query"), {}, r"8 missing .*q_proj.bias, .*, 8 not in the model .*query.bias, "),
        (lambda tensors: {**tensors, "score.weight": torch.zeros(2)}, {}, r"1 not in the model \(score.weight, "),
        (None, {"model_type": "qwen2_vl"}, r"config.json: model_type = 'qwen2_vl'; take a Qwen2.5-VL model"),
        (None, {"model_type": None}, r"config.json: model_type = None; take a Qwen2.5-VL model"),
        (None, {"quantization_config": {"quant_method": "awq"}}, r"quantised already; take the 16-bit model"),
        (None, {"text_config": {"hidden_size": "wide"}}, r"cannot be read .*hidden_size.*copy the model"),
    ],
)  # fmt: skip
def test_a_base_whose_weights_would_not_all_be_loaded_is_refused_by_folder_and_names(
    weights: Any, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = edited(models.TINY, tmp_path / "base", weights, changes)
    with pytest.raises(UserError, match=f"^{base}.*{message}"):
        models.load(str(base), SETTINGS.model)


def test_a_base_that_says_that_it_is_not_quantised_is_read(tmp_path: Path) -> None:
    models.check_weights(edited(models.TINY, tmp_path / "base", None, {"quantization_config": None}))


def test_a_base_of_another_width_depth_or_head_than_it_says_is_refused(tmp_path: Path) -> None:
    text = files.read_json(models.TINY / "config.json")["text_config"]
    wide = edited(models.TINY, tmp_path / "wide", None, {"text_config": {**text, "intermediate_size": 400}})
    with pytest.raises(UserError, match=r"12 of another shape \(model.language_model.layers.0.mlp.down_proj.weight"):
        models.load(str(wide), SETTINGS.model)
    own_head = {"tie_word_embeddings": False, "text_config": {**text, "tie_word_embeddings": False}}
    headless = edited(models.TINY, tmp_path / "headless", None, own_head)
    with pytest.raises(UserError, match=r"1 missing \(lm_head.weight, "):
        models.load(str(headless), SETTINGS.model)
    three = {**text, "num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    shallow = edited(models.TINY, tmp_path / "shallow", None, {"text_config": three})
    with pytest.raises(UserError, match=r"12 not in the model \(model.language_model.layers.3.input_layernorm"):
        models.load(str(shallow), SETTINGS.model)


def test_names_of_the_old_and_of_the_new_layout_load_the_same_weights(tiny: models.Loaded, tmp_path: Path) -> None:
    assert "visual.patch_embed.proj.weight" in load_file(models.TINY / "model.safetensors")  # the old layout
    new = edited(models.TINY, tmp_path / "new", renamed(r"^(model|visual)\.", r"model.\1."))
    new = edited(new, tmp_path / "newer", renamed(r"^model\.model\.", "model.language_model."))
    again = models.load(str(new), SETTINGS.model).model.state_dict()
    for name, value in tiny.model.state_dict().items():
        assert torch.equal(again[name], value)


def test_a_missing_shard_and_a_file_that_is_cut_short_are_named(tmp_path: Path) -> None:
    sharded = shutil.copytree(models.TINY, tmp_path / "sharded")
    models.load_weights(models.TINY, torch.float16).save_pretrained(sharded, max_shard_size="1MB")
    (sharded / "model.safetensors").unlink()
    models.check_weights(sharded)
    second = sharded / "model-00002-of-00004.safetensors"
    whole = second.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100, 0):
        second.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"^{second}: cannot be read .*; copy or make it again"):
            models.load(str(sharded), SETTINGS.model)
    second.unlink()
    with pytest.raises(UserError, match=f"^{sharded}: cannot be read .*{second.name}"):
        models.load(str(sharded), SETTINGS.model)
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=f"^{sharded}: cannot be read .*weight_map"):
        models.load(str(sharded), SETTINGS.model)


@pytest.mark.parametrize("kind", NO_JSON)
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_base_whose_small_files_are_damaged_is_to_be_copied_again(name: str, kind: str, tmp_path: Path) -> None:
    """Not to be deleted and made by a stage, as a result is: no stage writes a base."""
    base = shutil.copytree(models.TINY, tmp_path / "base")
    (base / name).write_bytes(NO_JSON[kind])
    with pytest.raises(UserError, match=f"^{base}.*; (copy the model again|take a Qwen2.5-VL model|save the file as)"):
        models.check_weights(base) if name == "config.json" else models.load_processor(base, SETTINGS.model)


@pytest.mark.parametrize("content", ["null", '["default"]', "{}", "[", '{"default": 1', '{"other": 1}'])
def test_an_older_chat_template_of_another_form_is_refused_by_folder(content: str, tmp_path: Path) -> None:
    base = shutil.copytree(models.TINY, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    (base / "chat_template.json").write_text(content)
    with pytest.raises(UserError, match=f"^{base}.*; copy the model again"):
        models.load_processor(base, SETTINGS.model)


def test_a_base_that_was_saved_in_four_bits_is_refused(tmp_path: Path) -> None:
    base = shutil.copytree(models.TINY, tmp_path / "base")
    models.load_weights(models.TINY, torch.float16, "nf4").save_pretrained(base)
    with pytest.raises(UserError, match=f"^{base}: its weights are quantised already; take the 16-bit model"):
        models.load(str(base), SETTINGS.model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_weights_that_are_not_finite_are_named_over_four_bits_too(value: float, quantize: Any, tmp_path: Path) -> None:
    base = edited(models.TINY, tmp_path / "base", spoiled("model.layers.1.mlp.up_proj.weight", value))
    with pytest.raises(UserError, match=f"^{base}: {LAYER}mlp.up_proj.weight holds NaN or infinity"):
        models.load(str(base), SETTINGS.model, quantize=quantize)


def test_weights_that_the_configured_type_cannot_hold_are_named(tmp_path: Path) -> None:
    base = edited(models.TINY, tmp_path / "base", lambda tensors: {k: v.float() for k, v in tensors.items()})
    large = edited(base, tmp_path / "large", spoiled("visual.merger.mlp.0.bias", 1e6))
    models.load_weights(large, torch.float32)
    with pytest.raises(UserError, match=f"^{large}: model.visual.merger.mlp.0.bias holds NaN or infinity"):
        models.load_weights(large, torch.float16)


@pytest.mark.parametrize(
    ("needs", "library"),
    [
        ("r1track.core.provenance; r1track.core.provenance.hardware()", "torch"),
        ("r1track.core.models", "peft"),
        ("r1track.core.models", "datasets"),
    ],
)
def test_a_library_that_takes_a_second_to_import_is_not_imported_where_it_is_not_needed(
    needs: str, library: str
) -> None:
    if library == "torch" and torch.cuda.is_available():
        pytest.skip("a card is described by torch")
    code = f"import sys, {needs}; sys.exit({library!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
