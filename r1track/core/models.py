"""Models: load a base model, its processor and an adapter, and generate answers in batches.

Training, tracking and questions use the same image processor, the PIL one: PIL and torchvision resize differently.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from rich.progress import track as progress
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, BitsAndBytesConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils.logging import disable_progress_bar

from r1track.core import files, schema
from r1track.core.errors import MissingFile, UserError, reading
from r1track.core.prompts import Messages
from r1track.core.train_schema import Lora
from r1track.core.vision import fewer_calls

if TYPE_CHECKING:  # PEFT, more than a second's import, is imported where there is an adapter
    from peft import LoraConfig, PeftModelForCausalLM

disable_progress_bar()  # the stages have progress bars of their own
Images = Sequence[Sequence[Image.Image]]  # of each question, in the order of their places
Quantize = Literal["nf4", "none"]
# Names of an adapter's tensors by transformers before 4.52, with which R1-Track was trained, and how PEFT renames them.
OLD_NAMES = ("base_model.model.model.layers.", "base_model.model.visual.")
NEW_NAMES = {r"^visual\.": "model.visual.", r"^model\.layers\.": "model.language_model.layers."}
TINY = files.resolve_path("tiny")
MODEL_TYPE = "qwen2_5_vl"
COPY = "copy the model again"
# Never sampled: in a completion they would stand for an image that is missing, and fail the next forward pass.
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


class ImageProcessorOnly(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its video half, which cannot be built where torchvision is missing."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):  # type: ignore[no-untyped-def]
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        super(Qwen2_5_VLProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)


@dataclass(frozen=True)
class Loaded:
    """A model with its processor and its device."""

    model: Any  # a PreTrainedModel, or PEFT's wrapper around one
    processor: ImageProcessorOnly
    device: torch.device


def resolve_model_dir(base: str, revision: str | None = None, file: str = "config.json") -> Path:
    """The folder of a model: inside this package for `tiny`, the given folder, else a download from the hub.

    file: what must be in it; that of an adapter is `adapter_config.json`.

    Raises MissingFile for what is none of these.
    """
    if files.on_hub(base):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(base, revision=revision))
        except (OSError, ValueError) as error:  # no such repository, or no network and nothing in the cache
            reason = f"no such folder, and the hub does not give it ({str(error).splitlines()[0]})"
            remedy = f"correct the name, or run `hf download {base}` where there is a network"
            raise MissingFile(f"model {base!r}: {reason}; {remedy}") from error
    path = files.resolve_path(base)
    if not (path / file).is_file():
        reason = f"no {file} in it" if path.is_dir() else "no such folder"
        if (path / "adapter_config.json").is_file():
            fault = "it is an adapter; give the merged model, models/<arm>, or name both in track.extra"
            raise UserError(f"model {base!r}: {fault}")
        raise MissingFile(f"model {base!r}: {reason}; give a model's folder, a hub id, or `tiny`")
    return path


def load_processor(folder: Path, settings: schema.Model) -> ImageProcessorOnly:
    """The processor of the model in `folder`, with the configured pixel limits; prompts are padded on the left.

    Raises UserError for a model without a chat template, and for files that cannot be read.
    """
    size = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    with reading(folder, COPY):
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        images = Qwen2VLImageProcessorPil.from_pretrained(folder, size=size)
        template, older = tokenizer.chat_template, folder / "chat_template.json"  # where older repositories keep it
        if not template and older.is_file():
            template = files.read_json(older, COPY)["chat_template"]
    if not template:
        raise UserError(f"{folder}: there is no chat template; take an Instruct model")
    return ImageProcessorOnly(images, tokenizer, chat_template=template)


def load_weights(folder: Path, dtype: torch.dtype, quantize: Quantize = "none", device: str | None = None) -> Any:
    """The model with weights in `dtype`, on the GPU if there is one; with `nf4`, the language layers are in 4 bits.

    Raises UserError for what `check_weights` and `check_finite` refuse.
    """
    check_weights(folder)
    quantization = None
    if quantize == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["model.visual", "lm_head"],  # in spite of its name, for 4 bits too
        )  # fmt: skip
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, quantization_config=quantization, device_map={"": device}, attn_implementation="sdpa"
    )
    fewer_calls(model.model.visual)
    check_finite(model.named_parameters(), folder)
    return model


def check_weights(folder: Path) -> None:
    """Refuse a base that is not Qwen2.5-VL in 16 or 32 bits, or whose weights do not fit its config.json one to one.

    Names and shapes are read, no values: transformers loads the model onto the device `meta`, and renames old names.
    """
    described = files.read_json(folder / "config.json", COPY)
    kind = described.get("model_type") if isinstance(described, dict) else None
    if kind != MODEL_TYPE:
        raise UserError(f"{folder / 'config.json'}: model_type = {kind!r}; take a Qwen2.5-VL model ({MODEL_TYPE!r})")
    if described.get("quantization_config"):
        raise UserError(f"{folder}: its weights are quantised already; take the 16-bit model that they were made from")
    for file in sorted(folder.glob("*.safetensors")):
        _stored_names(file)
    with reading(folder, COPY):
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, device_map={"": "meta"}, ignore_mismatched_sizes=True, output_loading_info=True
        )
    report = loaded[1]
    other_shape = [key for key, *_ in report["mismatched_keys"]]
    _refuse_keys(folder, report["missing_keys"], report["unexpected_keys"], other_shape)


def _stored_names(file: Path) -> set[str]:
    """Names of the tensors in a file of weights; UserError names a file that is cut short or is none."""
    try:
        with safe_open(file, "pt") as stored:
            return set(stored.keys())
    except SafetensorError as error:
        raise UserError(f"{file}: cannot be read ({error}); copy or make it again") from error


def _refuse_keys(folder: Path, missing: Iterable[str], unknown: Iterable[str], other_shape: Iterable[str]) -> None:
    """Raise UserError with the first names of the tensors that were not loaded, if there are any."""
    faults = {"missing": sorted(missing), "not in the model": sorted(unknown), "of another shape": sorted(other_shape)}
    if lists := [f"{len(keys)} {fault} ({', '.join(keys[:2])}, ...)" for fault, keys in faults.items() if keys]:
        remedy = "copy it again, or save it again with `save_pretrained` of transformers or PEFT"
        raise UserError(f"{folder}: tensors do not fit the configuration: {', '.join(lists)}; {remedy}")


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path) -> None:
    """Raise UserError naming the first tensor that holds NaN or an infinity; of 4-bit weights their scales are read."""
    for name, tensor in tensors:
        state = getattr(tensor, "quant_state", None)
        scales = tensor if state is None else state.offset if state.nested else state.absmax
        if not all(map(torch.isfinite, scales.detach().aminmax())):  # one pass, and NaN reaches both
            raise UserError(f"{folder}: {name} holds NaN or infinity; copy the weights again, or train again")


def make_adapter(lora: Lora) -> "LoraConfig":
    """The LoRA adapter: on the named linear layers of the language model and, with `vision`, on the vision tower's."""
    from peft import LoraConfig

    targets = rf".*language_model.*\.({'|'.join(lora.targets)})"
    if lora.vision:
        targets += r"|.*visual\.blocks.*\.(qkv|proj|gate_proj|up_proj|down_proj)|.*visual\.merger\.mlp\.[02]"
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="none", target_modules=targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip


