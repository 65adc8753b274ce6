"""Memory: what each stage of a configuration needs of one card, and how long training computes, from the shape alone.

Exact terms are bytes of tensors that stay, counted on the model on the `meta` device, where it takes no memory. The
others, ESTIMATES, are what one layer needs while it works, as counted on the layers of the backend `transformers`;
Unsloth's are taken to keep no more. docs/memory.md has every formula. GB are 1e9 bytes.
"""

import functools
import math
import re
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from r1track.core import files, generation, models
from r1track.core.config_errors import PATCH, contradiction
from r1track.core.errors import MissingFile
from r1track.core.schema import Settings
from r1track.core.train_schema import Train
from r1track.training import backend

Terms = dict[str, float]
ESTIMATES = {"CUDA context", "image layer", "text layer", "logits", "norms and merger", "square roots"}
CONTEXT = 0.8e9  # CUDA's context, cuBLAS's workspace, gaps between blocks: assumed
CHUNK = 256  # answer tokens whose logits TRL's sft makes at a time
WORDS, LATER, THINK = 95, 31, 16  # of our question with its chat template, counted with Qwen's own tokens
RATE = 0.4 * 71e12  # operations per second, 40 % of an RTX 3090's in bfloat16 (an RTX 4090: 165e12): assumed
TOKEN_SECONDS = 0.17  # for a token of a rollout: decoding waits for kernel launches (bench/results/nvidia-h200.json)
FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
)  # fmt: skip
SIZES = {"3B": (2048, 36, 16, 2, 11008, 151936), "7B": (3584, 28, 28, 4, 18944, 152064)}
PUBLISHED = {f"Qwen/Qwen2.5-VL-{size}-Instruct": size for size in SIZES}
# What makes a stage smaller: fields, and values to try in place of the halves.
SAVING: dict[str, list[Any]] = {
    "train.quantize": ["nf4"], "train.optimizer": ["adamw_8bit"], "task.size": [PATCH * n for n in range(40, 0, -1)],
    "train.rollout_steps": [], "train.prompts_per_step": [], "train.micro_batch": [], "train.sft.micro_batch": [],
    "train.lora.rank": [], "track.batch": [], "vqa.batch": [], "vqa.max_pixels": [], "model.max_pixels": [],
}  # fmt: skip


class StagePlan(NamedTuple):
    """The moments of a stage that may be its peak, with the bytes in memory then."""

    stage: str
    moments: dict[str, Terms]
    trainer: str = ""  # of training: `backend.trainer_name`
    flops: float = 0  # operations of the whole training
    hours: float = 0

    @property
    def peak(self) -> tuple[float, str]:
        """Bytes and name of the largest moment."""
        return max((sum(terms.values()), name) for name, terms in self.moments.items())


class Batch(NamedTuple):
    """Questions side by side: rows, and of each row the tokens of prompt and answer and the image patches."""

    rows: int
    prompt: int
    answer: int
    patches: int


