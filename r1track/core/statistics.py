"""Statistics of paired answers: two models answer the same items, one before and one after training.

In this module b is the number of items gained (wrong before, right after), c the number lost, n the number of all
items, and d = (b - c) / n. For scores between 0 and 1, b and c are the sums of the gains and of the losses.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import binomtest

from r1track.core.boxes import Array

BLOCK = 2**20  # picks of a bootstrap that are held at a time


def _check(b: float, c: float, n: float) -> None:
    if min(b, c) < 0 or n <= 0 or b + c > n + 1e-9:
        raise ValueError(f"gained {b} and lost {c} of {n} items cannot be; need b >= 0, c >= 0, n > 0, b + c <= n")


def mcnemar(b: int, c: int) -> float:
    """Two-sided p value of McNemar's exact test that gains and losses are equally likely (McNemar 1947).

    1 without gains and losses. Raises ValueError for negative counts.
    """
    _check(b, c, max(1, b + c))
    return float(binomtest(b, b + c).pvalue) if b + c else 1.0


def tango_lower(b: float, c: float, n: float, alpha: float = 0.05) -> float:
    """One-sided lower bound of d at level 1 - alpha: where Tango's score statistic is z (Tango 1998).

    The upper bound of (b, c) is minus the lower bound of (c, b). With scores between 0 and 1 the bound is conservative:
    of all changes with the same sums of gains and losses, changes by a whole point have the largest variance. Raises
    ValueError when b or c is negative or b + c is larger than n.
    """
    _check(b, c, n)
    if c >= n - 1e-9:
        return -1.0
    z = float(ndtri(1 - alpha))

    def excess(d: float) -> float:
        half = ((2 * n - b + c) * d - b - c) / (4 * n)
        # The maximum-likelihood estimate of the rate of losses, given d.
        lost = math.sqrt(max(0.0, half * half + c * d * (1 - d) / (2 * n))) - half
        return b - c - n * d - z * math.sqrt(max(0.0, n * (2 * lost + d * (1 - d))))

    # The search ends below (b - c) / n: the variance can be 0 there (b = c = 0, or b = n) and look like the root.
    return float(brentq(excess, -1.0, (b - c) / n - 1e-12, xtol=1e-13))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order of `p` (Holm 1979)."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = highest
    return adjusted


def clustered_bootstrap(
    differences: ArrayLike, clusters: Sequence[str], draws: int, seed: int | Sequence[int]
) -> Array:
    """Means of `differences` over `draws` resamples of whole clusters: shape (draws,), in their unit.

    differences: shape (n,), one per item. clusters: for each item the name of its cluster, such as its image.
    Raises ValueError for no differences, or another number of names. Source: Miller, arXiv 2411.00640.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) != len(clusters) or not len(values):
        raise ValueError(f"{len(values)} differences for {len(clusters)} cluster names; need as many, at least one")
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    # Clusters with the same sum and size can replace one another: it is enough to draw how many of each kind there are.
    kinds = np.stack([np.bincount(member, weights=values).round(9), np.bincount(member)])
    (sums, sizes), counts = np.unique(kinds, axis=1, return_counts=True)
    resamples = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=draws)
    return (resamples @ sums) / (resamples @ sizes)


def crossed_bootstrap(first: Array, second: Array, sizes: Array, draws: int, seed: int, *, paired: bool) -> Array:
    """Differences of two pooled scores over resamples of seeds and of items: shape (3, draws).

    The rows: both are drawn, the seeds alone, the items alone. first, second: sums over n items, shape (seeds, n), at
    least two seeds each. sizes: what each item weighs, shape (n,). paired: whether row k of both is of one seed, which
    are drawn together. Sources: Owen 2007 (seeds and items are drawn apart); McCarthy and Snowden 1985 (of m seeds
    m - 1 are drawn: by m, the variance of few would be too small).
    """
    random, n, block = np.random.default_rng(seed), len(sizes), max(1, BLOCK // len(sizes))
    mean, values = first.mean(0) - second.mean(0), np.empty((3, draws))

    def shares(seeds: int, count: int) -> Array:
        return random.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=count) / (seeds - 1)

    for start in range(0, draws, block):
        part = values[:, start : start + block]
        one = shares(len(first), part.shape[1])
        sums = one @ first - (one if paired else shares(len(second), part.shape[1])) @ second
        items = random.multinomial(n, np.full(n, 1 / n), size=part.shape[1])
        weights = items @ sizes
        part[:] = (sums * items).sum(1) / weights, sums.sum(1) / sizes.sum(), items @ mean / weights
    return values


def bootstrap_p(draws: Array) -> float:
    """Two-sided p value of no difference: twice the smaller fraction of the bootstrap's draws <= 0 or >= 0."""
    return min(1.0, 2 * (1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))) / (1 + len(draws)))


def mean_bounds(differences: ArrayLike, low: ArrayLike, high: ArrayLike) -> tuple[float, float]:
    """Bounds of the mean of independent differences, from the bounds of every one (MOVER, Zou and Donner 2008)."""
    d = np.asarray(differences, dtype=np.float64)
    down, up = (float(np.linalg.norm(d - np.asarray(ends))) / len(d) for ends in (low, high))
    return float(d.mean()) - down, float(d.mean()) + up


def needed_items(variance: float, difference: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Number of items at which a true difference is significant with this power, at a one-sided alpha.

    variance: of one item's paired difference; with 0/1 scores about (b + c) / n. difference: not 0; the variance is in
    the square of its unit.
    """
    return math.ceil(variance * float((ndtri(power) + ndtri(1 - alpha)) / difference) ** 2)
