from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.simulated_truth import coverage

from autointerp import stats
from autointerp.means import t_interval

numbers = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)  # subnormal ones included


@settings(max_examples=60, deadline=None)
@given(numbers, st.integers(0, 2**32 - 1))
def test_pearson_is_numpys_where_that_is_defined(x: list[float], seed: int) -> None:
    y = np.random.default_rng(seed).normal(size=len(x))
    value = stats.pearson(x, y)
    if value is None:
        assert np.ptp(x) <= 1e-10 * float(np.abs(x).max())
    else:
        assert -1.0 <= value <= 1.0
        if np.ptp(x) > 1e-6 * np.abs(x).max():
            assert value == pytest.approx(np.corrcoef(x / np.abs(x).max(), y)[0, 1], abs=1e-6)


def test_a_constant_has_no_correlation() -> None:
    assert stats.pearson([0.1] * 7, range(7)) is None
    assert stats.pearson(range(7), [1e9 + 1 / 3] * 7) is None
    assert stats.pearson([], []) is None
    assert stats.pearson([1.0, math.nan], [1.0, 2.0]) is None
    assert stats.is_constant([0.3, 0.3]) and not stats.is_constant([0.3, 0.4])
    with pytest.raises(ValueError, match="3 and 2"):
        stats.pearson([1, 2, 3], [1, 2])


def test_a_large_offset_does_not_hurt() -> None:
    x = np.random.default_rng(0).normal(size=200)
    y = x + np.random.default_rng(1).normal(size=200)
    assert stats.pearson(x + 1e7, y * 1e-9) == pytest.approx(stats.pearson(x, y), abs=1e-6)


def test_calibration_and_r_squared() -> None:
    p = np.random.default_rng(0).random(100)
    slope, intercept = stats.linear_calibration(p, 3 * p + 2)
    assert (slope, intercept) == pytest.approx((3, 2))
    assert stats.linear_calibration([1, 1], [2, 4]) == (0.0, 3.0)
    assert stats.r_squared(3 * p + 2, slope * p + intercept) == pytest.approx(1.0)
    assert stats.r_squared([1, 2, 3], [2, 2, 2]) == pytest.approx(0.0)
    assert stats.r_squared([2, 2], [1, 2]) is None
    with pytest.raises(ValueError, match="non-empty"):
        stats.linear_calibration([], [])