def full_size(size: str) -> Qwen2_5_VLConfig:
    """The shape of Qwen2.5-VL-3B or -7B, for `3B` or `7B`; what is not said here is the class's default."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = dict(zip(FIELDS, SIZES[size], strict=True), rms_norm_eps=1e-6, rope_parameters=rope)
    vision = {"hidden_size": 1280, "out_hidden_size": SIZES[size][0], "tokens_per_second": 2}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=size == "3B")


def shape_of(base: str, revision: str | None) -> Qwen2_5_VLConfig:
    """The shape of a base: `tiny`, a folder, one of the two published, or one in the hub's cache, without a download.

    Raises MissingFile for a shape that is not known here.
    """
    if base in PUBLISHED:
        return full_size(PUBLISHED[base])
    file = files.resolve_path(base, revision) / "config.json"
    if not file.is_file():
        named = f"a hub id that is in its cache (`hf download {base} config.json`)"
        remedy = f"give a folder with a config.json, `tiny`, or {named}"
        raise MissingFile(f"model.base = {base!r}: its shape is not known here; {remedy}")
    return Qwen2_5_VLConfig.from_pretrained(file.parent)


@functools.cache
def _frame(base: str, revision: str | None) -> tuple[Any, int, dict[str, tuple[int, int]]]:
    """A base's shape, the number of its parameters, and its linear layers' outputs and inputs by name."""
    shape = shape_of(base, revision)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(shape)
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    sides = {name: (layer.out_features, layer.in_features) for name, layer in linear.items()}
    return shape, sum(parameter.numel() for parameter in model.parameters()), sides


def _four_bits(n: int) -> int:
    """What bitsandbytes keeps of n weights: codes, a byte per 64, a float32 per 256 of those, code books, an offset."""
    blocks = math.ceil(n / 64)
    return math.ceil(n / 2) + blocks + 4 * math.ceil(blocks / 256) + 4 * (16 + 256 + 1)


class Model:
    """What a configuration's base and adapter come to, in bytes; where weights are tied they count once."""

    def __init__(self, settings: Settings):
        train, self.nbytes = settings.train, getattr(torch, settings.model.dtype).itemsize
        shape, self.parameters, sides = _frame(settings.model.base, settings.model.revision)
        text, vision = self.text, self.vision = shape.text_config, shape.vision_config
        size = {name: out * into for name, (out, into) in sides.items()}
        language = [n for name, n in size.items() if ".language_model." in name]
        packed = sum(map(_four_bits, language)) - self.nbytes * sum(language)
        self.weights = {"none": self.nbytes * self.parameters, "nf4": self.nbytes * self.parameters + packed}
        wanted = str(models.make_adapter(train.lora).target_modules)
        matrices = [train.lora.rank * n for name, both in sides.items() if re.fullmatch(wanted, name) for n in both]
        self.adapter = 4 * sum(matrices)  # float32, as the gradients
        self.optimiser = 8 * sum(matrices)  # two moments in float32
        if train.optimizer == "adamw_8bit":  # a byte each, a scale per 256 and two code books; small ones in float32
            self.optimiser = 2048 + sum(8 * n if n < 4096 else 2 * n + 8 * math.ceil(n / 256) for n in matrices)
        width = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
        self.cache = 2 * text.num_hidden_layers * width * self.nbytes  # of a token
        self.pixels = 4 * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2  # of a patch, float32
        tower = sum(n / (4 if ".merger." in name else 1) for name, n in size.items() if ".visual." in name)
        # Of a token, a patch and an answer's token; attention's own products, 1 or 2 %, are left out.
        self.flops = 2 * sum(language), 2 * tower, 2 * size["lm_head"]


