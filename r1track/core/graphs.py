"""Graphs: passes of decoding that a card repeats without Python.

A pass over a few tokens takes a card as long as Python takes to start its thousands of operations. A CUDA graph holds
them all and starts them at once, but works only on tensors of fixed size in fixed places: inputs of fixed width, and a
cache with room to spare. What is not used of both is hidden by the mask.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from r1track.core.errors import UserError

STEP = 64  # columns: a cache should have a multiple of them, so that few are made anew
FEWEST = 8  # no rows are dropped below so many: it would gain little time, and cost a graph
TOLERANCE = 0.05  # of the largest logit; kernels may be chosen anew, and round otherwise in 16 bits
REFUSED = "{}: a pass of this model cannot be recorded ({}); set it to false"
Layers = list[torch.Tensor]  # keys or values of every layer, (rows, heads, columns, width)


@dataclass
class FixedCache:
    """A cache of fixed size, for transformers' models: its first `filled` columns hold tokens.

    A pass writes at column `start`, a number on the card, and sees all columns.
    """

    keys: Layers
    values: Layers
    start: torch.Tensor
    filled: int = 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        columns = self.start + torch.arange(keys.shape[2], device=keys.device)
        return self.keys[layer].index_copy_(2, columns, keys), self.values[layer].index_copy_(2, columns, values)

    def get_seq_length(self) -> int:
        return self.filled

    def crop(self, columns: int) -> None:
        """Forget the last columns; their number is negative, as for transformers' caches."""
        self.filled += columns

    def keep(self, order: torch.Tensor) -> None:
        """Keep the columns that `order` (rows, columns) names, in its order."""
        self.filled = order.shape[1]
        for part in (*self.keys, *self.values):
            part[:, :, : self.filled] = columns_of(part, order)


class Recorded(NamedTuple):
    """A graph and the tensors that it reads and writes."""

    graph: Any  # a torch.cuda.CUDAGraph
    ids: torch.Tensor  # (rows, width)
    positions: torch.Tensor  # (3, rows, width)
    mask: torch.Tensor  # (rows, 1, width, columns)
    cache: FixedCache
    logits: torch.Tensor  # (rows, width, vocabulary)


def check_card(field: str) -> None:
    """Raise UserError where there is no card for the graphs that the setting `field` asks for."""
    if not torch.cuda.is_available():
        raise UserError(f"{field}: true, but torch finds no CUDA card here; set it to false")


