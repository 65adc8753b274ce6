"""Generation: own decoding that does not pay twice for the same words.

A tracking question is the same up to its search image, frame after frame. Its first part is encoded once, as a prefix:
keys and values of every layer; each frame then adds its own image and the question. A rollout asks the same question
many times: it is encoded once, and the cache repeated. Rows of different lengths are padded on the left, and each row
stops at its own end. The answers are those of `generate` on whole questions (tests/core/test_generation.py).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.nn.functional import pad
from transformers import DynamicCache

from r1track.core import prompts
from r1track.core.models import Loaded, suppressed
from r1track.core.prompts import Messages

PLACE = "<|vision_start|>"  # an image's place begins here: a token of its own, so that a text may be cut in front of it
# From logits (rows, vocabulary), the next tokens and what is to be kept of each: its log-probability, say.
Sampler = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Prefix(NamedTuple):
    """The first part of a question, encoded: per layer keys and values (1, heads, tokens, width); the next position."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    after: int


class Completion(NamedTuple):
    """One answer: its tokens, its end among them, and what was kept of each."""

    tokens: list[int]
    kept: list[float]


class Prefill(NamedTuple):
    """Questions, encoded: last logits (rows, vocabulary), the cache, its mask (rows, tokens), the next positions."""

    logits: torch.Tensor
    cache: Any  # a DynamicCache; its updates have no precise types
    mask: torch.Tensor
    after: torch.Tensor
    ids: torch.Tensor  # (rows, tokens)


