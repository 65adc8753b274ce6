"""Models: the embedded base is a real Qwen2.5-VL, and asking many at once changes no answer."""

import shutil
from pathlib import Path

import easy_vqa
import lessons
import numpy as np
import pytest
import teach
import tiny_model
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from r1track.core import config, files, models, prompts

SETTINGS = config.resolve({"preset": "demo"})


@pytest.fixture(scope="module")
def tiny() -> models.Loaded:
    return models.load("tiny", SETTINGS.model)


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
    with pytest.raises(FileNotFoundError, match=r"model 'nothing': no folder with a config\.json; give one, a hub id"):
        models.resolve_model_dir("nothing")
    with pytest.raises(FileNotFoundError, match=r"no folder with a config\.json"):
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
