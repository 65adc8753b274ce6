"""Generation: decoding that computes a shared prompt once.

In tracking, the prompt before the search image is the same in every frame. It is encoded once, as a prefix: keys and
values of every layer. For each frame only the search image and the question are added. In a rollout, one prompt has
many completions: it is encoded once, and its cache repeated. Rows of different lengths are padded on the left, and
every row stops at its own end. The answers equal those of `generate` on whole prompts (tests/core/test_generation.py).

A pass through the model checks a draft (drafts.py) of some tokens in every row: at each of them a token is chosen or
drawn as ever, and the row goes on behind the first that is not the draft's. So answers, their distribution and their
log-probabilities are those without drafts. The cache keeps what was refused: *holes*, hidden by the mask.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.nn.functional import pad
from transformers import DynamicCache

from r1track.core import prompts
from r1track.core.drafts import Drafter
from r1track.core.models import Loaded, check_logits, suppressed
from r1track.core.prompts import Messages

PLACE = "<|vision_start|>"  # the first token of an image's place; a prompt may be cut before it
DRAFT = 7  # most tokens of a draft: a longer one is rarely right to its end
PASS = {"cuda": 512, "cpu": 32}  # most tokens of a pass with drafts, over all rows: more take longer, not as long
HOLES = 64  # most columns of the cache more than its longest row has tokens
# From logits (rows, vocabulary): the next token of every row, and a value of it, such as its log-probability.
Sampler = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Examples = Sequence[Sequence[list[int]]]  # of every row: tokens of answers like which its own may be


class Prefix(NamedTuple):
    """An encoded prompt before its last image: per layer keys and values (1, heads, tokens, width); next position."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    after: int


class Completion(NamedTuple):
    """One completion: its tokens, including the end token, and the sampler's value of each."""

    tokens: list[int]
    values: list[float]


class Prefill(NamedTuple):
    """Encoded prompts, each with a draft behind it: last logits (rows, 1 + drafted, vocabulary), cache, its mask (rows,
    tokens), next positions (rows,). A draft that is shorter than others is filled up with -1.
    """

    logits: torch.Tensor
    cache: Any  # a DynamicCache; its updates have no precise types
    mask: torch.Tensor
    after: torch.Tensor
    ids: torch.Tensor  # (rows, tokens)
    drafts: torch.Tensor  # (rows, drafted)


