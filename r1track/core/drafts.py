"""Drafts: what an answer probably says next, so that the decoder can check several tokens in one pass.

The model's own answers look alike: the same words and brackets, numbers that are near. So an answer is drafted after
others, *examples*: their words, and near each of their numbers the likeliest ones. What may follow an answer is a tree:
after each token one or several others, and of all that could be in it those that are most likely to be reached. A wrong
draft changes no answer.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from heapq import heappop, heappush
from itertools import count, groupby
from math import exp
from typing import Any, NamedTuple

from r1track.core import prompts

TAG = "<answer>"
LONGEST = 64  # tokens of an answer behind the tag; longer ones are not drafted to their end
NEAR, REACH = 6, 30  # a number as far from the example's is e times less likely; none is farther
Runs = list[tuple[int, ...]]  # tokens of an answer: those of a number, those of words, in turn


class Draft(NamedTuple):
    """A tree of tokens that may follow. parents: the place of the token before each: 0 for the answer's last one, n for
    the n-th of these. A token stands behind its parent, and before its less likely siblings.
    """

    tokens: list[int]
    parents: list[int]

    def follow(self, drawn: list[int]) -> list[int]:
        """The places that a row takes: 0, then those whose tokens were drawn, one after another.

        drawn: the token that the model says behind each place.
        """
        places, known = [0], {place: n for n, place in enumerate(zip(self.parents, self.tokens, strict=True), 1)}
        while n := known.get((places[-1], drawn[places[-1]])):
            places.append(n)
        return places


class Drafter:
    """Drafts answers in the vocabulary of a tokenizer; with `think` only what stands behind the answer's tag."""

    def __init__(self, tokenizer: Any, think: bool):
        self.tokenizer, self.think = tokenizer, think
        ids = zip(map(str, range(1000)), tokenizer.convert_tokens_to_ids([str(n) for n in range(1000)]), strict=True)
        self.ids = {text: i for text, i in ids if i not in (None, tokenizer.unk_token_id)}
        self.digits = {i: text for text, i in self.ids.items()}
        self.near = lru_cache(4096)(self._near)
        self.in_word = lru_cache(4096)(lambda i: re.search(r"[^\W\d]$", tokenizer.decode([i])) is not None)

    def example(self, prompt: str) -> list[int]:
        """An answer such as a prompt may get: the first box in it; empty where it has none."""
        box = re.search(r"\[\d+(?:, ?\d+){3}\]", prompt)
        if box is None:
            return []
        text = prompts.thoughtful("", box[0]) if self.think else box[0]
        return [*self.tokenizer(text)["input_ids"], self.tokenizer.eos_token_id]

    def draft(self, tokens: list[int], examples: Iterable[list[int]], most: int) -> Draft:
        """At most `most` tokens after those of an answer, as in the first of the examples that begins like it."""
        answer = self._answer(tokens)
        known = (part for part in map(self._answer, examples) if part) if answer is not None else ()
        drafts = (self.tree(answer or [], example, most) for example in known)
        return next((draft for draft in drafts if draft.tokens), Draft([], []))

    def _answer(self, tokens: list[int]) -> list[int] | None:
        """The tokens of the answer itself; None before its tag."""
        if not self.think:
            return tokens
        tail, decode = tokens[-LONGEST:], self.tokenizer.decode
        if TAG not in decode(tail):
            return None
        return tail[bisect_left(range(len(tail)), True, key=lambda n: TAG in decode(tail[:n])) :]

    def tree(self, tokens: list[int], example: list[int], most: int) -> Draft:
        """What follows `tokens`, the beginning of an answer, if it goes on like the example; else nothing.

        The words between numbers must be those of the example, the numbers need not.
        """
        own, runs = self._runs(tokens), self._runs(example)
        draft, heap, order = Draft([], []), list[tuple[Any, ...]](), count()
        k, now = (len(own) - 1, own[-1]) if own else (0, ())
        pairs = zip(own, [*runs[:k], runs[k][: len(now)]] if k < len(runs) else [], strict=False)
        if k >= len(runs) or any(a != b and {a[0], b[0]} - self.digits.keys() for a, b in pairs):
            return draft
        place, odds = 0, 1.0
        while len(draft.tokens) < most:
            for token, share, *state in self._next(runs, k, now):
                heappush(heap, (-odds * share, next(order), place, token, *state))
            if not heap:
                break
            odds, _, parent, token, k, now = heappop(heap)
            draft.tokens.append(token)
            draft.parents.append(parent)
            place, odds = len(draft.tokens), -odds
        return draft

    def _runs(self, ids: list[int]) -> Runs:
        numbers: list[bool] = []  # of every token: whether it is part of a number; the 2 in `bbox_2d` is not
        for last, i in zip([None, *ids], ids, strict=False):
            begins = last not in self.digits and (last is None or not self.in_word(last))
            numbers.append(i in self.digits and (begins or (last in self.digits and numbers[-1])))
        return [tuple(i for i, _ in run) for _, run in groupby(zip(ids, numbers, strict=True), lambda pair: pair[1])]

    def _next(self, runs: Runs, k: int, now: tuple[int, ...]) -> Iterator[tuple[int, float, int, tuple[int, ...]]]:
        """The tokens that may follow `now`, the beginning of run k; their probabilities, and run and beginning then."""
        run = runs[k]
        if run[0] in self.digits:
            following = self._numbers(run, now)
        else:
            following = {run[len(now)] if len(now) < len(run) else None: 1.0}
        for token, share in following.items():
            if token is not None:
                yield token, share, k, (*now, token)
            elif k + 1 < len(runs):
                yield from ((i, share * rest, n, begun) for i, rest, n, begun in self._next(runs, k + 1, ()))

    def _numbers(self, run: tuple[int, ...], now: tuple[int, ...]) -> Mapping[int | None, float]:
        """What may follow `now`, the beginning of a number like that of `run`: tokens, None for its end."""
        value, begun = (int("".join(self.digits[i] for i in ids[:9]) or 0) for ids in (run, now))
        table = self.near(value)
        if now not in table:  # far from it: as near as such a beginning allows
            scale = 10 ** max(len(run) - len(now), 0)
            table = self.near(min(max(value, begun * scale), (begun + 1) * scale - 1))
        return table.get(now, {None: 1.0})

    def _near(self, value: int) -> Mapping[tuple[int, ...], Mapping[int | None, float]]:
        """What may follow each beginning of the numbers near `value`, with its probability."""
        table: dict[tuple[int, ...], dict[int | None, float]] = {}
        for n in range(max(0, value - REACH), value + REACH + 1):
            spelled = (
                (self.ids[text],) if (text := str(n)) in self.ids else tuple(self.ids[c] for c in text if c in self.ids)
            )
            for k, token in enumerate((*spelled, None)):
                following = table.setdefault(spelled[:k], {})
                following[token] = following.get(token, 0) + exp(-abs(n - value) / NEAR)
        totals = {now: sum(following.values()) for now, following in table.items()}
        return {now: {i: w / totals[now] for i, w in following.items()} for now, following in table.items()}
