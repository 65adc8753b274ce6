"""Generation: decoding that computes a shared prompt once.

In tracking, the prompt before the search image is the same in every frame. It is encoded once, as a prefix: keys and
values of every layer. For each frame only the search image and the question are added. In a rollout, one prompt has
many completions: it is encoded once, and its cache repeated. Rows of different lengths are padded on the left, and
every row stops at its own end. The answers equal those of `generate` on whole prompts (tests/core/test_generation.py).

A pass through the model checks a draft (drafts.py) in every row, a tree of tokens that may follow. Each of them sees
those on its way to the root alone. Behind each a token is chosen or drawn as ever, and the row goes down the tree for
as long as it has that token. So answers, their distribution and their log-probabilities are those without drafts. The
cache keeps what was refused: *holes*, hidden by the mask.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad
from transformers import DynamicCache

from r1track.core import prompts
from r1track.core.drafts import Draft, Drafter
from r1track.core.graphs import FEWEST, STEP, FixedCache, Graphs, columns_of, staying
from r1track.core.models import Loaded, check_logits, suppressed
from r1track.core.pixels import pixel_values
from r1track.core.prompts import Messages

PLACE = "<|vision_start|>"  # the first token of an image's place; a prompt may be cut before it
DRAFT = 63  # most tokens of a draft
PASS = {"cuda": 256, "cpu": 32}  # most tokens of a pass with drafts, over all rows: more take longer, not as long
HOLES = 64  # most columns of the cache more than its longest open row has tokens; four times as many for a single row
# From logits (places, vocabulary): the next token of every place, and a value of it, such as its log-probability.
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
    """Encoded prompts, each with a draft behind it: last logits (rows, 1 + drafted, vocabulary), cache, mask of the
    prompts (rows, tokens), next positions (rows,). What is drafted may be shorter in some rows than in others.
    """

    logits: torch.Tensor
    cache: Any  # a DynamicCache; its updates have no precise types
    mask: torch.Tensor
    after: torch.Tensor
    ids: torch.Tensor  # (rows, tokens)
    drafts: list[Draft]


def width(rows: int, device: str) -> int:
    """How many tokens of each row a pass over `rows` rows has at most; one where there is no room for drafts."""
    return max(1, min(1 + DRAFT, PASS[device] // rows))


def most_holes(rows: int) -> int:
    """How many columns more than its longest open row has tokens a cache may have, before a draft."""
    return HOLES * max(1, 4 // rows)


def fixed_columns(tokens: int, rows: int, device: str) -> int:
    """Columns of a cache of fixed size for decoding in `rows` rows. tokens: most that a prompt and its answer have."""
    return -(-(tokens + most_holes(rows) + width(min(rows, FEWEST), device)) // STEP) * STEP


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

    max_tokens: maximum length of a completion. think: whether answers have reasoning before the box.
    graphs: those from which passes are replayed; None: every pass runs as it is.
    """

    def __init__(self, loaded: Loaded, *, max_tokens: int, think: bool = False, graphs: Graphs | None = None):
        self.loaded, self.max_tokens, self.think, self.graphs = loaded, max_tokens, think, graphs
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
        logits = self.forward(cache, **inputs, position_ids=positions, logits_to_keep=1)
        mask = inputs["attention_mask"]
        after = positions.masked_fill(mask == 0, 0).amax((0, 2)) + 1
        return Prefill(logits, cache, mask, after, inputs["input_ids"], [Draft([], [])] * len(mask))

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
            for layer in cache.layers:  # each by itself: a pass may have been broken off between them
                layer.crop(mask.shape[1] - layer.get_seq_length())
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

        images: the last image of every prompt, in RGB and of one size, which the image processor would not change. Of
        `question` only the text after its last image is read: it is the same in all prompts. examples: answers after
        which each is drafted; None: no drafts.
        """
        tail = self._texts(question)[1]
        if (tail, images[0].size) not in self.tails:
            inputs, tail_positions = self._inputs([tail], [images[0]])
            self.tails[tail, images[0].size] = inputs["input_ids"], tail_positions
        ids, positions = self.tails[tail, images[0].size]
        pixels = pixel_values(images, self.loaded.processor.image_processor, self.loaded.device)
        cache, mask = self._stack(prefixes)
        after = torch.tensor([prefix.after for prefix in prefixes], device=self.loaded.device)
        drafts = self._drafts([[]] * len(prefixes), examples)
        positions, after = positions + after[None, :, None], after + int(positions.max()) + 1
        inputs, mask = _behind(ids.expand(len(prefixes), -1), positions, mask, drafts)
        logits = self.forward(cache, **inputs, **pixels, logits_to_keep=1 + max(len(draft.tokens) for draft in drafts))
        cache = self.repeated(cache, mask, 1)
        prefill = Prefill(logits, cache, mask, after, ids, drafts)
        return [completion.tokens for completion in self.decode(prefill, greedy, self.ended, examples=examples)]

    @torch.no_grad()
    def repeated(self, cache: Any, mask: torch.Tensor, copies: int) -> Any:
        """A cache for decoding with each row `copies` times in turn. mask: of the prompts, (rows, columns)."""
        if self.graphs is None:
            if copies > 1:
                cache.batch_repeat_interleave(copies)
            return cache
        rows = len(mask) * copies
        columns = fixed_columns(mask.shape[1] + self.max_tokens, rows, self.loaded.device.type)
        return self.graphs.hold(self.model, cache, copies=copies, columns=columns, width=self._width(rows))

    def ended(self, tokens: list[int]) -> bool:
        """Whether the answer of these tokens is complete without an end token, see `prompts.complete`."""
        tokenizer, closing = self.loaded.processor.tokenizer, ">" if self.think else "]"
        if closing not in (tokenizer.convert_ids_to_tokens(tokens[-1]) or ""):  # spares decoding them all
            return False
        return prompts.complete(tokenizer.decode(tokens, skip_special_tokens=True), self.think) is not None

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
            shape = logits.shape[:2]
            tokens, values = (part.view(shape).tolist() for part in sampler(logits.flatten(0, 1)))
            taken = [draft.follow(drawn) for draft, drawn in zip(drafts, tokens, strict=True)]
            for row, places, drawn, some in zip(rows, taken, tokens, values, strict=True):
                for place in places:
                    if row in open_rows:
                        said = completions[row].tokens
                        said.append(drawn[place])
                        completions[row].values.append(some[place])
                        if said[-1] in self.ends or len(said) == self.max_tokens or (ended and ended(said)):
                            open_rows.remove(row)
            if not open_rows:
                return completions
            still = [row in open_rows for row in rows]
            mask = self._refuse(cache, mask, taken, shape[1], still)
            ids = mask.new_tensor([[drawn[places[-1]]] for drawn, places in zip(tokens, taken, strict=True)])
            after = after + after.new_tensor([len(places) for places in taken])
            if drop and 2 * len(open_rows) <= len(rows):
                fixed = isinstance(cache, FixedCache)
                places = staying(still) if fixed else [k for k, is_open in enumerate(still) if is_open]
                chosen = torch.tensor(places, device=mask.device)
                cache, rows = self._select(cache, chosen), [rows[k] for k in places]
                mask, ids, after = mask[chosen], ids[chosen], after[chosen]
            begun = [completions[row].tokens if row in open_rows else None for row in rows]
            drafts = self._drafts(begun, examples and [examples[row] for row in rows])
            inputs, mask = _behind(ids, (after - 1).expand(3, -1)[..., None], mask, drafts)
            logits = self.forward(cache, **inputs)

    def _select(self, cache: Any, rows: torch.Tensor) -> Any:
        """The cache of some rows alone, in their order."""
        if self.graphs and isinstance(cache, FixedCache):
            return self.graphs.select(cache, rows, self._width(len(rows)))
        cache.batch_select_indices(rows)
        return cache

    def forward(self, cache: Any, **inputs: Any) -> torch.Tensor:
        """The logits of a pass through the model; its keys and values go into the cache."""
        if self.graphs and isinstance(cache, FixedCache):
            return self.graphs.replay(inputs["input_ids"], inputs["position_ids"], inputs["attention_mask"])
        logits: torch.Tensor = self.model(**inputs, past_key_values=cache, use_cache=True).logits
        return logits

    def _width(self, rows: int) -> int:
        return width(rows, self.loaded.device.type)

    def _drafts(self, begun: Sequence[list[int] | None], examples: Examples | None) -> list[Draft]:
        """Drafts of what follows the tokens of every row; None: none for a row."""
        room = self._width(len(begun)) - 1
        if examples is None or room < 1:
            return [Draft([], [])] * len(begun)
        return [
            self.drafter.draft(tokens, some, room) if tokens is not None else Draft([], [])
            for tokens, some in zip(begun, examples, strict=True)
        ]

    def _refuse(
        self, cache: Any, mask: torch.Tensor, taken: list[list[int]], places: int, still: list[bool]
    ) -> torch.Tensor:
        """Hide what each row refused of its draft, and take out of the cache what lies behind all that was taken.

        mask: of the cache without drafts. taken: of every row's places, which are `places` with that before its draft.
        still: whether the row is open. Others go on, too, but only open ones decide how much the cache holds.
        """
        last = max(row[-1] for row in taken)
        cache.crop(last + 1 - places)
        if last:
            mask = torch.cat([mask, mask.new_tensor([[n in row for n in range(1, last + 1)] for row in taken])], 1)
        longest = int(mask[still].sum(1).max())
        if mask.shape[1] - longest <= most_holes(len(mask)):
            return mask
        order = mask.argsort(stable=True, dim=1)[:, -longest:]  # holes and padding come first
        if isinstance(cache, FixedCache):
            cache.keep(order)
        else:
            self.stacked = None  # its columns are moved
            for layer in cache.layers:
                layer.keys, layer.values = columns_of(layer.keys, order), columns_of(layer.values, order)
        return mask.gather(1, order)


def _behind(
    ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, drafts: list[Draft]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs of a pass over `ids` (rows, tokens), at positions (3, rows, tokens), with drafts behind them.

    mask: of what is in the cache, (rows, columns). It is returned with `ids`, without drafts.
    """
    mask = torch.cat([mask, mask.new_ones(ids.shape)], 1)
    drafted = max(len(draft.tokens) for draft in drafts)
    if not drafted:
        return {"input_ids": ids, "position_ids": positions, "attention_mask": mask}, mask
    tokens = np.zeros((len(drafts), drafted), int)
    sees = np.broadcast_to(np.eye(1 + drafted, dtype=bool), (len(drafts), 1 + drafted, 1 + drafted)).copy()
    for row, draft in enumerate(drafts):
        tokens[row, : len(draft.tokens)] = draft.tokens
        for place, parent in enumerate(draft.parents, 1):
            sees[row, place] |= sees[row, parent]
    tree = torch.from_numpy(sees[:, 1:, 1:]).to(ids.device)
    length, width = ids.shape[1], ids.shape[1] + drafted
    own = torch.ones(width, width, dtype=torch.bool, device=ids.device).tril().repeat(len(drafts), 1, 1)
    own[:, length:, length:] = tree
    before = mask[:, None, :-length].bool().expand(-1, width, -1)
    inputs = {
        "input_ids": torch.cat([ids, torch.from_numpy(tokens).to(ids.device)], 1),
        "position_ids": torch.cat([positions, positions[..., -1:] + tree.sum(2)], 2),
        "attention_mask": torch.cat([before, own], 2)[:, None],
    }
    return inputs, mask
