"""How often the verdict's rule is wrong: simulated models whose true loss is known, judged by the rule itself.

    python bench/verdict.py [--runs 2000] [--only TEXT] > table.md

A simulated base answers 70 % of the items correctly. The score of a share of the items changes; gains and losses are as
frequent as the true difference requires. Where several questions share an image, half of them change as the image's
first question does. docs/verdict.md holds the table that this prints; it takes about half an hour on one core.
"""

import argparse
import sys

import numpy as np
from rich.progress import track as progress

from r1track.ability.verdict import decide, set_statistics
from r1track.core import schema
from r1track.core.boxes import Array

RULE = schema.Verdict()
DIFFERENCES = (0, -1, -2, -5)
# Name, sets, items of each, share of them that change, questions on one image, whether scores are soft.
CASES = [
    ("one set of 500", 1, 500, 0.08, 1, False),
    ("one set of 500, few changes", 1, 500, 0.05, 1, False),
    ("one set of 500, many changes", 1, 500, 0.2, 1, False),
    ("one set of 1000", 1, 1000, 0.08, 1, False),
    ("one set of 1500, three questions on an image", 1, 1500, 0.08, 3, False),
    ("one set of 3000", 1, 3000, 0.08, 1, False),
    ("one set of 500, soft scores", 1, 500, 0.16, 1, True),
    ("six sets of 500", 6, 500, 0.08, 1, False),
    ("six sets of 500, the loss in two of them", 6, 500, 0.2, 1, False),
    ("six sets of 500, soft scores", 6, 500, 0.2, 1, True),
]


def scores(random: np.random.Generator, items: int, drop: float, flips: float, shared: int, soft: bool) -> Array:
    """Scores (items, 2) of base and tuned, from 0 to 1; their expected difference is `drop`, from -1 to 1.

    flips: share of the items whose score changes; shared: questions on one image; soft: whether scores are partial.
    """
    size = 0.5 if soft else 1.0  # what a change is worth on average
    lost, gained = (flips - drop / size) / 2, (flips + drop / size) / 2
    assert min(lost, gained) >= 0
    kinds = random.choice([-1, 1, 0], p=[lost, gained, 1 - lost - gained], size=items)
    first = np.arange(items) // shared * shared
    kinds = np.where(random.random(items) < 0.5, kinds[first], kinds)
    step = random.choice([0.3, 0.4, 0.6, 0.7], size=items) if soft else np.ones(items)
    before = np.where(kinds < 0, 1.0, np.where(kinds > 0, 1 - step, random.random(items) < 0.7))
    return np.stack([before, before + kinds * step], axis=1)


def simulate(case: tuple[str, int, int, float, int, bool], drop: float, runs: int) -> dict[str, float]:
    """Shares, in percent, of the verdicts on `runs` simulated models whose true mean difference is `drop` points."""
    name, set_count, items, flips, shared, soft = case
    drops = [drop / 100] * set_count
    if "two of them" in name:
        drops = [drop / 100 * set_count / 2] * 2 + [0.0] * (set_count - 2)
    images = [str(place // shared) for place in range(items)]
    counts = {"RETAINED": 0, "REGRESSED": 0, "INCONCLUSIVE": 0}
    random = np.random.default_rng([set_count, items, int(1000 * flips), shared, soft, abs(int(drop))])
    for run in range(runs):
        sets, draws = {}, []
        for place, set_drop in enumerate(drops):
            answers = scores(random, items, set_drop, flips, shared, soft)
            sets[str(place)], set_draws = set_statistics(answers, images, RULE, [run, place])
            draws.append(set_draws)
        counts[decide(sets, draws, [], RULE).verdict] += 1
    return {verdict: 100 * count / runs for verdict, count in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--only", default="", help="run only the cases whose name contains this")
    args, out = parser.parse_args(), sys.stdout
    out.write("| sets and items | changed | true difference | RETAINED | REGRESSED | INCONCLUSIVE |\n")
    out.write("|---|--:|--:|--:|--:|--:|\n")
    for case in progress([case for case in CASES if args.only in case[0]]):
        for drop in DIFFERENCES:
            shares = " | ".join(f"{share:.1f} %" for share in simulate(case, drop, args.runs).values())
            out.write(f"| {case[0]} | {100 * case[3]:.0f} % | {drop:+d} | {shares} |\n")
            out.flush()


if __name__ == "__main__":
    main()
