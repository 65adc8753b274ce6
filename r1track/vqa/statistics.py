"""Statistics of paired answers: the same items, asked to two models.

Throughout, b counts the items gained (wrong before, right after), c those lost, n all of them; d = (b - c) / n.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import bdtr, ndtri

from r1track.boxes import Array

CHUNK = 1_000_000  # random indices held at once


def _check(b: int, c: int, n: int) -> None:
    if min(b, c) < 0 or n < 1 or b + c > n:
        raise ValueError(f"gained {b} and lost {c} of {n} items cannot be; need 0 <= b, c and b + c <= n, n >= 1")


def mcnemar(b: int, c: int) -> float:
    """Two-sided p of McNemar's exact test that gains and losses are equally likely (McNemar 1947, binomial form)."""
    _check(b, c, max(1, b + c))
    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))


def tango_lower(b: int, c: int, n: int, alpha: float = 0.05) -> float:
    """One-sided lower bound of d at level 1 - alpha: where Tango's score statistic reaches z (Tango 1998).

    Raises ValueError when b and c are not counts among n.
    """
    _check(b, c, n)
    if c == n:
        return -1.0
    z = float(ndtri(1 - alpha))

    def excess(d: float) -> float:
        half = ((2 * n - b + c) * d - b - c) / (4 * n)
        lost = math.sqrt(max(0.0, half * half + c * d * (1 - d) / (2 * n))) - half  # its likeliest rate, were d true
        return b - c - n * d - z * math.sqrt(max(0.0, n * (2 * lost + d * (1 - d))))

    # At the estimate itself the variance can vanish (b = c = 0, or b = n), which would look like the root.
    return float(brentq(excess, -1.0, (b - c) / n - 1e-12, xtol=1e-13))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given (Holm 1979)."""
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = highest
    return adjusted


def clustered_bootstrap(
    differences: ArrayLike, clusters: Sequence[str], draws: int, seed: int | Sequence[int]
) -> Array:
    """Means of `differences` over `draws` resamples of whole clusters: array (draws,), same unit (Miller, 2411.00640).

    differences: (n,), one per item; clusters: the n names of what the items share, here images.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) != len(clusters) or not len(values):
        raise ValueError(f"{len(values)} differences for {len(clusters)} cluster names; need as many, at least one")
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    sums, sizes = np.bincount(member, weights=values), np.bincount(member)
    random = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(sums))
    means = []
    for start in range(0, draws, rows):
        drawn = random.integers(len(sums), size=(min(rows, draws - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)


def needed_items(variance: float, difference: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Items at which a true difference is told from none with this power, at a one-sided alpha.

    variance: of one item's paired difference; with 0/1 scores about the flip rate (b + c) / n. difference: not 0, in
    the unit whose square the variance has.
    """
    return math.ceil(variance * float((ndtri(power) + ndtri(1 - alpha)) / difference) ** 2)