def test_wilson() -> None:
    assert stats.wilson(0, 0).value is None
    found = stats.wilson(8, 10)  # Wilson 1927, as in any table
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert stats.wilson(0, 5).low == 0.0 and stats.wilson(5, 5).high == 1.0
    with pytest.raises(ValueError):
        stats.wilson(6, 5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_auroc_counts_pairs(positive: list[int], negative: list[int]) -> None:
    pairs = [1.0 if p > q else 0.5 if p == q else 0.0 for p in positive for q in negative]
    assert stats.auroc(positive, negative) == pytest.approx(sum(pairs) / len(pairs))


def test_balanced_accuracy_and_empty_classes() -> None:
    assert stats.balanced_accuracy(8, 10, 50, 100) == pytest.approx(0.65)
    assert stats.balanced_accuracy(0, 0, 1, 1) is None
    assert stats.auroc([], [1.0]) is None


def test_spearman_with_ties_is_the_correlation_of_mean_ranks() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        x, y = rng.integers(0, 6, 25).astype(float), rng.integers(0, 4, 25).astype(float)
        by_hand = [
            [sum(w < v for w in series) + (1 + sum(w == v for w in series)) / 2 for v in series] for series in (x, y)
        ]
        assert stats.ranks(x).tolist() == by_hand[0]
        assert stats.spearman(x, y) == pytest.approx(np.corrcoef(*by_hand)[0, 1])
    assert stats.spearman([1, 2, 30], [5, 6, 6000]) == pytest.approx(1.0)
    assert stats.spearman([1, 1, 1], [1, 2, 3]) is None and stats.spearman([], []) is None
    assert stats.spearman([1, math.nan], [1, 2]) is None


def test_spearman_is_scipys() -> None:
    reference = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(4)
    x = rng.integers(0, 9, 200)
    y = x + rng.integers(0, 12, 200)
    assert stats.spearman(x, y) == pytest.approx(reference.spearmanr(x, y).statistic)


def test_the_spearman_bootstrap_ranks_every_resample_anew() -> None:
    """Against a plain loop that draws whole groups and ranks what it drew."""
    rng = np.random.default_rng(8)
    x = rng.integers(0, 8, 40).astype(float)
    y = x + rng.normal(0, 3, 40)
    groups = [i // 2 for i in range(40)]
    found = stats.spearman_interval(x, y, groups, n_boot=4000, seed=1)
    values = []
    for _ in range(4000):
        drawn = [i for g in rng.integers(0, 20, 20) for i in (2 * g, 2 * g + 1)]
        values.append(stats.spearman(x[drawn], y[drawn]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=0.02)
    assert found.value == stats.spearman(x, y) and found.n == 40
    assert found == stats.spearman_interval(x, y, groups, n_boot=4000, seed=1)
    one = stats.spearman_interval([1, 2, 3], [1, 2, 3], [0, 0, 0])
    assert one.value == pytest.approx(1.0) and one.low is None
    assert stats.spearman_interval([], []).value is None
    with pytest.raises(ValueError, match="3 pairs in 2 groups"):
        stats.spearman_interval([1, 2, 3], [1, 2, 3], [0, 1])


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 15, 30])
def test_spearman_intervals_cover(n: int) -> None:
    rng = np.random.default_rng(n)
    true = 6 / math.pi * math.asin(0.25)  # of two normal numbers with the correlation .5

    def once() -> tuple[float, stats.Estimate]:
        x = rng.normal(size=n)
        return true, stats.spearman_interval(x, 0.5 * x + math.sqrt(0.75) * rng.normal(size=n), n_boot=300)

    assert 0.92 <= coverage(once, 500) <= 0.98
    assert stats.spearman_interval(range(7), range(7)).low is None


@pytest.mark.parametrize(("positives", "negatives", "level"), [(4, 4, 0.7), (3, 5, 0.6), (1, 2, 0.9)])
def test_tails_of_balanced_accuracy_are_the_worst_case(positives: int, negatives: int, level: float) -> None:
    """By summing over every outcome, for many pairs of sensitivity and specificity with that mean."""

    def chance(k: int, n: int, p: float) -> float:
        return math.comb(n, k) * p**k * (1 - p) ** (n - k)

    tails = stats.balanced_accuracy_tails(positives, negatives, level)
    reach = min(level, 1 - level)
    outcomes = [(a, b) for a in range(positives + 1) for b in range(negatives + 1)]
    for a, b in outcomes:
        value = a / positives + b / negatives
        above, below = [], []
        for shift in np.linspace(-reach, reach, 81):
            p, q = level + shift, level - shift
            mass = {(i, j): chance(i, positives, p) * chance(j, negatives, q) for i, j in outcomes}
            above.append(sum(m for (i, j), m in mass.items() if i / positives + j / negatives >= value - 1e-12))
            below.append(sum(m for (i, j), m in mass.items() if i / positives + j / negatives <= value + 1e-12))
        assert tails.of(a, b) == pytest.approx((max(above), max(below)))
    assert tails.largest_at_least(1.0) == pytest.approx(1.0) and tails.largest_at_least(1e-12) == 0.0
    assert 0.0 <= tails.largest_at_most(0.2) <= 0.2


def test_tails_of_many_answers_are_finite() -> None:
    tails = stats.balanced_accuracy_tails(1500, 2, 0.5)
    assert np.isfinite(tails.at_least).all() and tails.at_least[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("shift", "true"), [(0.0, 0.5), (1.0, 0.7602), (2.0, 0.9214)])
def test_a_handful_of_values_is_covered(shift: float, true: float) -> None:
    """AUROC of 5 against 5, and the mean of 3: about 95 % of the intervals hold the truth."""
    rng = np.random.default_rng(0)
    areas, means = 0, 0
    for _ in range(800):
        p, q = rng.normal(shift, 1.0, 5), rng.normal(0.0, 1.0, 5)
        area = stats.auroc_of_independent(stats.auroc(p, q) or 0.0, 5, 5)
        mean = t_interval(p[:3])
        areas += area.low is not None and area.high is not None and area.low <= true <= area.high
        means += mean.low is not None and mean.high is not None and mean.low <= shift <= mean.high
    assert 0.925 < areas / 800 < 0.985 and 0.925 < means / 800 < 0.975
