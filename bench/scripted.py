"""Scripted: a model that says what it is told to, in Qwen's own tokens: its passes per answer are those of a good one.

Random weights say nothing that a tracker would. Here a model's passes are computed as ever, and then its logits are
replaced by those of a given answer: the decoder cannot tell, and its time is that of the model.
"""

import base64
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import DynamicCache, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from r1track.core import generation

COMMON = 8192
# Other programs lengthen wall seconds; a card's work is in these alone.
CLOCK = time.perf_counter if torch.cuda.is_available() else time.process_time
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def has_qwen() -> bool:
    """Whether Qwen's vocabulary is here: `pip install --no-deps dashscope`, which needs nothing else of itself."""
    return importlib.util.find_spec("dashscope") is not None


def qwen_tokenizer(like: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The first COMMON tokens of Qwen's vocabulary, from the ranks in the package dashscope. A box has no others.

    With all 151 643 a CPU would spend its time on logits, which a card does not. like: whose special tokens and chat
    template are taken over.
    """
    package: Any = importlib.util.find_spec("dashscope")
    lines = (Path(package.origin).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in map(bytes.split, lines[:COMMON])}
    letters = bytes_to_unicode()
    merges = []
    for piece, rank in ranks.items():
        halves = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        known = [(ranks[a], ranks[b], a, b) for a, b in halves if a in ranks and b in ranks]
        merges += [(rank, order, a, b) for order, (_, _, a, b) in enumerate(sorted(known))]
    text = {piece: "".join(letters[byte] for byte in piece) for piece in ranks}
    pairs = [(text[a], text[b]) for _, _, a, b in sorted(merges)]
    backend = Tokenizer(BPE({text[piece]: rank for piece, rank in ranks.items()}, pairs))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t.content) for t in like.added_tokens_decoder.values() if t.special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        clean_up_tokenization_spaces=False, chat_template=like.chat_template,
    )  # fmt: skip


class Script:
    """Lets a model say given texts, row by row; the first token of all of them is the same. `passes` counts decoding's.

    Set on a model once; PEFT's wrapper around it may decode. Rows are copied and dropped with those of the cache.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer, self.device, self.passes = tokenizer, model.device, 0
        real = generation.Decoder.forward

        def forward(decoder: generation.Decoder, cache: Any, **inputs: Any) -> torch.Tensor:
            logits = real(decoder, cache, **inputs)
            return self.replace(logits, inputs) if decoder.core is model else logits

        generation.Decoder.forward = forward  # type: ignore[method-assign]
        self.say(["["])
        self.follow("batch_repeat_interleave", lambda rows, n: rows.repeat_interleave(n, 0))
        self.follow("batch_select_indices", lambda rows, places: rows[places])

    def follow(self, name: str, change: Callable[[torch.Tensor, Any], torch.Tensor]) -> None:
        real = getattr(DynamicCache, name)

        def both(cache: Any, rows: Any) -> None:
            real(cache, rows)
            self.start = change(self.start, rows)
            self.said = change(self.said, rows) if name == "batch_select_indices" else self.said

        setattr(DynamicCache, name, both)

    def say(self, texts: list[str]) -> None:
        """What the rows say next, each to its end."""
        end = self.tokenizer.eos_token_id
        rows = [torch.tensor([*self.tokenizer(text)["input_ids"], end]) for text in texts]
        self.said = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=end).to(self.device)

    def replace(self, logits: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """The logits of a pass, with those of what is said in their place."""
        self.passes += 1
        at = inputs["position_ids"][0][:, -logits.shape[1] :]
        if "pixel_values" in inputs:  # the end of a prompt, and what is drafted behind it
            self.start = at[:, :1] + 1
        said = self.said if len(self.said) == len(at) else self.said[:1].expand(len(at), -1)
        places = (at - self.start + 1).clamp(max=said.shape[1] - 1)
        return logits.zero_().scatter_(2, said.gather(1, places)[..., None], 30.0)
