"""The statistics of paired answers agree with published vectors, closed forms and independent implementations."""

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from r1track.core.statistics import (
    bootstrap_p,
    clustered_bootstrap,
    crossed_bootstrap,
    holm,
    mcnemar,
    mean_bounds,
    needed_items,
    tango_lower,
)

Z = stats.norm.ppf(0.95)
TANGO = [(20, 20, 500, -0.02138), (15, 30, 500, -0.05307), (0, 5, 500, -0.02040), (100, 120, 3000, -0.01487)]


@pytest.mark.parametrize(("b", "c", "n", "bound"), TANGO)
def test_tango_bound_has_the_published_values(b, c, n, bound):
    assert tango_lower(b, c, n) == pytest.approx(bound, abs=5e-6)


@pytest.mark.parametrize("n", [1, 30, 500, 100_000])
def test_tango_bound_without_any_flip_has_its_closed_form(n):
    assert tango_lower(0, 0, n) == pytest.approx(-(Z**2) / (n + Z**2), abs=1e-9)


@pytest.mark.parametrize("n", [5, 400])
def test_tango_bound_when_all_items_flip_one_way_has_its_closed_form(n):
    assert tango_lower(n, 0, n) == pytest.approx((n - Z**2) / (n + Z**2), abs=1e-9)
    assert tango_lower(0, n, n) == -1


@pytest.mark.parametrize(
    ("b", "c", "n"), [(15, 30, 500), (3, 0, 40), (0, 5, 500), (60, 100, 300), (7, 2, 9), (0, 39, 40)]
)
def test_tango_bound_is_where_the_score_statistic_of_the_fitted_trinomial_reaches_z(b, c, n):
    d = tango_lower(b, c, n)

    def unlikelihood(lost):  # of the trinomial with rates lost + d, lost and the rest
        gained, rest = lost + d, 1 - 2 * lost - d
        terms = [k * math.log(rate) for k, rate in ((b, gained), (c, lost), (n - b - c, rest)) if k]
        return -sum(terms)

    bounds = max(0.0, -d) + 1e-12, (1 - d) / 2 - 1e-12
    fit = optimize.minimize_scalar(unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12})
    statistic = (b - c - n * d) / math.sqrt(n * (2 * fit.x + d - d**2))
    assert statistic == pytest.approx(Z, abs=1e-4)


def test_tango_bound_falls_when_fewer_errors_are_allowed():
    assert tango_lower(15, 30, 500, alpha=0.01) < tango_lower(15, 30, 500) < -15 / 500


def test_tango_bound_of_partial_scores_lies_below_the_bootstraps():
    random = np.random.default_rng(2)
    for steps in ([0.3], [0.3, 0.6, 0.9], [0.05, 1.0]):
        change = random.choice([-1, 0, 1], p=[0.07, 0.88, 0.05], size=800) * random.choice(steps, size=800)
        bound = tango_lower(change.clip(0).sum(), -change.clip(None, 0).sum(), 800)
        draws = clustered_bootstrap(change, [str(i) for i in range(800)], 10_000, 0)
        assert bound < np.quantile(draws, 0.05)


@pytest.mark.parametrize("flips", [0.02, 0.03, 0.08])
def test_tango_bound_at_two_and_a_half_percent_errs_no_more_often_by_exact_count(flips):
    n, margin = 500, 0.02
    gained, lost = (flips - margin) / 2, (flips + margin) / 2
    b, c = np.meshgrid(np.arange(45), np.arange(70), indexing="ij")
    likely = stats.multinomial.pmf(np.stack([b, c, n - b - c], -1), n, [gained, lost, 1 - flips])
    assert likely.sum() == pytest.approx(1, abs=1e-6)
    ruled_out = [likely[i, j] for i, j in np.argwhere(likely > 1e-9) if tango_lower(i, j, n, 0.025) > -margin]
    assert 0.005 < sum(ruled_out) <= 0.025


