"""Shapes: Qwen2.5-VL in full size with random weights, a tokenizer of its own, and toy data to run it on.

Memory and speed do not depend on what the weights are. What the model says does: it says nothing, and never stops.
"""

import logging
from pathlib import Path
from typing import Any

import scripted
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig

from r1track.core import folders, models, prompts
from r1track.core.schema import Settings
from r1track.data import sample, toy
from r1track.preflight import memory

log = logging.getLogger(__name__)
TEXT_TOKENS = 99  # with two crops of 336 px, 144 tokens each, our question has 387, as with Qwen's own tokens
BOX = (126, 126, 210, 210)


# Small shapes of the same make. Text: hidden, layers, heads, key-value heads, intermediate, vocabulary, mrope_section;
# vision: depth, hidden, intermediate, heads, blocks of full attention. `tiny` is for rehearsals, `middle` for CPUs;
# `deep` has the 3B's layers and next to no width: a pass costs what starting its operations costs, as on a card.
SMALL: dict[str, tuple[Any, ...]] = {
    "tiny": (64, 2, 4, 2, 128, 1024, [2, 3, 3], 2, 64, 128, 4, [1]),
    "deep": (32, 36, 2, 1, 64, 8256, [2, 3, 3], 2, 32, 64, 2, [1]),
    "middle": (512, 8, 8, 2, 1408, 8192, [8, 12, 12], 8, 320, 864, 8, [1, 3, 5, 7]),
}


def full_size(shape: str) -> Qwen2_5_VLConfig:
    """The architecture of a shape: of `3B`, `7B`, or of one of the small ones."""
    if shape not in SMALL:
        return memory.full_size(shape)
    hidden, layers, heads, pairs, wide, words, mrope, depth, seen, seen_wide, seen_heads, whole = SMALL[shape]
    text = {
        "vocab_size": words, "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": pairs,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": mrope},
    }  # fmt: skip
    vision = {
        "depth": depth, "hidden_size": seen, "intermediate_size": seen_wide, "num_heads": seen_heads,
        "out_hidden_size": hidden, "fullatt_block_indexes": whole, "tokens_per_second": 2,
    }  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


def make_config(shape: str, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """The architecture of a shape, with the tokenizer's own ids."""
    config: Any = full_size(shape)
    ids = tokenizer.get_added_vocab()
    config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    config.vision_start_token_id, config.vision_end_token_id = ids["<|vision_start|>"], ids["<|vision_end|>"]
    config.text_config.bos_token_id = None
    config.text_config.eos_token_id, config.text_config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return config


def make_tokenizer(like: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A byte-level BPE with single digits, as Qwen's, merged until our question has TEXT_TOKENS tokens of text.

    like: whose special tokens and chat template are taken over.
    """
    special = [token.content for token in like.added_tokens_decoder.values() if token.special]
    question = prompts.build(BOX)
    parts = [*question[0]["content"], *prompts.build(BOX, think=True)[0]["content"]]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    for merges in range(400):
        backend = Tokenizer(BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=len(special) + len(alphabet) + merges, special_tokens=[AddedToken(t) for t in special],
            initial_alphabet=alphabet, min_frequency=1, show_progress=False,
        )  # fmt: skip
        backend.train_from_iterator(texts, trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
            clean_up_tokenization_spaces=False, chat_template=like.chat_template,
        )  # fmt: skip
        asked: Any = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        if len(tokenizer(asked)["input_ids"]) - 2 <= TEXT_TOKENS:  # without the two image places
            return tokenizer
    raise ValueError(f"no number of merges gives {TEXT_TOKENS} tokens; the question has changed: set another number")


def write_base(shape: str, folder: Path) -> None:
    """Random bf16 weights in shards, config, tokenizer and processor; built on the card where there is one.

    `deep` gets Qwen's own tokens where the package dashscope is there.
    """
    processor = models.load_processor(models.TINY, Settings().model)
    qwen = shape == "deep" and scripted.has_qwen()
    if shape == "deep" and not qwen:
        log.warning("the package dashscope is missing: instead of Qwen's tokens there are others of the same make")
    processor.tokenizer = (scripted.qwen_tokenizer if qwen else make_tokenizer)(processor.tokenizer)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(make_config(shape, processor.tokenizer), dtype=torch.bfloat16)
    eos, pad = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[eos, pad], pad_token_id=pad)
    with folders.atomic_folder(folder) as out:
        model.save_pretrained(out, max_shard_size="4GB")
        processor.save_pretrained(out)
        for name in ("processor_config.json", "tokenizer_config.json"):
            text = (out / name).read_text()
            (out / name).write_text(text.replace("ImageProcessorOnly", "Qwen2_5_VLProcessor"))
    log.info("%s: %.2f billion parameters", shape, sum(p.numel() for p in model.parameters()) / 1e9)


def write_place(shape: str, settings: Settings, place: Path) -> None:
    """What the cases of a shape work on: `place/base`, `place/pairs`, and `place/toy/val` of 64 frames to track."""
    toy.write_split(place / "toy" / "train", "train", sequences=8, length=12, seed=0)
    toy.write_split(place / "toy" / "val", "val", sequences=16, length=5, seed=0)
    sample.run(settings, place / "toy" / "train", place / "pairs")
    write_base(shape, place / "base")
