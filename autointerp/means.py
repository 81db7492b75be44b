"""Means of a few or many values with their intervals, in plain numpy: Student's, by features, and by features and the
documents that they share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from autointerp.stats import Z95, Estimate, flat, percentile_interval

_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""The 97.5 % points of Student's t with 1 .. 30 degrees of freedom."""
FEW_VALUES = 40
"""Below this many values a percentile bootstrap of their mean is too narrow, and Student's interval is given."""


def t_point(freedom: float) -> float:
    """The 97.5 % point of Student's t with `freedom` degrees of freedom, at least 1 and not always a whole number: to
    within 0.1 % from 4 on, 3 % below."""
    if freedom < 1.0:
        raise ValueError(f"Student's t needs at least one degree of freedom, not {freedom}")
    if freedom >= len(_T95):
        z = Z95
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    below = int(freedom)
    low, high = _T95[below - 1], _T95[below]
    # Its logarithm is nearly a straight line in 1 / freedom.
    share = (1 / below - 1 / freedom) / (1 / below - 1 / (below + 1))
    return math.exp((1 - share) * math.log(low) + share * math.log(high))


def t_p_value(t: float, freedom: float) -> float:
    """The probability that Student's t with `freedom` degrees of freedom is as far from 0 as `t`, on either side."""
    if freedom < 1.0:
        raise ValueError(f"Student's t needs at least one degree of freedom, not {freedom}")
    if math.isinf(t):
        return 0.0
    return _beta_share(freedom / (freedom + t * t), freedom / 2, 0.5)