def test_bounds_of_a_mean_of_one_are_its_own_and_of_equals_shrink_with_the_root_of_their_number():
    assert mean_bounds([-1.0], [-3.0], [2.5]) == pytest.approx((-3, 2.5))
    assert mean_bounds([-1.0] * 4, [-3.0] * 4, [2.5] * 4) == pytest.approx((-2, 0.75))


def test_bounds_of_a_mean_are_walds_where_the_parts_are_walds():
    d, errors = np.array([-1.0, 0.5, 2.0]), np.array([0.4, 0.3, 0.9])
    whole = Z * np.sqrt((errors**2).sum()) / 3
    assert mean_bounds(d, d - Z * errors, d + Z * errors) == pytest.approx((d.mean() - whole, d.mean() + whole))


@pytest.mark.parametrize(("b", "c", "n"), [(-1, 0, 10), (6, 5, 10), (0, 0, 0)])
def test_impossible_counts_are_refused(b, c, n):
    with pytest.raises(ValueError, match="cannot be"):
        tango_lower(b, c, n)


def test_mcnemar_has_the_published_value():
    assert mcnemar(15, 30) == pytest.approx(0.03570, abs=5e-6)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (5, 5), (3, 12), (12, 3), (100, 120), (0, 400)])
def test_mcnemar_is_the_binomial_test_and_symmetric(b, c):
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    assert mcnemar(b, c) == pytest.approx(min(1, 2 * tail / 2 ** (b + c)), rel=1e-9)
    assert mcnemar(b, c) == pytest.approx(min(1, 2 * special.bdtr(min(b, c), b + c, 0.5)), rel=1e-12)
    assert mcnemar(b, c) == mcnemar(c, b)


@pytest.mark.parametrize(("b", "c"), [(-1, 3), (3, -1)])
def test_mcnemar_refuses_negative_counts(b, c):
    with pytest.raises(ValueError, match="cannot be"):
        mcnemar(b, c)


def test_holm_multiplies_by_the_tests_that_remain_and_never_falls():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_bootstrap_agrees_with_scipy_when_every_item_is_its_own_cluster():
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], p=[0.08, 0.87, 0.05], size=600)
    mine = np.quantile(clustered_bootstrap(values, [str(i) for i in range(600)], 20_000, 0), [0.05, 0.95])
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=2)
    assert mine == pytest.approx(list(theirs.confidence_interval), abs=1e-3)


def test_bootstrap_of_repeated_items_in_one_cluster_is_that_of_the_items_once():
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], p=[0.08, 0.87, 0.05], size=400)
    once = clustered_bootstrap(values, [f"i{i}" for i in range(400)], 4000, 0)
    names = [f"i{i}" for i in range(400)]
    fourfold = clustered_bootstrap(np.tile(values, 4), names * 4, 4000, 0)
    apart = clustered_bootstrap(np.tile(values, 4), [str(i) for i in range(1600)], 4000, 0)
    assert fourfold.std() == pytest.approx(once.std(), rel=0.05)
    assert apart.std() == pytest.approx(once.std() / 2, rel=0.05)


def test_bootstrap_weighs_clusters_by_their_items():
    draws = clustered_bootstrap([1, 1, 1, 0], ["a", "a", "a", "b"], 5000, 0)
    assert set(draws.tolist()) == {0.0, 0.75, 1.0}