def check_adapter(adapter: Path) -> set[str]:
    """The names of an adapter's weights. Raises MissingFile for a folder without one, UserError for a damaged one."""
    for file in (adapter / "adapter_config.json", weights := adapter / "adapter_model.safetensors"):
        if not file.is_file():
            raise MissingFile(f"{file}: not there; give an adapter that `train` wrote")
    return _stored_names(weights)


def attach(model: Any, adapter: Path) -> "PeftModelForCausalLM":
    """PEFT's wrapper around `model`, with the LoRA adapter in the folder `adapter`, for inference.

    Raises MissingFile for a folder without one, and UserError for an adapter that does not fit the model one to one.
    """
    from peft import LoraConfig, PeftModelForCausalLM

    stored = check_adapter(adapter)
    names = NEW_NAMES if any(name.startswith(OLD_NAMES) for name in stored) else None
    with reading(adapter, "give an adapter that `train` wrote over this base"):
        adapted = PeftModelForCausalLM(model, LoraConfig.from_pretrained(str(adapter)))
        report = adapted.load_adapter(str(adapter), "default", ignore_mismatched_sizes=True, key_mapping=names)
    absent = {name.replace(".default.", ".") for name in report.missing_keys}
    _refuse_keys(adapter, absent - stored, report.unexpected_keys, absent & stored)
    check_finite(((name, tensor) for name, tensor in adapted.named_parameters() if ".default." in name), adapter)
    return adapted


