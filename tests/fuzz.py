"""Mutated texts for property tests: the same for the same seed."""

import random

PIECES = [
    "[", "]", "{", "}", "(", ")", ",", ":", '"', "'", "\\", "```", "json", "<think>", "</think>", "<answer>",
    "</answer>", '"bbox_2d"', "-", "+", ".", "%", "e9", "e999", "0", "7", "42", "1e308", "-0.0", "NaN", "Infinity",
    "null", " ", "\n", "\r", "\t", "\x00", "\x85", "\u2028", "\ufeff", "\ud800", "é", "İ", "ß", "２", "²", "😀",
    "the", "A",
]  # fmt: skip


def mutated(count: int, seed: int, start: list[str]) -> list[str]:
    """`count` texts: pieces in random order, and the texts of `start` with pieces put in, cut out and copied."""
    rng, texts = random.Random(seed), list[str]()
    for _ in range(count):
        text = rng.choice([*start, ""])
        for _ in range(rng.randint(0, 6)):
            place, end = sorted(rng.randint(0, len(text)) for _ in range(2))
            action = rng.choice(["insert", "insert", "cut", "copy", "swap"])
            if action == "insert":
                text = text[:place] + rng.choice(PIECES) + text[place:]
            elif action == "cut":
                text = text[:place] + text[end:]
            elif action == "copy":
                text = text[:end] + text[place:]
            else:
                text = text[end:] + text[:place]
        texts.append(text)
    return texts