def test_bootstrap_repeats_with_its_seed():
    values, names = np.arange(50.0), [str(i // 2) for i in range(50)]
    whole = clustered_bootstrap(values, names, 1001, 7)
    assert len(whole) == 1001
    assert np.array_equal(whole, clustered_bootstrap(values, names, 1001, 7))
    assert not np.array_equal(whole, clustered_bootstrap(values, names, 1001, [7, 1]))


def test_bootstrap_of_kinds_of_clusters_is_that_of_drawing_the_clusters_one_by_one():
    random = np.random.default_rng(3)
    values, names = random.choice([-1.0, -0.3, 0.0, 0.6], size=300), random.integers(120, size=300).astype(str)
    mine = clustered_bootstrap(values, names.tolist(), 20_000, 0)
    clusters = [values[names == name] for name in np.unique(names)]
    drawn = [[clusters[k] for k in random.integers(len(clusters), size=len(clusters))] for _ in range(4000)]
    theirs = [np.concatenate(each).mean() for each in drawn]
    levels = [0.025, 0.05, 0.5, 0.95, 0.975]
    assert np.quantile(mine, levels) == pytest.approx(np.quantile(theirs, levels), abs=0.006)


def test_bootstraps_p_is_near_that_of_the_t_test_and_1_without_any_change():
    values = np.random.default_rng(1).choice([-1.0, 0.0, 0.4], p=[0.06, 0.84, 0.1], size=900)
    draws = clustered_bootstrap(values, [str(i) for i in range(900)], 20_000, 0)
    assert bootstrap_p(draws) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)
    assert bootstrap_p(np.zeros(1000)) == 1
    assert bootstrap_p(np.ones(999)) == 0.002


def test_bootstrap_refuses_names_that_do_not_fit():
    with pytest.raises(ValueError, match="3 differences for 2 cluster names"):
        clustered_bootstrap([0, 0, 1], ["a", "b"], 100, 0)


@pytest.mark.parametrize(("points", "items"), [(1, 4947), (2, 1237), (3, 550)])
def test_needed_items_at_eight_percent_flips_have_the_published_values(points, items):
    assert needed_items(0.08, points / 100) == items


def test_that_many_items_find_the_difference_at_the_stated_power():
    random = np.random.default_rng(0)
    n, runs = needed_items(0.08, 0.03), 20_000
    lost = random.binomial(n, (0.08 - 0.03) / 2, runs), random.binomial(n, (0.08 + 0.03) / 2, runs)
    z = (lost[1] - lost[0]) / np.sqrt(lost[0] + lost[1])
    assert (z > Z).mean() == pytest.approx(0.8, abs=0.03)


def test_the_crossed_bootstrap_has_the_variances_of_seeds_and_items() -> None:
    """Closed forms: s^2 / m of m seeds, and the population's variance / n of n items of equal size."""
    random = np.random.default_rng(0)
    first, second = random.normal(1, 1, (4, 1)) + random.normal(0, 3, 50), np.zeros((3, 50))
    second += random.normal(0, 1, (3, 1))
    sizes = np.ones(50)
    both, seeds, items = crossed_bootstrap(first, second, sizes, 20000, 0, paired=False)
    of_seeds = first.mean(1).var(ddof=1) / 4 + second.mean(1).var(ddof=1) / 3
    of_items = (first.mean(0) - second.mean(0)).var() / 50
    assert seeds.var() == pytest.approx(of_seeds, rel=0.03)
    assert items.var() == pytest.approx(of_items, rel=0.03)
    assert both.var() == pytest.approx(of_seeds + of_items, rel=0.03), "without interaction they add up"
    assert both.mean() == pytest.approx(first.mean() - second.mean(), abs=0.02)


def test_seeds_that_both_sides_share_cancel_when_they_are_paired() -> None:
    shift = np.array([[0.0], [5.0], [9.0]])
    first, second, sizes = shift + np.arange(8.0) + 1, shift + np.arange(8.0), np.ones(8)
    paired = crossed_bootstrap(first, second, sizes, 50, 0, paired=True)
    assert paired == pytest.approx(np.ones((3, 50)))
    assert np.ptp(crossed_bootstrap(first, second, sizes, 50, 0, paired=False)[1]) > 1


def test_the_crossed_bootstrap_weighs_items_by_their_size() -> None:
    first, sizes = np.array([[2.0, 30.0], [4.0, 30.0]]), np.array([1.0, 9.0])
    _, seeds, items = crossed_bootstrap(first, np.zeros((2, 2)), sizes, 200, 0, paired=True)
    assert {*seeds.round(9)} == {3.2, 3.4}
    assert {*items.round(9)} == {3.0, 3.3, round(60 / 18, 9)}