def columns_of(part: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Of keys or values (rows, heads, columns, width) the columns that `order` (rows, columns) names, in its order."""
    return part.gather(2, order[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3]))


def staying(is_open: list[bool]) -> list[int]:
    """The places of the rows that stay when others are dropped: half of them as often as that holds all open ones, so
    that there are few numbers of rows.
    """
    size = len(is_open)
    while size > FEWEST and (half := max(FEWEST, (size + 1) // 2)) >= sum(is_open):
        size = half
    return sorted(sorted(range(len(is_open)), key=lambda place: not is_open[place])[:size])


class Graphs:
    """The graphs of a model, recorded when they are first needed: one for each number of rows.

    field: the setting that asks for them. All work in the same memory, that of the largest cache so far; for a larger
    one they are recorded anew. Raises UserError where there is no card.
    """

    def __init__(self, field: str):
        check_card(field)
        self.field = field
        self.model: Any = None
        self.keys, self.values = list[torch.Tensor](), list[torch.Tensor]()
        self.logits = torch.empty(0)  # (tokens, vocabulary); every graph writes here
        self.recorded: dict[int, Recorded] = {}

    def hold(self, model: Any, cache: Any, *, copies: int, columns: int, width: int) -> FixedCache:
        """A cache of at least `columns` columns that holds what a DynamicCache does, each row `copies` times in turn.

        It is for passes over at most `width` tokens in each row, and the same in every call with as many rows. Raises
        UserError for a model whose passes cannot be recorded.
        """
        keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
        firsts, heads, filled, size = keys[0].shape
        rows, (most, most_columns) = firsts * copies, self.keys[0].shape[:3:2] if self.keys else (0, 0)
        if model is not self.model or rows > most or columns > most_columns:
            self.model = model
            self.recorded.clear()
            self.keys, self.values = [], []  # before larger ones are made
            shape = max(rows, most), heads, max(columns, most_columns), size
            self.keys, self.values = ([part.new_zeros(shape) for part in side] for side in (keys, values))
        fixed = self._recorded(rows, width).cache
        fixed.filled = filled
        for part, of_firsts in zip((*fixed.keys, *fixed.values), (*keys, *values), strict=True):
            part[:, :, :filled].unflatten(0, (firsts, copies)).copy_(of_firsts[:, None])
        return fixed

    def select(self, cache: FixedCache, rows: torch.Tensor, width: int) -> FixedCache:
        """A cache of some rows alone, in their order; the other one is lost."""
        if len(rows) == len(cache.keys[0]):
            return cache
        fewer = self._recorded(len(rows), width).cache
        fewer.filled = cache.filled
        for part, whole in zip((*fewer.keys, *fewer.values), (*cache.keys, *cache.values), strict=True):
            part[:, :, : cache.filled] = whole[rows, :, : cache.filled]
        return fewer

    def _recorded(self, rows: int, width: int) -> Recorded:
        if rows not in self.recorded:
            self.recorded[rows] = self._record(rows, width)
        return self.recorded[rows]

    def _record(self, rows: int, width: int) -> Recorded:
        """Record a pass over `width` tokens in each row; it writes into the cache's last columns, which are free."""
        keys, values = ([part[:rows] for part in side] for side in (self.keys, self.values))
        device, columns = keys[0].device, keys[0].shape[2]
        cache = FixedCache(keys, values, torch.tensor(columns - width, device=device))
        ids = torch.zeros(rows, width, dtype=torch.long, device=device)
        positions = torch.zeros(3, rows, width, dtype=torch.long, device=device)
        mask = torch.ones(rows, 1, width, columns, dtype=torch.bool, device=device)

        def work() -> torch.Tensor:
            named = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
            logits: torch.Tensor = self.model(**named, past_key_values=cache, use_cache=True).logits
            return logits.flatten(0, 1)

        side: Any = torch.cuda.Stream()  # what first passes set up, or compile, is not for the record
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
            logits = work()
        torch.cuda.current_stream().wait_stream(side)
        if len(self.logits) < len(logits):
            self.logits = torch.empty_like(logits)
        written = self.logits[: len(logits)]
        graph, pool = torch.cuda.CUDAGraph(), next((known.graph.pool() for known in self.recorded.values()), None)
        try:  # other threads read frames meanwhile
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                written.copy_(work())
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(REFUSED.format(self.field, str(error).splitlines()[0])) from error
        ids.fill_(1)
        logits = work()
        graph.replay()
        if not (written - logits).abs().max() <= TOLERANCE * logits.abs().max():  # something ran beside the record
            raise UserError(REFUSED.format(self.field, "its replay gives other logits"))
        return Recorded(graph, ids, positions, mask, cache, written.unflatten(0, (rows, width)))

    def replay(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits (rows, tokens, vocabulary) of a pass over `ids` (rows, tokens), valid until the next pass.

        Keys and values go into the cache that `hold` or `select` returned for as many rows.

        mask: (rows, 1, tokens, columns), the last of which are those of the tokens; (rows, columns) for one token.
        """
        tokens = ids.shape[1]
        recorded = self.recorded[len(ids)]
        mask = mask[:, None, None].bool() if mask.dim() == 2 else mask
        spare, unused = recorded.ids.shape[1] - tokens, recorded.mask.shape[3] - mask.shape[3]
        recorded.ids.copy_(pad(ids, (0, spare)))
        recorded.positions.copy_(pad(positions, (0, spare)))
        # Tokens to spare see what the last one sees: whoever saw nothing would not be a number.
        recorded.mask.copy_(pad(torch.cat([mask, mask[:, :, -1:].expand(-1, -1, spare, -1)], 2), (0, unused)))
        recorded.cache.start.fill_(recorded.cache.filled)
        recorded.graph.replay()
        recorded.cache.filled += tokens
        return recorded.logits[:, :tokens]