def greedy(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely tokens, and their logits."""
    values, tokens = logits.max(-1)
    return tokens, values


def sampled(temperature: float) -> Sampler:
    """A sampler from the softmax of logits / temperature; its values are log-probabilities."""

    def sample(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs = (logits.float() / temperature).log_softmax(-1)
        tokens = torch.multinomial(logprobs.exp(), 1)
        return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]

    return sample


class Decoder:
    """Generates answers to batches of questions.

    max_tokens: maximum length of a completion. think: whether answers have reasoning before the box (`prompts.ended`).
    """

    def __init__(self, loaded: Loaded, *, max_tokens: int, think: bool = False):
        self.loaded, self.max_tokens, self.think = loaded, max_tokens, think
        self.model: Any = loaded.model
        self.core: Any = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        ends = self.core.generation_config.eos_token_id
        self.ends = {loaded.processor.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        self.forbidden = suppressed(loaded.processor)
        self.drafter = Drafter(loaded.processor.tokenizer, think)
        self.stacked: tuple[list[Prefix], Any, torch.Tensor] | None = None
        self.tails: dict[tuple[str, tuple[int, int]], tuple[torch.Tensor, torch.Tensor]] = {}

    def _texts(self, question: Messages) -> tuple[str, str]:
        """The text of a question before its last image, and from there on."""
        text = self.loaded.processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True)[0]
        cut = text.rindex(PLACE)
        return text[:cut], text[cut:]

    def _inputs(self, texts: list[str], images: Sequence[Image.Image]) -> tuple[dict[str, Any], torch.Tensor]:
        """Model inputs of texts with `images` in their places, and the positions (3, rows, tokens) of the tokens."""
        batch = self.loaded.processor(text=texts, images=list(images), padding=True, return_tensors="pt")
        batch = batch.to(self.loaded.device)
        positions, _ = self.core.model.get_rope_index(**{k: v for k, v in batch.items() if k != "pixel_values"})
        names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        return {name: batch[name] for name in names}, positions

    @torch.no_grad()
    def prefill(self, texts: list[str], images: Sequence[Image.Image]) -> Prefill:
        """Encode prompts; images: those of all prompts, one after another."""
        inputs, positions = self._inputs(texts, images)
        cache: Any = DynamicCache(config=self.core.config)
        out = self.model(**inputs, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        mask = inputs["attention_mask"]
        after = positions.masked_fill(mask == 0, 0).amax((0, 2)) + 1
        none = mask.new_empty(len(mask), 0)
        return Prefill(out.logits, cache, mask, after, inputs["input_ids"], none)

    def prefixes(self, questions: Sequence[Messages], images: Sequence[Sequence[Image.Image]]) -> list[Prefix]:
        """The encoded prefixes of questions; images: for every question those before its last one."""
        texts = [self._texts(question)[0] for question in questions]
        prefill = self.prefill(texts, [image for row in images for image in row])
        prefixes = []
        for row, mask in enumerate(prefill.mask.bool()):
            one = slice(row, row + 1)
            layers = [(layer.keys[one, :, mask], layer.values[one, :, mask]) for layer in prefill.cache.layers]
            prefixes.append(Prefix(layers, int(prefill.after[row])))
        return prefixes

    def _stack(self, prefixes: list[Prefix]) -> tuple[Any, torch.Tensor]:
        """One cache of all prefixes and its mask (rows, tokens); reused while the prefixes stay the same."""
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
    def answers(
        self,
        question: Messages,
        prefixes: list[Prefix],
        images: Sequence[Image.Image],
        examples: Examples | None = None,
    ) -> list[list[int]]:
        """The tokens of one greedy answer per prefix; its prompt is the prefix, its image, and the end of `question`.

        images: the last image of every prompt, all of one size. Of `question` only the text after its last image is
        read: it is the same in all prompts. examples: answers after which each is drafted; None: no drafts.
        """
        tail = self._texts(question)[1]
        if (tail, images[0].size) not in self.tails:
            inputs, tail_positions = self._inputs([tail], [images[0]])
            self.tails[tail, images[0].size] = inputs["input_ids"], tail_positions
        ids, positions = self.tails[tail, images[0].size]
        pixels = self.loaded.processor.image_processor(images=list(images), return_tensors="pt").to(self.loaded.device)
        cache, mask = self._stack(prefixes)
        after = torch.tensor([prefix.after for prefix in prefixes], device=self.loaded.device)
        drafts = self._drafts([[]] * len(prefixes), examples)
        positions, after = positions + after[None, :, None], after + int(positions.max()) + 1
        ids = torch.cat([ids.expand(len(prefixes), -1), drafts.clamp(min=0)], 1)
        mask = torch.cat([mask, mask.new_ones(ids.shape)], 1)
        logits = self.model(
            input_ids=ids, pixel_values=pixels["pixel_values"], image_grid_thw=pixels["image_grid_thw"],
            position_ids=torch.cat([positions, _onwards(after, drafts.shape[1])], 2), attention_mask=mask,
            past_key_values=cache, use_cache=True, logits_to_keep=1 + drafts.shape[1],
        ).logits  # fmt: skip
        prefill = Prefill(logits, cache, mask, after, ids, drafts)
        return [completion.tokens for completion in self.decode(prefill, greedy, self.ended, examples=examples)]

    def ended(self, tokens: list[int]) -> bool:
        """Whether the answer of these tokens is complete without an end token, see `prompts.ended`."""
        tokenizer, closing = self.loaded.processor.tokenizer, ">" if self.think else "]"
        if closing not in (tokenizer.convert_ids_to_tokens(tokens[-1]) or ""):  # spares decoding them all
            return False
        return prompts.ended(tokenizer.decode(tokens, skip_special_tokens=True), self.think)

    @torch.no_grad()
    def decode(
        self,
        prefill: Prefill,
        sampler: Sampler,
        ended: Callable[[list[int]], bool] | None = None,
        *,
        examples: Examples | None = None,
        drop: bool = False,
    ) -> list[Completion]:
        """Generate until every row has an end token, `ended` is true of its tokens, or max_tokens are reached.

        examples: answers after which those of each row are drafted; None: no drafts. drop: remove the rows that have
        ended from the batch and from the cache when they are at least half of it.
        """
        logits, cache, mask, after, _, drafts = prefill
        completions = [Completion([], []) for _ in range(len(logits))]
        rows, open_rows = list(range(len(completions))), set(range(len(completions)))
        while True:
            check_logits(self.model, logits)[..., self.forbidden] = -torch.inf
            tokens, values, right = _check(logits, drafts, sampler)
            for row, n, drawn, some in zip(rows, right.tolist(), tokens.tolist(), values.tolist(), strict=True):
                for token, value in zip(drawn[: n + 1], some[: n + 1], strict=True):
                    if row in open_rows:
                        said = completions[row].tokens
                        said.append(token)
                        completions[row].values.append(value)
                        if token in self.ends or len(said) == self.max_tokens or (ended and ended(said)):
                            open_rows.remove(row)
            if not open_rows:
                return completions
            if drop and 2 * len(open_rows) <= len(rows):
                open_places = torch.tensor([k for k, row in enumerate(rows) if row in open_rows], device=mask.device)
                cache.batch_select_indices(open_places)
                state = (mask, after, drafts, tokens, right)
                mask, after, drafts, tokens, right = (part[open_places] for part in state)
                rows = [rows[k] for k in open_places.tolist()]
            mask, ids, at = self._refuse(cache, mask, drafts, right), tokens.gather(1, right[:, None]), after + right
            begun = [completions[row].tokens if row in open_rows else None for row in rows]
            drafts, after = self._drafts(begun, examples and [examples[row] for row in rows]), at + 1
            ids = torch.cat([ids, drafts.clamp(min=0)], 1)
            mask = torch.cat([mask, mask.new_ones(ids.shape)], 1)
            logits = self.model(
                input_ids=ids, position_ids=_onwards(at, ids.shape[1]), attention_mask=mask, past_key_values=cache,
                use_cache=True,
            ).logits  # fmt: skip

    def _drafts(self, begun: Sequence[list[int] | None], examples: Examples | None) -> torch.Tensor:
        """Drafts of what follows the tokens of every row, (rows, drafted), filled up with -1; None: none for a row."""
        room = min(DRAFT, PASS[self.loaded.device.type] // len(begun) - 1)
        if examples is None or room < 1:
            return torch.empty(len(begun), 0, dtype=torch.long, device=self.loaded.device)
        drafts = [
            self.drafter.draft(tokens, some)[:room] if tokens is not None else []
            for tokens, some in zip(begun, examples, strict=True)
        ]
        width = max(map(len, drafts))
        return torch.tensor([draft + [-1] * (width - len(draft)) for draft in drafts], device=self.loaded.device).long()

    def _refuse(self, cache: Any, mask: torch.Tensor, drafts: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Hide what each row refused of its draft, and take out of the cache what all rows refused; the new mask."""
        kept, start = int(right.max()), mask.shape[1] - drafts.shape[1]
        cache.crop(kept - drafts.shape[1])
        mask = mask[:, : start + kept]
        mask[:, start:] = torch.arange(kept, device=mask.device) < right[:, None]
        longest = int(mask.sum(1).max())
        if mask.shape[1] - longest <= HOLES:
            return mask
        self.stacked = None  # its columns are moved
        order = mask.argsort(stable=True, dim=1)[:, -longest:]  # holes and padding come first
        for layer in cache.layers:
            columns = order[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
            layer.keys, layer.values = layer.keys.gather(2, columns), layer.values.gather(2, columns)
        return mask.gather(1, order)


def _check(
    logits: torch.Tensor, drafts: torch.Tensor, sampler: Sampler
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A token for every place, its value, both (rows, 1 + drafted), and how many of a row's first are the draft's.

    Tokens are chosen or drawn as if there were no draft; those behind the first that differs from it are void.
    """
    drawn = [sampler(logits[:, k]) for k in range(logits.shape[1])]
    tokens, values = (torch.stack(part, 1) for part in zip(*drawn, strict=True))
    return tokens, values, (tokens[:, :-1] == drafts).cumprod(1).sum(1)


def _onwards(at: torch.Tensor, tokens: int) -> torch.Tensor:
    """Positions (3, rows, tokens) of text that starts at `at` (rows,)."""
    return (at[:, None] + torch.arange(tokens, device=at.device)).expand(3, -1, -1)
