"""Means and their intervals: the numbers by hand, and how often the intervals hold a simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.simulated_truth import coverage, crossed

from autointerp import means
from autointerp.means import SharedDocuments, feature_mean, mean_difference, mean_interval, t_interval, t_point
from autointerp.stats import Estimate


def test_t_points_between_whole_degrees_of_freedom() -> None:
    reference = pytest.importorskip("scipy.stats")
    for freedom in (1.0, 1.4, 1.9, 2.0, 2.6, 3.5, 7.3, 29.9, 30.0, 31.0, 55.5, 1e4):
        exact = float(reference.t.ppf(0.975, freedom))
        assert t_point(freedom) == pytest.approx(exact, rel=0.001 if freedom >= 4 else 0.03)
    with pytest.raises(ValueError, match="degree of freedom"):
        t_point(0.5)


def test_t_interval_ends() -> None:
    assert (t_interval([]).value, t_interval([]).n) == (None, 0)
    one = t_interval([2.0])
    assert (one.value, one.low, one.n) == (2.0, None, 1)
    found = t_interval([1.0, 2.0, 3.0])
    assert (found.low, found.high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    many = t_interval(range(101))  # t of 100 degrees of freedom is 1.98397
    assert many.high == pytest.approx(50 + 1.98397 * np.std(range(101), ddof=1) / math.sqrt(101), abs=2e-3)
    with pytest.raises(ValueError, match="finite"):
        t_interval([math.nan])


def test_a_few_values_get_students_interval_and_many_a_bootstrap() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, size=400)
    assert mean_interval(values[:39]) == t_interval(values[:39])
    found = mean_interval(values)
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert mean_interval([]).value is None and mean_interval([2.0]).low is None
    with pytest.raises(ValueError, match="finite"):
        mean_interval([1.0, math.inf])


@pytest.mark.parametrize("n", [2, 3, 5, 10, 39, 40])
def test_intervals_of_differences_cover(n: int) -> None:
    """A bootstrap over 3 normal differences holds the mean in 75 % of cases."""
    rng = np.random.default_rng(n)
    assert 0.93 <= coverage(lambda: (0.5, mean_interval(rng.normal(0.5, 1.0, n), n_boot=400)), 700) <= 0.97


def test_welchs_interval_by_hand_and_at_its_ends() -> None:
    a, b = [1.0, 2.0, 3.0, 4.0], [0.0, 10.0]
    reference = pytest.importorskip("scipy.stats")
    test = reference.ttest_ind(a, b, equal_var=False).confidence_interval()
    found = mean_difference(a, b)
    assert (found.value, found.n) == (-2.5, 6)
    assert (found.low, found.high) == pytest.approx((test.low, test.high), rel=0.03)
    assert mean_difference([1.0, 1.0], [0.5, 0.5]) == Estimate(0.5, 0.5, 0.5, 4)
    assert mean_difference([1.0], [0.5, 0.7]).low is None and mean_difference([], [0.5]).value is None
    with pytest.raises(ValueError, match="finite"):
        mean_difference([1.0, math.nan], [1.0])


@pytest.mark.parametrize(("n", "m", "spread"), [(4, 4, 1.0), (5, 5, 3.0), (10, 40, 3.0), (200, 50, 0.3), (60, 60, 1.0)])
def test_intervals_of_differences_of_unpaired_means_cover(n: int, m: int, spread: float) -> None:
    rng = np.random.default_rng(n * m)
    drawn = (mean_difference(rng.normal(0.5, 1.0, n), rng.normal(0.2, spread, m)) for _ in iter(int, 1))
    assert 0.93 <= coverage(lambda: (0.3, next(drawn)), 3000) <= 0.97


# --- features and documents ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("documents", "of_documents"), [(20, 0.3), (20, 1.0), (60, 0.0), (60, 0.5)])
def test_intervals_over_features_and_documents_cover(documents: int, of_documents: float) -> None:
    """By features alone, 55 % of intervals hold the truth at 20 documents and .3, 19 % at 1.0."""
    rng = np.random.default_rng(documents + 1)

    def once() -> tuple[float, means.Estimate]:
        values, sums = crossed(rng, 60, documents, of_documents)
        return 0.0, feature_mean(values, sums).estimate

    assert 0.92 <= coverage(once, 500) <= 0.98


def test_the_standard_error_by_both() -> None:
    """Two features, three documents: Var = s^2 / n + (sum over documents of (sum of influences)^2 - own) / n^2."""
    influences = np.array([[0.1, -0.2, 0.1], [0.3, -0.3, 0.0]])
    totals = influences.sum(axis=0)
    sums = SharedDocuments(2, 3, float(totals @ totals), float((totals**4).sum()), float((influences**2).sum()), 3)
    found = feature_mean([0.2, 0.6], sums)
    by_features = 0.08 / 2
    assert found.se_features == pytest.approx(math.sqrt(by_features))
    # 2 (.1 * .3 + .2 * .3): the products of the two features' influences
    assert found.se_both == pytest.approx(math.sqrt(by_features + 2 * (0.03 + 0.06) / 4))
    assert found.estimate.low is None and found.n_documents == 3  # too few documents for an interval
    assert feature_mean([0.2, 0.6]).estimate == t_interval([0.2, 0.6])
    assert feature_mean([0.2, 0.6, 0.7, 0.8, 0.9], sums).se_both is None  # of most features nothing is known
    apart = SharedDocuments(2, 30, 0.1, 0.01, 0.2, 30)  # less than features alone give: no negative variance
    assert feature_mean([0.2, 0.6], apart).se_both == pytest.approx(math.sqrt(by_features))
