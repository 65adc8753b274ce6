"""The tiny base: a real Qwen2.5-VL of about two million parameters, with tokenizer and image processor of its own.

Its weights lie in toy/tiny, written by `python tools/teach.py OUT`. tools/lessons.py has the training examples,
tools/teach.py the training. It can solve the tracking task but often answers the template's box: see lessons.UNDECIDED.
"""

import math
from typing import Any

import easy_vqa
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from r1track.core import prompts
from r1track.core.models import ImageProcessorOnly
from r1track.data import toy

SIZE = 84  # side of a crop as the tiny model sees it: 3 x 3 merged patches, the template's target in the middle patch
FRAME = (196, 140)  # width and height of a whole toy frame as the image processor resizes it
HIDDEN = 128  # width of the language model
NUMBERS = 512  # whole numbers with a token of their own
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
           "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<unk>")  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per whole number, per word and per fixed sentence of our prompts, so that texts stay short."""
    sentences = [
        "user\n", "assistant\n", "system\n", prompts.TEMPLATE_HEAD, prompts.SEARCH_HEAD.format("second"),
        prompts.QUESTION, prompts.ANSWER_PLAIN, prompts.ANSWER_THINK, prompts.SHORT, prompts.GROUND_HEAD,
        prompts.GROUND_TAIL, '```json\n[\n\t{"bbox_2d": ', ', "label": "', '"}\n]\n```',
        "<think>", "</think>", "<answer>", "</answer>",
    ]  # fmt: skip
    questions, answers, _ = easy_vqa.get_train_questions()
    splitter = pre_tokenizers.Split(Regex(r"\d{1,3}| ?[A-Za-z]+|, |\s|[^\sA-Za-z\d]"), "isolated")
    words = {piece for text in {*questions, *answers} for piece, _ in splitter.pre_tokenize_str(text)}
    words |= {w for kind in (*toy.COLORS, *toy.SHAPES) for w in (kind, f" {kind}")}
    vocabulary = [*SPECIAL, *map(str, range(NUMBERS)), *",.:;-+?!()[]{}\"'\n\t ", ", ", *sorted(words)]
    vocabulary = list(dict.fromkeys(vocabulary))
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    backend.add_tokens([AddedToken(sentence, normalized=False) for sentence in sentences])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<unk>",
        padding_side="left", clean_up_tokenization_spaces=False, model_max_length=4096, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def make_processor() -> ImageProcessorOnly:
    """The tiny base's processor: it resizes crops and easy-VQA images to 84 x 84 px, a whole toy frame to 196 x 140."""
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": SIZE * SIZE, "longest_edge": FRAME[0] * FRAME[1]})
    return ImageProcessorOnly(images, make_tokenizer(), chat_template=CHAT_TEMPLATE)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The tiny architecture with random weights."""
    torch.manual_seed(seed)
    ids: dict[str, Any] = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    hidden = HIDDEN
    text = {
        "vocab_size": math.ceil(len(tokenizer) / 64) * 64,
        "hidden_size": hidden,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.06,  # 0.02 suits a width of thousands; at this width attention would start uniform
        "tie_word_embeddings": True,
        # High enough frequencies to tell the few rows and columns apart, low enough to recognise an object anywhere.
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 7, 7]},
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 3, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": hidden,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "fullatt_block_indexes": [0, 1, 2], "tokens_per_second": 2,
        "initializer_range": 0.06,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    first: Any = tokenizer.convert_tokens_to_ids("0")
    waves = torch.arange(NUMBERS)[:, None] * 2 * math.pi / torch.logspace(0.7, 3, hidden // 4)
    with torch.no_grad():  # close numbers start with close embeddings, so that coordinates are learnt as a scale
        model.get_input_embeddings().weight[first : first + NUMBERS] = 0.03 * torch.cat(
            [waves.sin(), waves.cos(), torch.randn(NUMBERS, hidden - 2 * (hidden // 4)) * 0.3], 1
        )
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"]
    )
    return model