def _beta_share(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's method). It is written out
    here because scipy is not installed where labels are only scored."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1.0 - _beta_share(1.0 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1))
    total = d
    for m in range(1, 200):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            c, d = 1.0 + term / c, 1.0 / (1.0 + term * d)
            total *= c * d
        if abs(c * d - 1.0) < 1e-12:
            break
    return min(1.0, front * total / a)


def t_interval(values: ArrayLike) -> Estimate:
    """The mean with Student's 95 % interval, for a handful of values, where a bootstrap would be far too narrow. The
    value is None without values; the interval is None with fewer than two."""
    v = flat(values)
    if not np.isfinite(v).all():
        raise ValueError("the interval of a mean needs finite values; leave failed rows out and count them")
    if v.size == 0:
        return Estimate(None, None, None, 0)
    mean = float(v.mean())
    if v.size < 2:
        return Estimate(mean, None, None, 1)
    half = t_point(v.size - 1) * float(v.std(ddof=1)) / math.sqrt(v.size)
    return Estimate(mean, mean - half, mean + half, int(v.size))


def mean_interval(values: ArrayLike, n_boot: int = 2000, seed: int = 0) -> Estimate:
    """The mean with a 95 % interval: `t_interval` below FEW_VALUES values, else a percentile bootstrap over the values.
    For a paired comparison pass the differences. The value is None without values; the interval is None with fewer than
    two."""
    v = flat(values)
    if v.size < FEW_VALUES or not np.isfinite(v).all():
        return t_interval(v)
    rng = np.random.default_rng(seed)
    # In blocks, since n_boot x n draws would take gigabytes for a million features.
    block = max(1, 4_000_000 // v.size)
    sizes = [(min(block, n_boot - i), v.size) for i in range(0, n_boot, block)]
    means = np.concatenate([v[rng.integers(0, v.size, size=size)].mean(axis=1) for size in sizes])
    return Estimate(float(v.mean()), *percentile_interval(means), int(v.size))


def mean_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """The mean of `a` less that of `b`, values that are no pairs, with Welch's 95 % interval; `n` is how many values
    there are in all. The value is None where one side has no values, and the interval where one has fewer than two."""
    x, y = flat(a), flat(b)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("the interval of a difference needs finite values; leave failed rows out and count them")
    n = int(x.size + y.size)
    if x.size == 0 or y.size == 0:
        return Estimate(None, None, None, n)
    difference = float(x.mean() - y.mean())
    if x.size < 2 or y.size < 2:
        return Estimate(difference, None, None, n)
    of_x, of_y = float(x.var(ddof=1)) / x.size, float(y.var(ddof=1)) / y.size
    half = 0.0
    if of_x + of_y > 0.0:
        freedom = (of_x + of_y) ** 2 / (of_x**2 / (x.size - 1) + of_y**2 / (y.size - 1))
        half = t_point(max(1.0, freedom)) * math.sqrt(of_x + of_y)
    return Estimate(difference, difference - half, difference + half, n)


@dataclass(frozen=True, slots=True)
class SharedDocuments:
    """How documents that several features share move a mean over features; made from the influences (see Estimate) of
    each feature's value."""

    n_features: int
    """Features whose influences are known."""
    n_documents: int
    squares: float
    """Sum over documents, and groups of silent ones (see prevalence.silent_group), of the square of the sum of their
    influences over features."""
    fourths: float
    """Sum over documents of its fourth power."""
    own: float
    """Sum of the squares of the influences of each feature and document alone."""
    n_terms: int
    """Terms of these sums: documents, and groups of silent ones."""


@dataclass(frozen=True, slots=True)
class FeatureMean:
    """A mean over features with its 95 % interval and its standard error, by features alone and by both."""

    estimate: Estimate
    se_features: float | None
    """None with fewer than two features."""
    se_both: float | None
    """By features and documents; None where it is not known which documents move the values."""
    n_documents: int | None
    """Documents that the features share; None as for se_both."""


FEWEST_DOCUMENTS = 10
"""Below this many shared documents there is no interval of a mean over features: so few do not show how they differ."""


def feature_mean(values: ArrayLike, shared: SharedDocuments | None = None, seed: int = 0) -> FeatureMean:
    """The mean of one value per feature. For a paired comparison pass the differences, and the influences on them.

    Features are a sample, and so are the documents on which many of them were scored at once. The variance by both is
    that by features and the covariance of different features through shared documents (two-way clustering, Cameron,
    Gelbach and Miller 2011), which is left out where it comes out negative. Without `shared`, or where the influences
    of more than half of the features are not known, the interval is that of `mean_interval`, by features alone.
    """
    v = flat(values)
    alone = mean_interval(v, seed=seed)
    if alone.low is None or alone.value is None:
        return FeatureMean(alone, None, None, None)
    by_features = float(v.var(ddof=1)) / v.size
    if shared is None or 2 * shared.n_features < v.size:
        return FeatureMean(alone, math.sqrt(by_features), None, None)
    between = max(0.0, shared.squares - shared.own) / shared.n_features**2
    both = by_features + between
    found = FeatureMean(
        Estimate(alone.value, None, None, alone.n), math.sqrt(by_features), math.sqrt(both), shared.n_documents
    )
    if shared.n_documents < FEWEST_DOCUMENTS:
        return found
    freedom = shared_freedom(shared)
    half = 0.0
    if both > 0.0:
        half = t_point(max(1.0, both**2 / (by_features**2 / (v.size - 1) + between**2 / freedom))) * math.sqrt(both)
    return replace(found, estimate=Estimate(alone.value, alone.value - half, alone.value + half, alone.n))


def shared_freedom(shared: SharedDocuments) -> float:
    """The degrees of freedom of the variance over documents. The kurtosis is that of all terms. But groups of silent
    documents are no documents, so the freedom is never more than the number of documents allows."""
    freedom = satterthwaite(shared.squares, shared.fourths, shared.n_terms)
    return min(freedom, max(1.0, shared.n_documents - 1.0))


def satterthwaite(squares: float, fourths: float, n: int) -> float:
    """The degrees of freedom of a variance that is a sum of n squares, 2 n / (k - 1) with k their kurtosis, between 1
    and n - 1: where few of them make up the sum, it is known no better than from so few. `squares`, `fourths`: the sums
    of the second and fourth powers."""
    if squares <= 0.0:
        return max(1.0, n - 1.0)
    return min(max(2 * n / max(n * fourths / squares**2 - 1.0, 1e-9), 1.0), max(1.0, n - 1.0))
