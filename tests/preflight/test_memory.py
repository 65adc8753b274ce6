"""The memory plan: exact terms are the bytes of real tensors, estimates are near those of real layers, advice holds."""

import re
import weakref
from pathlib import Path
from typing import Any

import bitsandbytes
import document
import huggingface_hub
import pytest
import torch
import yaml
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from r1track.core import config, models, prompts, schema
from r1track.preflight import memory
from r1track.training import trl_patches

ROWS, IMAGES, WORDS, ANSWER = 2, 2, 160, 8
SIDE = 84  # pixels of an image: 36 patches, 9 tokens
LAYERS, DEPTH = 6, 4
TINY = config.resolve({"preset": "demo"})
PATCHES = ROWS * IMAGES * (SIDE // 14) ** 2
PROMPT = IMAGES * ((SIDE // 28) ** 2 + 2) + WORDS


def make(folder: Path, layers: int, depth: int, heads: int = 2) -> Path:
    """A folder with random weights of a middle-sized shape, with the proportions of the real ones."""
    text = {
        "hidden_size": 128 * heads, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 1,
        "intermediate_size": 688 * heads, "vocab_size": 1024, "bos_token_id": None, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {
        "depth": depth, "hidden_size": 160, "intermediate_size": 428, "num_heads": 2, "out_hidden_size": 128 * heads,
        "fullatt_block_indexes": [1, 3], "tokens_per_second": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    shape = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True,
        image_token_id=6, video_token_id=7, vision_start_token_id=3, vision_end_token_id=4,
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(shape).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("base"), LAYERS, DEPTH)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer at a time is at work, so two are enough to see it."""
    return make(tmp_path_factory.mktemp("shallow"), 2, 2, heads=4)


def settings(base: Path | str, dtype: str = "float32", **train: Any) -> config.Settings:
    values = {"shared_prefix": False, **train}
    return config.resolve({"preset": "demo", "model": {"base": str(base), "dtype": dtype}, "train": values})


def counted(base: Path, dtype: str = "float32", **train: Any) -> memory.Model:
    return memory.Model(settings(base, dtype, **train))


def plan_of(chosen: config.Settings, stage: str) -> memory.StagePlan:
    return next(each for each in memory.plan(chosen) if each.stage == stage)


def stored(tensors: Any) -> int:
    """Bytes of the tensors, each storage once."""
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(found.values())


def with_adapter(model: Any, vision: bool = False) -> Any:
    from peft import LoraConfig, get_peft_model

    wanted = [
        name
        for name, layer in model.named_modules()
        if "Linear" in type(layer).__name__ and ("language_model" in name or (vision and "visual" in name))
    ]
    adapted: Any = get_peft_model(model, LoraConfig(r=16, target_modules=wanted))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def question(rows: int = ROWS, words: int = WORDS) -> dict[str, torch.Tensor]:
    """A batch of prompts, the first with padding, each with IMAGES images."""
    image = [3, *[6] * (SIDE // 28) ** 2, 4]
    ids = torch.tensor([[9] * words + image * IMAGES] * rows)
    mask = torch.ones_like(ids)
    mask[0, : words // 4], ids[0, : words // 4] = 0, 0
    grid = torch.tensor([[1, SIDE // 14, SIDE // 14]] * (rows * IMAGES))
    kinds = (ids == 6).int()
    return {
        "input_ids": ids, "attention_mask": mask, "image_grid_thw": grid, "mm_token_type_ids": kinds,
        "pixel_values": torch.randn(int(grid.prod(1).sum()), 1176),
    }  # fmt: skip


class Living(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while they live, not of those that were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def _begin(self, values: Any, made: bool) -> None:
        for each in tree_iter(values):
            storage = each.untyped_storage() if isinstance(each, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.seen:
                size = storage.nbytes() if made else 0
                self.seen.add(storage._cdata)
                self.now += size
                weakref.finalize(storage, self._end, storage._cdata, size)

    def _end(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._begin((args, kwargs), made=False)
        result = function(*args, **(kwargs or {}))
        self._begin(result, made=True)
        self.peak = max(self.peak, self.now)
        return result


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


@pytest.mark.parametrize(("size", "bf16", "nf4"), [("3B", 7.5, 3.4), ("7B", 16.6, 6.9)])
def test_the_full_shapes_have_the_published_sizes(size: str, bf16: float, nf4: float) -> None:
    model = counted(f"Qwen/Qwen2.5-VL-{size}-Instruct", "bfloat16")
    assert model.weights["none"] / 1e9 == pytest.approx(bf16, abs=0.05)
    assert model.weights["nf4"] / 1e9 == pytest.approx(nf4, abs=0.05)
    vision = memory.full_size(size).vision_config
    assert (vision.depth, vision.intermediate_size, vision.num_heads, vision.window_size) == (32, 3420, 16, 112)
    assert list(vision.fullatt_block_indexes) == [7, 15, 23, 31]


def test_the_shape_of_a_base_is_read_from_its_folder_or_the_hub_cache(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory.shape_of(str(base), None).text_config.num_hidden_layers == LAYERS
    assert memory.shape_of("tiny", None).text_config.hidden_size == 128
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *asked, revision: str(base / "config.json"))
    assert memory.shape_of("somebody/their-model", "main").text_config.num_hidden_layers == LAYERS


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