def question(settings: Settings, rows: int, answer: int) -> Batch:
    """`rows` tracking questions with answers of `answer` tokens."""
    images, merged = settings.task.templates + 1, (settings.task.size // PATCH) ** 2
    words = WORDS + LATER * (images - 2) + THINK * settings.task.think
    return Batch(rows, images * (merged + 2) + words, answer, images * merged * 4)


def _answering(
    model: Model, batch: Batch, resident: Terms, adapted: bool, drafted: bool, copies: int = 1
) -> dict[str, Terms]:
    """All images, then all prompts, then `copies` answers to each; an adapter works in float32."""
    rows = batch.rows * copies
    width = generation.width(rows, "cuda") if drafted else 1
    room = (generation.most_holes(rows) + width - 1) * (width > 1)  # columns of the cache
    text, vision, nbytes, narrow = model.text, model.vision, model.nbytes, model.nbytes < 4
    rotation, gates = 5 * nbytes + 8 * narrow + 16, 3 * nbytes * (1 + vision.intermediate_size / vision.hidden_size)
    tower = (max(rotation, gates) + 8 / vision.num_heads) * vision.hidden_size
    inner, outer = (2 * nbytes + 8, 5 * nbytes + 4 * narrow) if adapted else (3 * nbytes, 5 * nbytes)
    layer = inner * text.intermediate_size + outer * text.hidden_size
    stored, grown = (model.cache * batch.rows * n for n in (batch.prompt, copies * (batch.prompt + batch.answer)))
    answers = {**resident, "KV cache": grown, "room for drafts": model.cache * rows * room}
    return {
        "images": {**resident, "image layer": batch.rows * batch.patches * tower},
        "prompts": {**resident, "KV cache": stored, "text layer": batch.rows * batch.prompt * layer},
        "answers": {**answers, "logits": 16 * rows * width * text.vocab_size},
    }


def _fixed_cache(model: Model, batch: Batch, rows: int) -> float:
    """Of `rows` rows, beside the cache of the prompts."""
    return float(model.cache * rows * generation.fixed_columns(batch.prompt + batch.answer, rows, "cuda"))


def _learning(model: Model, batch: Batch, resident: Terms, train: Train, logits: int) -> dict[str, Terms]:
    """A micro-batch forward and backward with checkpointed layers, then the optimiser; logits: bytes, gradients too."""
    text, vision, nbytes, packed = model.text, model.vision, model.nbytes, train.quantize == "nf4"
    tokens = batch.rows * (batch.prompt + batch.answer)
    patches = batch.rows * batch.patches * train.lora.vision  # of a frozen tower nothing is stored
    resident = {**resident, "gradients": model.adapter}
    norms = tokens * (4 + nbytes) * text.hidden_size + patches * (4 + 2.5 * nbytes) * vision.hidden_size
    stored = {
        **resident,
        "text layers' inputs": nbytes * text.num_hidden_layers * text.hidden_size * tokens,
        "image layers' inputs": nbytes * vision.depth * vision.hidden_size * patches,
        "norms and merger": norms,
    }
    # Over weights as they are PEFT copies the adapter's inputs to float32; over packed ones autocast spares it that.
    inner, outer = (24, 28) if nbytes == 4 else (10, 18) if packed else (14, 33)
    layer = tokens * (inner * text.intermediate_size + outer * text.hidden_size)
    layer += packed * nbytes * text.intermediate_size * text.hidden_size  # one matrix, unpacked
    roots = model.adapter if train.optimizer == "adamw_torch" else 0  # of the second moments
    moments = {"loss": {**stored, "logits": logits}, "backward": {**stored, "text layer": layer}}
    return {**moments, "optimiser step": {**resident, "square roots": roots}}


def _train(model: Model, settings: Settings, arm: str) -> StagePlan:
    train, sft = settings.train, arm == "sft"
    micro = question(settings, train.sft.micro_batch if sft else train.micro_batch, train.max_tokens)
    answers = train.sft.batch if sft else train.group * train.prompts_per_step
    trainer = backend.trainer_name(train, arm)
    shared = trainer == "SharedPrefixTrainer"
    g = min(train.group, train.micro_batch) if shared else 1  # answers that follow one prompt
    batch = micro._replace(rows=micro.rows // g, answer=g * micro.answer)
    drawn = answers * train.rollout_steps
    resident = {"CUDA context": CONTEXT, "weights": model.weights[train.quantize], "adapter": model.adapter}
    images = (micro.rows if sft else drawn) * micro.patches
    resident |= {"optimiser": model.optimiser, "pixel values": model.pixels * images}
    if shared:  # numbers in place of pixels; what a frozen tower saw is kept, for another the pixels of a micro-batch
        seen = drawn // train.group * micro.patches // 4 * model.text.hidden_size * model.nbytes
        learnt = 8 * drawn * micro.patches + train.lora.vision * model.pixels * batch.rows * batch.patches
        resident |= {"pixel values": learnt, "image features": (not train.lora.vision) * seen}
        if train.graphs:
            resident |= {"graphs' cache": _fixed_cache(model, micro, min(drawn, train.rollout_batch))}
    # In float32: sft has those of CHUNK answer tokens at a time; grpo all answers', and their gradients.
    logits = (16 * CHUNK if sft else 8 * (micro.answer + 1) * micro.rows) * model.text.vocab_size
    moments = _learning(model, batch, resident, train, logits)
    # Forward, recomputed, backward; and of grpo the rollout, the reference, the old policy.
    passes = 3 if sft else 4 + (train.beta > 0) + (train.rollout_steps > 1)
    looks = passes if train.lora.vision else 1 if shared else passes - 2  # of the vision tower
    worked = (passes * (micro.prompt / g + micro.answer), looks * micro.patches / g, passes * micro.answer)
    flops = sum(a * b for a, b in zip(model.flops, worked, strict=True))
    flops *= answers * (train.sft.steps if sft else train.steps)
    calls = math.ceil(drawn / train.rollout_batch) if shared else 1
    waiting = 0 if sft else train.steps / train.rollout_steps * calls * train.max_tokens * TOKEN_SECONDS
    if train.eval_every:  # held-out pairs are answered, as many at once as fit beside the training
        times, pairs = (train.sft.steps if sft else train.steps) / train.eval_every, train.eval_pairs
        rows = train.sft.micro_batch if sft else min(train.rollout_batch, drawn) // train.group
        waiting += times * math.ceil(pairs / max(1, rows)) * train.max_tokens * TOKEN_SECONDS
        work = (micro.prompt + micro.answer, micro.patches, micro.answer)
        flops += times * pairs * sum(a * b for a, b in zip(model.flops, work, strict=True))
    if not sft:  # while a rollout is drawn, the trainer still has the one before
        prompts = min(drawn, train.rollout_batch) // train.group if shared else drawn
        pixels = resident["pixel values"] + model.pixels * prompts * micro.patches
        rollout, copies = micro._replace(rows=prompts), train.group if shared else 1
        first = _answering(model, rollout, {**resident, "pixel values": pixels}, True, shared, copies)
        moments = {f"rollout: {name}": terms for name, terms in first.items()} | moments
    return StagePlan(f"train {arm}", moments, trainer, flops, (flops / RATE + waiting) / 3600)


def plan(settings: Settings) -> list[StagePlan]:
    """The stages that use a card: each arm of training and its `merge`, `track`, and `vqa` with its largest images.

    Of the models that answer in `merge`, the largest is the base with the adapter beside it; it sums on the CPU.
    Raises MissingFile where the base's shape is not known.
    """
    model, largest = Model(settings), (settings.vqa.max_pixels or settings.model.max_pixels) // PATCH**2
    words = max((questions.max_tokens for questions in settings.vqa.sets.values()), default=0)
    plans = [_train(model, settings, arm) for arm in settings.train.arms]
    track, vqa = settings.track, Batch(settings.vqa.batch, largest + 2 + WORDS, words, 4 * largest)
    merge = question(settings, *settings.answer_size)
    batches = {"merge": merge} if settings.train.arms else {}
    batches |= {"track": question(settings, track.batch, track.max_tokens), "vqa": vqa}
    for stage, batch in batches.items():
        resident: Terms = {"CUDA context": CONTEXT, "weights": model.weights["none"]}
        resident |= {"adapter": model.adapter} if stage == "merge" else {}
        resident |= {"pixel values": model.pixels * batch.rows * batch.patches}
        drafted = stage == "track" and track.reuse and not settings.task.prompt
        if drafted:  # beside the cache in which they are side by side
            search = batch.patches // 4 // (settings.task.templates + 1) + 2  # tokens
            resident |= {"prefixes": model.cache * batch.rows * (batch.prompt - search)}
        if drafted and track.graphs:
            resident |= {"graphs' cache": _fixed_cache(model, batch, batch.rows)}
        plans.append(StagePlan(stage, _answering(model, batch, resident, stage == "merge", drafted)))
    return plans


def remedies(settings: Settings, stage: str, budget: float) -> dict[str, float]:
    """Valid single changes after which a stage fits into `budget` bytes, as `field: value`, with the new peak."""
    changes: dict[str, float] = {}
    for field, values in SAVING.items():
        *path, last = field.split(".")
        now: Any = functools.reduce(getattr, [*path, last], settings)
        for value in values or [now >> halvings for halvings in range(1, (now or 0).bit_length())]:
            changed = settings.model_dump()
            functools.reduce(dict.__getitem__, path, changed)[last] = value
            with suppress(ValidationError):  # it contradicts a field beside it
                other = Settings.model_validate(changed)
                peak = next(planned.peak[0] for planned in plan(other) if planned.stage == stage)
                if peak <= budget and not contradiction(other):
                    changes[f"{field}: {value}"] = peak
                    break
    return changes
