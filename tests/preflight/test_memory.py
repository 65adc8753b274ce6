"""The memory plan: exact terms are the bytes of real tensors, estimates are near those of real layers."""

import random
from pathlib import Path
from typing import Any

import bitsandbytes
import huggingface_hub
import pytest
import torch
from measured import (
    ANSWER,
    IMAGES,
    ROWS,
    SIDE,
    WORDS,
    Living,
    counted,
    make,
    plan_of,
    question,
    settings,
    stored,
    with_adapter,
)
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from toys import tracked
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

from r1track.core import config, generation, models, prompts, schema
from r1track.core.drafts import Draft
from r1track.preflight import memory
from r1track.training import trl_patches

LAYERS, DEPTH = 6, 4
PATCHES = ROWS * IMAGES * (SIDE // 14) ** 2
PROMPT = IMAGES * ((SIDE // 28) ** 2 + 2) + WORDS


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("base"), LAYERS, DEPTH)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer at a time is at work, so two are enough to see it."""
    return make(tmp_path_factory.mktemp("shallow"), 2, 2, heads=4)


@pytest.mark.parametrize(
    ("dtype", "quantize"), [("bfloat16", "none"), ("float32", "none"), ("bfloat16", "nf4"), ("float32", "nf4")]
)
def test_weights_take_as_many_bytes_as_the_loaded_model(base: Path, dtype: str, quantize: Any) -> None:
    model = models.load_weights(base, getattr(torch, dtype), quantize)
    tensors = list(model.parameters())
    states = [each.quant_state for each in tensors if hasattr(each, "quant_state")]
    assert len(states) == (7 * LAYERS if quantize == "nf4" else 0)
    for state in states:
        tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert counted(base, dtype).weights[quantize] == stored(tensors)


@pytest.mark.parametrize(("vision", "kind"), [(False, "adamw_torch"), (True, "adamw_torch"), (False, "adamw_8bit")])
def test_adapter_gradients_and_optimiser_take_as_many_bytes_as_after_a_real_step(
    base: Path, vision: bool, kind: str
) -> None:
    model = with_adapter(models.load_weights(base, torch.float32), vision)
    model(**question(1, 4)).logits.mean().backward()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimiser: Any = {"adamw_torch": torch.optim.AdamW, "adamw_8bit": bitsandbytes.optim.AdamW8bit}[kind](trained)
    optimiser.step()
    plan = counted(base, lora={"rank": 16, "vision": vision}, optimizer=kind)
    assert plan.adapter == stored(trained) == stored(each.grad for each in trained)
    state = [part for name, part in tensors_of(optimiser) if name != "step"]  # PyTorch's count of steps is on the CPU
    assert plan.optimiser == stored(state)


def tensors_of(optimiser: torch.optim.Optimizer) -> list[tuple[str, torch.Tensor]]:
    parts = [pair for state in optimiser.state.values() for pair in state.items()]
    return [(name, part) for name, part in parts if isinstance(part, torch.Tensor)]


def test_the_cache_takes_as_many_bytes_as_a_real_one(base: Path) -> None:
    model = models.load_weights(base, torch.bfloat16)
    with torch.no_grad():
        cache = model(**question(), use_cache=True).past_key_values
    kept = stored(part for layer in cache.layers for part in (layer.keys, layer.values))
    assert counted(base, "bfloat16").cache * ROWS * PROMPT == kept


@pytest.mark.parametrize(("rows", "templates"), [(4, 1), (16, 2)])
def test_the_cache_of_tracking_with_drafts_has_no_more_room_than_is_planned(
    rows: int, templates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts of which no two rows accept the same places fill it with columns that are refused."""
    monkeypatch.setitem(generation.PASS, "cpu", generation.PASS["cuda"])
    asked, shown, searches = tracked(rows, later=templates == 2)
    values: Any = {"task": {"templates": templates}, "track": {"batch": rows, "max_tokens": 64}}
    chosen = config.resolve({"preset": "demo", **values})
    decoder = generation.Decoder(models.load("tiny", chosen.model), max_tokens=64)
    monkeypatch.setattr(decoder, "ends", set())
    monkeypatch.setattr(decoder, "ended", lambda tokens: False)
    prefixes = decoder.prefixes(asked, shown)
    wanted = decoder.answers(asked[0], prefixes, searches[0])
    decoder.stacked = None
    sizes, forward, rng = list[int](), decoder.forward, random.Random(0)

    def measured(cache: Any, **named: Any) -> torch.Tensor:
        logits = forward(cache, **named)
        sizes.append(stored(part for layer in cache.layers for part in (layer.keys, layer.values)))
        return logits

    def draft(tokens: list[int], examples: list[list[int]], most: int) -> Draft:
        place = rng.randrange(most)  # of the one right token
        drafted = [next(iter(decoder.drafter.digits))] * most
        drafted[place] = examples[0][len(tokens)]
        return Draft(drafted, [0] * most)

    monkeypatch.setattr(decoder, "forward", measured)
    monkeypatch.setattr(decoder.drafter, "draft", draft)
    assert decoder.answers(asked[0], prefixes, searches[0], [[tokens] for tokens in wanted]) == wanted
    longest = max(prefix.layers[0][0].shape[2] for prefix in prefixes)
    asks = next(iter(decoder.tails.values()))[0].shape[1]
    words = longest + asks - memory.question(chosen, rows, 64).prompt + memory.WORDS
    monkeypatch.setattr(memory, "WORDS", words)  # as many as the tiny model's vocabulary needs
    planned = plan_of(chosen, "track").moments["answers"]
    assert planned["prefixes"] >= stored(part for prefix in prefixes for layer in prefix.layers for part in layer)
    assert planned["KV cache"] < max(sizes) <= planned["KV cache"] + planned["room for drafts"]
    assert max(sizes) > 0.8 * (planned["KV cache"] + planned["room for drafts"])


def trainable(base: Path, dtype: torch.dtype, quantize: Any, vision: bool = False) -> Any:
    """The model as the trainer has it on a card: an adapter on it, every layer checkpointed."""
    model = with_adapter(models.load_weights(base, dtype, quantize), vision)
    trl_patches.disable_vision_grad(model)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    return model.train()


def terms(base: Path, moment: str, dtype: str = "float32", **train: Any) -> memory.Terms:
    """A moment of grpo's plan in which a micro-batch is the batch of `question`, as are the rollout's rows."""
    fields = {"group": ROWS, "prompts_per_step": 1, "micro_batch": ROWS, "max_tokens": ANSWER, **train}
    return plan_of(settings(base, dtype, **fields), "train grpo").moments[moment]


def autocast(on: bool = True) -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=on)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planned prompts as long as those of `question`, answers left out."""
    monkeypatch.setattr(memory, "WORDS", WORDS - ANSWER)


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("vision", [False, True])
def test_the_checkpointed_forward_pass_saves_the_inputs_of_every_layer_that_learns(base: Path, vision: bool) -> None:
    model, saved = trainable(base, torch.bfloat16, "none", vision), []
    inputs = question()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast():
        logits = model(**inputs, use_cache=False).logits
    assert logits.requires_grad
    planned = terms(base, "backward", "bfloat16", lora={"rank": 16, "vision": vision})
    for name, shape, layers in (("text", (ROWS, PROMPT, 256), LAYERS), ("image", (PATCHES, 160), DEPTH * vision)):
        inputs_of_layers = [each for each in saved if each.shape == shape and each.dtype == torch.bfloat16]
        assert len(inputs_of_layers) == layers
        assert planned[f"{name} layers' inputs"] == stored(inputs_of_layers)


@pytest.mark.parametrize("templates", [1, 2])
def test_pixel_values_and_image_tokens_are_those_of_the_processor(templates: int) -> None:
    tiny = config.resolve({"preset": "demo", "task": {"templates": templates}, "train": {"shared_prefix": False}})
    processor = models.load_processor(models.TINY, tiny.model)
    boxes = {"second_box": [1, 2, 3, 4]} if templates == 2 else {}
    asked = processor.apply_chat_template(
        [prompts.build([1, 2, 3, 4], **boxes)], tokenize=False, add_generation_prompt=True
    )
    crops = [Image.new("RGB", (tiny.task.size, tiny.task.size))] * (templates + 1)
    real = processor(text=asked, images=crops, return_tensors="pt")
    batch = memory.question(tiny, 1, 0)
    assert memory.Model(tiny).pixels * batch.patches == real["pixel_values"].nbytes
    marks = processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"])
    words = memory.WORDS + memory.LATER * (templates - 1)
    assert batch.prompt - words == sum((real["input_ids"] == mark).sum() for mark in marks)
    rollout = memory.plan(tiny)[0].moments
    rows = tiny.train.group * tiny.train.prompts_per_step
    assert rollout["loss"]["pixel values"] == rows * real["pixel_values"].nbytes
    assert rollout["rollout: images"]["pixel values"] == 2 * rollout["loss"]["pixel values"]


WORKING = ("image layer", "text layer", "KV cache", "logits", "norms and merger")


def working(planned: memory.Terms) -> float:
    """The bytes of a moment that a forward or backward pass brings along."""
    return sum(size for name, size in planned.items() if name in WORKING or name.endswith("inputs"))


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize(("dtype", "adapted"), [("bfloat16", True), ("bfloat16", False), ("float32", True)])
def test_the_estimate_of_answering_is_near_what_generate_takes(shallow: Path, dtype: str, adapted: bool) -> None:
    model: Any = models.load_weights(shallow, getattr(torch, dtype))
    model = with_adapter(model) if adapted else model
    setup = GenerationConfig(max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False, pad_token_id=0)
    inputs = question()
    with torch.no_grad(), Living() as living:
        model.eval().generate(**inputs, generation_config=setup)
    if adapted:
        moments = [terms(shallow, f"rollout: {name}", dtype) for name in ("images", "prompts", "answers")]
    else:
        few = settings(shallow, dtype).model_copy(update={"track": schema.Track(batch=ROWS)})
        moments = list(plan_of(few, "track").moments.values())
    assert max(map(working, moments)) == pytest.approx(living.peak, rel=0.08)


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize(("dtype", "quantize"), [("bfloat16", "none"), ("bfloat16", "nf4"), ("float32", "none")])
def test_the_estimate_of_learning_is_near_what_a_forward_and_backward_pass_take(
    shallow: Path, dtype: str, quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = trainable(shallow, getattr(torch, dtype), quantize), question()
    asked = torch.is_autocast_enabled
    if dtype == "bfloat16":  # PEFT asks whether autocast is on for CUDA
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cuda": kind == "cuda" or asked(kind))

    for parameter in model.parameters():
        if parameter.requires_grad:  # from the second micro-batch on there are gradients
            parameter.grad = torch.zeros_like(parameter)
    with Living() as living:
        with autocast(dtype == "bfloat16"):
            logits = model(**inputs, use_cache=False, logits_to_keep=1).logits
        logits.float().mean().backward()
    assert working(terms(shallow, "backward", dtype, quantize=quantize)) == pytest.approx(living.peak, rel=0.08)


def test_the_estimate_of_the_supervised_logits_is_what_trls_loss_takes(base: Path) -> None:
    from trl.trainer.sft_trainer import _CHUNKED_LM_HEAD_CHUNK_SIZE, _chunked_cross_entropy_loss

    vocabulary = memory.shape_of(str(base), None).text_config.vocab_size
    hidden, head = torch.randn(1, 600, 8, requires_grad=True), torch.randn(vocabulary, 8)
    with Living() as living:
        _chunked_cross_entropy_loss(hidden, head, memory.CHUNK, labels=torch.ones(1, 600, dtype=torch.long))[
            0
        ].backward()
    planned = plan_of(settings(base, arms=["sft"]), "train sft").moments["loss"]["logits"]
    assert planned == pytest.approx(living.peak, rel=0.08)
    assert memory.CHUNK == _CHUNKED_LM_HEAD_CHUNK_SIZE


def test_operations_are_those_that_pytorch_counts_but_for_attention(base: Path) -> None:
    shape = memory.shape_of(str(base), None)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(shape)
    text, patch, answer = counted(base).flops
    with FlopCounterMode(display=False) as counter:
        hidden = torch.zeros(1, 50, 256, device="meta")
        places = torch.zeros(3, 1, 50, dtype=torch.long, device="meta")
        model.model.language_model(inputs_embeds=hidden, position_ids=places, use_cache=False)
        model.lm_head(hidden)
    by_kind = counter.get_flop_counts()["Global"]
    linear = sum(count for kind, count in by_kind.items() if kind in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert linear == 50 * (text + answer)
    blocks = [layer for name, layer in model.model.visual.named_modules() if isinstance(layer, torch.nn.Linear)]
    by_hand = sum(2 * layer.in_features * layer.out_features for layer in blocks[:-2])
    assert patch == by_hand + sum(2 * layer.in_features * layer.out_features for layer in blocks[-2:]) / 4


def test_the_shape_of_a_base_is_read_from_its_folder_or_the_hub_cache(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory.shape_of(str(base), None).text_config.num_hidden_layers == LAYERS
    assert memory.shape_of("tiny", None).text_config.hidden_size == 128
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *asked, revision: str(base / "config.json"))
    assert memory.shape_of("somebody/their-model", "main").text_config.num_hidden_layers == LAYERS


def test_image_features_take_as_many_bytes_as_after_a_real_rollout(tmp_path: Path) -> None:
    from r1track.training.image_cache import ImageCache

    chosen = config.resolve({"preset": "demo", "train": {"prompts_per_step": 2, "micro_batch": 16}})
    model, processor = models.load_weights(models.TINY, torch.float32), models.load_processor(models.TINY, chosen.model)
    cache = ImageCache(processor, model.requires_grad_(False).model.visual)
    asked = processor.apply_chat_template([prompts.build([1, 2, 3, 4])] * 2, tokenize=False, add_generation_prompt=True)
    crops = [Image.new("RGB", (chosen.task.size, chosen.task.size), (shade, 0, 0)) for shade in (0, 60, 120, 180)]
    with cache.open():
        made = processor(text=asked, images=crops, padding=True, return_tensors="pt")
    model(**made)
    planned = plan_of(chosen, "train grpo").moments["loss"]
    assert planned["image features"] == sum(each.nbytes for each in cache.features.values())
    assert planned["pixel values"] == chosen.train.group * made["pixel_values"].nbytes
