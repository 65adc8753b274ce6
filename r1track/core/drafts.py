"""Drafts: what an answer probably says next, so that the decoder can check several tokens in one pass.

The model's own answers look alike: the same words and brackets, often the same digits. So an answer is drafted after
others, *examples*, number by number: where a number differs, its rest and what follows are drafted again. A wrong draft
changes no answer.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import chain, groupby
from typing import Any

from r1track.core import prompts

TAG = "<answer>"
LONGEST = 64  # tokens of an answer behind the tag; longer ones are not drafted to their end


class Drafter:
    """Drafts answers in the vocabulary of a tokenizer; with `think` only what stands behind the answer's tag."""

    def __init__(self, tokenizer: Any, think: bool):
        self.tokenizer, self.think = tokenizer, think
        numbers = tokenizer.convert_tokens_to_ids([str(n) for n in range(1000)])
        self.digits = {i: n for n, i in enumerate(numbers) if i not in (None, tokenizer.unk_token_id)}

    def example(self, prompt: str) -> list[int]:
        """An answer such as a prompt may get: the first box in it; empty where it has none."""
        box = re.search(r"\[\d+(?:, ?\d+){3}\]", prompt)
        if box is None:
            return []
        text = prompts.thoughtful("", box[0]) if self.think else box[0]
        return [*self.tokenizer(text)["input_ids"], self.tokenizer.eos_token_id]

    def draft(self, tokens: list[int], examples: Iterable[list[int]]) -> list[int]:
        """What may follow the tokens of an answer: as in the first of the examples that begins like it, or nothing."""
        answer = self._answer(tokens)
        if answer is None:
            return []
        known = (part for part in map(self._answer, examples) if part)
        return next(filter(None, (aligned(answer, example, self.digits) for example in known)), [])

    def _answer(self, tokens: list[int]) -> list[int] | None:
        """The tokens of the answer itself; None before its tag."""
        if not self.think:
            return tokens
        tail, decode = tokens[-LONGEST:], self.tokenizer.decode
        if TAG not in decode(tail):
            return None
        return tail[bisect_left(range(len(tail)), True, key=lambda n: TAG in decode(tail[:n])) :]


def aligned(tokens: list[int], example: list[int], digits: Mapping[int, int]) -> list[int]:
    """What follows `tokens`, the beginning of an answer, if it goes on like the example; nothing if it does not fit.

    The words between numbers must be those of the example, the numbers need not; the rest of one that differs is
    drafted as near to the example's as it can be. digits: value by id of the tokens in numbers, from 0 upwards.
    """
    parts, known = ([list(run) for _, run in groupby(ids, digits.__contains__)] for ids in (tokens, example))
    if not parts or len(parts) > len(known):
        return [] if parts else example
    now, then = parts[-1], known[len(parts) - 1]
    begun, rest = then[: len(now)], then[len(now) :]
    pairs = zip(parts, [*known[: len(parts) - 1], begun], strict=True)
    if any(own != its and {own[0], its[0]} - digits.keys() for own, its in pairs):
        return []
    if now != begun:
        above = [digits[i] for i in now] > [digits[i] for i in begun]
        rest = [list(digits)[0 if above else 9]] * len(rest)
    return [*rest, *chain(*known[len(parts) :])]