def is_frozen(tower: Any) -> bool:
    """Whether no parameter of a vision tower is trained, neither its own nor an adapter's."""
    return not any(parameter.requires_grad for parameter in tower.parameters())


def load(base: str, settings: schema.Model, adapter: Path | None = None, quantize: Quantize = "none") -> Loaded:
    """A model (hub id, folder or `tiny`) in evaluation mode, with an adapter on it if one is given; its processor."""
    folder = resolve_model_dir(base, settings.revision)
    model = load_weights(folder, getattr(torch, settings.dtype), quantize)
    model = attach(model, adapter) if adapter else model
    return Loaded(model.eval(), load_processor(folder, settings), model.device)


def suppressed(processor: ImageProcessorOnly) -> list[int]:
    """Ids of the tokens that are never generated."""
    ids = processor.tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
    return [i for i in ids if i not in (None, processor.tokenizer.unk_token_id)]


def inputs(loaded: Loaded, questions: Sequence[Messages], images: Images) -> dict[str, Any]:
    """Model inputs of a batch of questions with their images, padded on the left: tensors of shape (batch, tokens)."""
    texts = loaded.processor.apply_chat_template(list(questions), tokenize=False, add_generation_prompt=True)
    flat = [image for row in images for image in row]
    batch = loaded.processor(text=texts, images=flat, padding=True, return_tensors="pt")
    return {key: value.to(loaded.device) for key, value in batch.items()}


def check_logits(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """The logits (..., vocabulary) as they are; UserError names a model whose largest one is not finite in some row."""
    if not torch.isfinite(logits.amax(-1)).all():
        remedy = "take other weights, or model.dtype bfloat16 or float32"
        raise UserError(f"{model.name_or_path}: its logits are not finite, so its answers mean nothing; {remedy}")
    return logits


def generate(
    loaded: Loaded, questions: Sequence[Messages], images: Images, *, max_tokens: int, batch: int, show: str = ""
) -> list[str]:
    """Greedy answers in the order of the questions, `batch` at a time. show: name of a progress bar; empty: no bar.

    Raises UserError for a model whose logits are not finite.
    """
    answers: list[str] = []
    for start in progress(range(0, len(questions), batch), description=show, disable=not show):
        batch_inputs = inputs(loaded, questions[start : start + batch], images[start : start + batch])
        with torch.inference_mode():
            ids = loaded.model.generate(
                **batch_inputs, max_new_tokens=max_tokens, do_sample=False, temperature=None, top_p=None, top_k=None,
                repetition_penalty=1.0, suppress_tokens=suppressed(loaded.processor),
                logits_processor=[lambda ids, logits: check_logits(loaded.model, logits)],
            )  # fmt: skip
        new = ids[:, batch_inputs["input_ids"].shape[1] :]
        answers += loaded.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return answers