def greedy(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens, and their logits."""
    values, tokens = logits.max(-1)
    return tokens, values


def sampled(temperature: float) -> Sampler:
    """Draws tokens from the softmax of logits / temperature; keeps their log-probabilities."""

    def pick(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        every = (logits.float() / temperature).log_softmax(-1)
        tokens = torch.multinomial(every.exp(), 1)
        return tokens[:, 0], every.gather(1, tokens)[:, 0]

    return pick


class Decoder:
    """Answers many questions side by side; with `think` in the form that has thoughts in front of the box."""

    def __init__(self, loaded: Loaded, *, max_tokens: int, think: bool = False):
        self.loaded, self.max_tokens, self.think = loaded, max_tokens, think
        self.model: Any = loaded.model
        self.core: Any = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        ends = self.core.generation_config.eos_token_id
        self.ends = {loaded.processor.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        self.forbidden = suppressed(loaded.processor)
        self.stacked: tuple[list[Prefix], Any, torch.Tensor] | None = None
        self.tails: dict[tuple[str, tuple[int, int]], tuple[torch.Tensor, torch.Tensor]] = {}

    def _texts(self, question: Messages) -> tuple[str, str]:
        """The question in front of its last image, and from there on."""
        text = self.loaded.processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True)[0]
        cut = text.rindex(PLACE)
        return text[:cut], text[cut:]

    def _inputs(self, texts: list[str], images: Sequence[Image.Image]) -> tuple[dict[str, Any], torch.Tensor]:
        """Model inputs of texts with `images` in their places, and the positions (3, rows, tokens) of the tokens."""
        made = self.loaded.processor(text=texts, images=list(images), padding=True, return_tensors="pt")
        made = made.to(self.loaded.device)
        positions, _ = self.core.model.get_rope_index(**{k: v for k, v in made.items() if k != "pixel_values"})
        names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        return {name: made[name] for name in names}, positions

    @torch.no_grad()
    def ask(self, texts: list[str], images: Sequence[Image.Image]) -> Prefill:
        """Encode whole texts; images: those of all texts, one after another."""
        made, positions = self._inputs(texts, images)
        cache: Any = DynamicCache(config=self.core.config)
        out = self.model(**made, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        mask = made["attention_mask"]
        after = positions.masked_fill(mask == 0, 0).amax((0, 2)) + 1
        return Prefill(out.logits[:, -1], cache, mask, after, made["input_ids"])

    def prefixes(self, questions: Sequence[Messages], images: Sequence[Sequence[Image.Image]]) -> list[Prefix]:
        """The questions in front of their last images, encoded with the images that stand there."""
        texts = [self._texts(question)[0] for question in questions]
        asked = self.ask(texts, [image for row in images for image in row])
        found = []
        for row, mask in enumerate(asked.mask.bool()):
            one = slice(row, row + 1)
            layers = [(layer.keys[one, :, mask], layer.values[one, :, mask]) for layer in asked.cache.layers]
            found.append(Prefix(layers, int(asked.after[row])))
        return found

    def _stack(self, prefixes: list[Prefix]) -> tuple[Any, torch.Tensor]:
        """One cache of all prefixes and its mask (rows, tokens); the last one is used again for the same prefixes."""
        if self.stacked and [*map(id, self.stacked[0])] == [*map(id, prefixes)]:
            _, cache, mask = self.stacked
            if more := cache.get_seq_length() - mask.shape[1]:
                cache.crop(-more)
            return cache, mask
        lengths = [prefix.layers[0][0].shape[2] for prefix in prefixes]
        longest = max(lengths)
        cache = DynamicCache(config=self.core.config)
        for k in range(len(prefixes[0].layers)):
            keys, values = (
                torch.cat(
                    [pad(p.layers[k][side], (0, 0, longest - n, 0)) for p, n in zip(prefixes, lengths, strict=True)]
                )
                for side in (0, 1)
            )
            cache.update(keys, values, k)
        columns = torch.arange(longest, device=self.loaded.device)
        mask = (columns >= longest - torch.tensor(lengths, device=self.loaded.device)[:, None]).long()
        self.stacked = (prefixes, cache, mask)
        return cache, mask

    @torch.no_grad()
    def answers(self, question: Messages, prefixes: list[Prefix], images: Sequence[Image.Image]) -> list[str]:
        """One greedy answer per row: its prefix, then its image in the last place of `question`, then the rest of it.

        Of `question` only that end is read: it is the same for all rows, whatever their templates and boxes.
        """
        tail = self._texts(question)[1]
        if (tail, images[0].size) not in self.tails:  # the same in every round
            made, places = self._inputs([tail], [images[0]])
            self.tails[tail, images[0].size] = made["input_ids"], places
        ids, positions = self.tails[tail, images[0].size]
        pixels = self.loaded.processor.image_processor(images=list(images), return_tensors="pt").to(self.loaded.device)
        cache, mask = self._stack(prefixes)
        after = torch.tensor([prefix.after for prefix in prefixes], device=self.loaded.device)
        ids = ids.expand(len(prefixes), -1)
        mask = torch.cat([mask, mask.new_ones(ids.shape)], 1)
        logits = self.model(
            input_ids=ids, pixel_values=pixels["pixel_values"], image_grid_thw=pixels["image_grid_thw"],
            position_ids=positions + after[None, :, None], attention_mask=mask, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        ).logits  # fmt: skip
        asked = Prefill(logits[:, -1], cache, mask, after + int(positions.max()) + 1, ids)
        tokenizer = self.loaded.processor.tokenizer

        def ended(tokens: list[int]) -> bool:
            return prompts.ended(tokenizer.decode(tokens, skip_special_tokens=True), self.think)

        return tokenizer.batch_decode(
            [each.tokens for each in self.decode(asked, greedy, ended)], skip_special_tokens=True
        )

    @torch.no_grad()
    def decode(
        self, asked: Prefill, pick: Sampler, ended: Callable[[list[int]], bool] | None = None, *, drop: bool = False
    ) -> list[Completion]:
        """Token by token until every row has come to an end token, to what `ended` says of its tokens, or to the limit.

        drop: leave rows that have ended out of the computation, and out of the cache, once they are the most.
        """
        logits, cache, mask, after, _ = asked
        found = [Completion([], []) for _ in range(len(logits))]
        rows, open_rows = list(range(len(found))), set(range(len(found)))
        for step in range(self.max_tokens):
            logits[:, self.forbidden] = -torch.inf
            ids, kept = pick(logits)
            for row, token, value in zip(rows, ids.tolist(), kept.tolist(), strict=True):
                if row in open_rows:
                    found[row].tokens.append(token)
                    found[row].kept.append(value)
                    if token in self.ends or (ended and ended(found[row].tokens)):
                        open_rows.remove(row)
            if not open_rows or step + 1 == self.max_tokens:
                break
            if drop and 2 * len(open_rows) <= len(rows):
                left = torch.tensor([k for k, row in enumerate(rows) if row in open_rows], device=mask.device)
                cache.batch_select_indices(left)
                mask, after, ids, rows = mask[left], after[left], ids[left], [rows[k] for k in left.tolist()]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            logits = self.model(
                input_ids=ids[:, None], position_ids=(after + step)[None, :, None].expand(3, -1, 1),
                attention_mask=mask, past_key_values=cache, use_cache=True,
            ).logits[:, -1]  # fmt: skip
        return found
