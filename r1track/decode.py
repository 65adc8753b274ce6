"""Decode: greedy answers that do not pay twice for the same words.

A tracking question is the same up to its search image, frame after frame. Its first part is encoded once, as a prefix:
keys and values of every layer; each frame then adds its own image and the question. Rows whose prefixes have different
lengths are padded on the left, and each row stops at the end of its own answer. The answers are those of `generate` on
the whole question, cut at that end (tests/test_decode.py).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.nn.functional import pad
from transformers import DynamicCache

from r1track import prompts
from r1track.models import Loaded, suppressed
from r1track.prompts import Messages

PLACE = "<|vision_start|>"  # an image's place begins here: a token of its own, so that a text may be cut in front of it


class Prefix(NamedTuple):
    """The first part of a question, encoded: per layer keys and values (1, heads, tokens, width); the next position."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    after: int


class Decoder:
    """Answers questions whose last image changes more often than the rest."""

    def __init__(self, loaded: Loaded, *, max_tokens: int, think: bool):
        self.loaded, self.max_tokens, self.think = loaded, max_tokens, think
        model = loaded.model
        self.model: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        tokenizer = loaded.processor.tokenizer
        ends = self.model.generation_config.eos_token_id
        self.ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        self.forbidden = suppressed(loaded.processor)
        self.stacked: tuple[list[Prefix], DynamicCache, torch.Tensor] | None = None

    def _texts(self, question: Messages) -> tuple[str, str]:
        """The question in front of its last image, and from there on."""
        text = self.loaded.processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True)[0]
        cut = text.rindex(PLACE)
        return text[:cut], text[cut:]

    def _inputs(self, texts: list[str], images: Sequence[Image.Image]) -> tuple[dict[str, Any], torch.Tensor]:
        """Model inputs of texts with `images` in their places, and the positions (3, rows, tokens) of the tokens."""
        made = self.loaded.processor(text=texts, images=list(images), padding=True, return_tensors="pt")
        made = made.to(self.loaded.device)
        positions, _ = self.model.model.get_rope_index(**{k: v for k, v in made.items() if k != "pixel_values"})
        names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        return {name: made[name] for name in names}, positions

    @torch.inference_mode()
    def prefixes(self, questions: Sequence[Messages], images: Sequence[Sequence[Image.Image]]) -> list[Prefix]:
        """The questions in front of their last images, encoded with the images that stand there."""
        texts = [self._texts(question)[0] for question in questions]
        made, positions = self._inputs(texts, [image for row in images for image in row])
        cache: Any = DynamicCache(config=self.model.config)
        self.model(**made, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        found = []
        for row, mask in enumerate(made["attention_mask"].bool()):
            layers = [
                (layer.keys[row : row + 1, :, mask], layer.values[row : row + 1, :, mask]) for layer in cache.layers
            ]
            found.append(Prefix(layers, int(positions[:, row, mask].max()) + 1))
        return found

    def _stack(self, prefixes: list[Prefix]) -> tuple[DynamicCache, torch.Tensor]:
        """One cache of all prefixes and its mask (rows, tokens); the last one is used again for the same prefixes."""
        if self.stacked and [*map(id, self.stacked[0])] == [*map(id, prefixes)]:
            _, cache, mask = self.stacked
            cache.crop(mask.shape[1])
            return cache, mask
        lengths = [prefix.layers[0][0].shape[2] for prefix in prefixes]
        longest = max(lengths)
        cache = DynamicCache(config=self.model.config)
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

    @torch.inference_mode()
    def answers(self, question: Messages, prefixes: list[Prefix], images: Sequence[Image.Image]) -> list[str]:
        """One greedy answer per row: its prefix, then its image in the last place of `question`, then the rest of it.

        Of `question` only that end is read: it is the same for all rows, whatever their templates and boxes.
        """
        rows = len(prefixes)
        tail = self._texts(question)[1]
        made, positions = self._inputs([tail], [images[0]])
        pixels = self.loaded.processor.image_processor(images=list(images), return_tensors="pt").to(self.loaded.device)
        cache, mask = self._stack(prefixes)
        after = torch.tensor([prefix.after for prefix in prefixes], device=self.loaded.device)
        ids = made["input_ids"].expand(rows, -1)
        mask = torch.cat([mask, mask.new_ones(ids.shape)], 1)
        logits = self.model(
            input_ids=ids, pixel_values=pixels["pixel_values"], image_grid_thw=pixels["image_grid_thw"],
            position_ids=positions + after[None, :, None], attention_mask=mask, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        ).logits  # fmt: skip
        return self._greedy(logits[:, -1], cache, mask, after + int(positions.max()) + 1)

    def _greedy(self, logits: torch.Tensor, cache: DynamicCache, mask: torch.Tensor, after: torch.Tensor) -> list[str]:
        """Token by token until every row has come to its end; after (rows): positions of the first new tokens."""
        tokenizer = self.loaded.processor.tokenizer
        found: list[list[int]] = [[] for _ in range(len(logits))]
        texts, open_rows = [""] * len(found), set(range(len(found)))
        for step in range(self.max_tokens):
            logits[:, self.forbidden] = -torch.inf
            ids = logits.argmax(-1)
            for row, token in enumerate(ids.tolist()):
                if row not in open_rows:
                    continue
                found[row].append(token)
                texts[row] = tokenizer.decode(found[row], skip_special_tokens=True)
                if token in self.ends or prompts.ended(texts[row], self.think):
                    open_rows.remove(row)
            if not open_rows or step + 1 == self.max_tokens:
                break
            mask = torch.cat([mask, mask.new_ones(len(found), 1)], 1)
            logits = self.model(
                input_ids=ids[:, None], position_ids=(after + step)[None, :, None].expand(3, -1, 1),
                attention_mask=mask, past_key_values=cache, use_cache=True,
            ).logits[:, -1]  # fmt: skip
        return texts
