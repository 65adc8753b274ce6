"""Statistics of paired answers: the same items, asked to two models.

Throughout, b counts the items gained (wrong before, right after), c those lost, n all of them; d = (b - c) / n. Where
scores lie between 0 and 1, b and c are the sums of the gains and of the losses.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import bdtr, ndtri

from r1track.core.boxes import Array


def _check(b: float, c: float, n: float) -> None:
    if min(b, c) < 0 or n <= 0 or b + c > n + 1e-9:
        raise ValueError(f"gained {b} and lost {c} of {n} items cannot be; need 0 <= b, c and b + c <= n, n > 0")


def mcnemar(b: int, c: int) -> float:
    """Two-sided p of McNemar's exact test that gains and losses are equally likely (McNemar 1947, binomial form)."""
    _check(b, c, max(1, b + c))
    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))


def tango_lower(b: float, c: float, n: float, alpha: float = 0.05) -> float:
    """One-sided lower bound of d at level 1 - alpha: where Tango's score statistic reaches z (Tango 1998).

    The upper bound of (b, c) is minus the lower bound of (c, b). With partial scores the bound is on the safe side: of
    all changes with the same sums of gains and losses, those by whole points have the largest variance. Raises
    ValueError when b and c cannot be among n.
    """
    _check(b, c, n)
    if c >= n - 1e-9:
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
    # Clusters of the same sum and size are alike: how many of each kind are drawn is all that a resample says.
    each = np.stack([np.bincount(member, weights=values).round(9), np.bincount(member)])
    (sums, sizes), many = np.unique(each, axis=1, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(many.sum(), many / many.sum(), size=draws)
    return (drawn @ sums) / (drawn @ sizes)


def bootstrap_p(draws: Array) -> float:
    """Two-sided p of no difference: twice the smaller share of the bootstrap's draws on either side of 0."""
    return min(1.0, 2 * (1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))) / (1 + len(draws)))


def mean_bounds(differences: ArrayLike, low: ArrayLike, high: ArrayLike) -> tuple[float, float]:
    """Bounds of the unweighted mean of independent differences from the bounds of each (MOVER, Zou and Donner 2008)."""
    d = np.asarray(differences, dtype=np.float64)
    down, up = (float(np.linalg.norm(d - np.asarray(ends))) / len(d) for ends in (low, high))
    return float(d.mean()) - down, float(d.mean()) + up


def needed_items(variance: float, difference: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Items at which a true difference is told from none with this power, at a one-sided alpha.

    variance: of one item's paired difference; with 0/1 scores about the flip rate (b + c) / n. difference: not 0, in
    the unit whose square the variance has.
    """
    return math.ceil(variance * float((ndtri(power) + ndtri(1 - alpha)) / difference) ** 2)
