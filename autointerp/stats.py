"""Correlation, calibration, classification, their intervals and p-values of many tests, in plain numpy. Nothing here
returns NaN.

A quantity that the data do not define (the correlation with a constant, the mean of nothing) is None. So are the ends
of an interval that cannot be computed (from one document).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""
Value = TypeVar("Value", bound=Hashable)
_FLOOR = 1e-12
"""Sums cancel to about 1e-16 of their size. A variance below this share of them is taken as a constant's."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval. `n` is how many items were counted or averaged over."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    influences: Mapping[Hashable, float] | None = field(default=None, compare=False, repr=False)
    """By how much each document moves the value (see jackknife.influences_of); None where that is not known."""


def flat(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64).ravel()


def numbered(values: Iterable[Value]) -> tuple[NDArray[np.int64], dict[Value, int]]:
    """(the number of each value, the numbers of the different ones), from 0 in the order in which they first come."""
    every = list(values)
    index = {value: i for i, value in enumerate(dict.fromkeys(every))}
    return np.fromiter(map(index.__getitem__, every), dtype=np.int64, count=len(every)), index


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """Pearson correlation of two equally long vectors; None if either is constant, empty or not finite."""
    a, b = flat(x), flat(y)
    if a.size != b.size:
        raise ValueError(f"pearson needs vectors of one length, not {a.size} and {b.size}")
    if a.size < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    value = correlation_of(moments_of(standardised(a), standardised(b)))[0]
    return None if math.isnan(value) else float(value)


def is_constant(values: ArrayLike) -> bool:
    """Whether all values are equal, up to rounding. An empty vector counts as constant."""
    return not standardised(flat(values)).any()


def standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values` centred and scaled to at most 1, so that sums of squares neither cancel nor overflow. A vector that is
    constant up to rounding becomes exactly zero."""
    top = float(np.abs(values).max(initial=0.0))
    if top == 0.0:
        return np.zeros_like(values)
    scaled = values / top
    centred = scaled - scaled.mean()
    spread = float(np.abs(centred).max(initial=0.0))
    return np.zeros_like(values) if spread < 1e-12 else centred / spread


def pooled(
    truth: Sequence[Sequence[float]], predicted: Sequence[Sequence[float]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """(truth, prediction, number of tokens of each context) over the tokens of all contexts, one after the other.
    Raises ValueError where those of a context differ in length, or one is not finite."""
    sizes = np.array([len(t) for t in truth], dtype=np.int64)
    for i, (size, p) in enumerate(zip(sizes, predicted, strict=True)):
        if size != len(p):
            raise ValueError(f"context {i} has {size} tokens and {len(p)} predictions")
    x, y = (np.concatenate([*contexts, np.zeros(0)]) for contexts in (truth, predicted))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("activations and predictions must be finite")
    return x, y, sizes


def moments_of(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """n and the sums of x, y, xx, yy and xy, [1, 6]."""
    return np.array([[x.size, x.sum(), y.sum(), x @ x, y @ y, x @ y]])


def correlation_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlations [B] from rows of `moments_of` [B, 6]; NaN where a variance is zero."""
    n, sx, sy, sxx, syy, sxy = sums.T
    n = np.maximum(n, 1.0)
    vx, vy = sxx - sx * sx / n, syy - sy * sy / n
    defined = (vx > _FLOOR * np.maximum(sxx, _FLOOR)) & (vy > _FLOOR * np.maximum(syy, _FLOOR))
    bottom = np.sqrt(np.where(defined, vx * vy, 1.0))
    return np.where(defined, np.clip((sxy - sx * sy / n) / bottom, -1.0, 1.0), np.nan)


def percentile_interval(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The middle 95 % of what resamples gave, NaN where one gave nothing; (None, None) where more than half did."""
    defined = values[~np.isnan(values)]
    if defined.size == 0 or defined.size * 2 < values.size:
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def linear_calibration(predicted: ArrayLike, truth: ArrayLike) -> tuple[float, float]:
    """(slope, intercept) of the least-squares line truth ~ slope * predicted + intercept. The slope is 0 if `predicted`
    is constant. Raises ValueError without data."""
    x, y = flat(predicted), flat(truth)
    if x.size != y.size or x.size == 0:
        raise ValueError(f"a calibration needs two equally long, non-empty vectors, not {x.size} and {y.size}")
    dx = x - x.mean()
    bottom = float(dx @ dx)
    slope = float(dx @ (y - y.mean())) / bottom if bottom > 1e-12 * max(1.0, float(x @ x)) else 0.0
    return slope, float(y.mean() - slope * x.mean())


def r_squared(truth: ArrayLike, predicted: ArrayLike) -> float | None:
    """The share of the centred variance explained: 1 - sum (truth - predicted)^2 / sum (truth - mean truth)^2. Negative
    if the mean would predict better; None if `truth` is constant."""
    y, p = flat(truth), flat(predicted)
    if y.size != p.size:
        raise ValueError(f"r_squared needs vectors of one length, not {y.size} and {p.size}")
    if y.size == 0:
        return None
    centred = y - y.mean()
    bottom = float(centred @ centred)
    if bottom <= 1e-24 * max(1.0, float(y @ y)):
        return None
    return 1.0 - float((y - p) @ (y - p)) / bottom


def wilson(successes: int, n: int, z: float = Z95) -> Estimate:
    """The share of successes with Wilson's score interval; None if n is 0."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return Estimate(None, None, None, 0)
    share = successes / n
    return Estimate(share, *wilson_of_share(share, n, z), n)


def wilson_of_share(share: float, n: float, z: float = Z95) -> tuple[float, float]:
    """The ends of Wilson's score interval of a share among `n` independent items; `n` may be an effective size, and so
    no whole number."""
    centre, half = wilson_middle(share, n, z)
    # The ends at 0 and 1 are exact; rounding would leave them a hair outside.
    return (0.0 if share == 0 else max(0.0, centre - half)), (1.0 if share == 1 else min(1.0, centre + half))


def wilson_middle(share: Any, n: Any, z: float = Z95) -> tuple[Any, Any]:
    """The middle of Wilson's score interval and half of its width; of numbers or arrays."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    return centre, z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5


def ratio_of_shares(above: Estimate, below: Estimate) -> Estimate:
    """The ratio of two independent shares, with the 95 % interval that follows from theirs (Donner and Zou 2012). Where
    `below` is 0 there is no value, and only the lower end is known; where one of them has no interval, neither has the
    ratio. `n` is that of `above`."""
    p, q = above.value, below.value
    if p is None or q is None:
        return Estimate(None, None, None, above.n)
    p_low, p_high, q_low, q_high = above.low, above.high, below.low, below.high
    if p_low is None or p_high is None or q_low is None or q_high is None:
        return Estimate(p / q if q else None, None, None, above.n)
    product, least = p * q, p_low * (2 * p - p_low)
    reach = math.sqrt(max(0.0, product**2 - least * q_high * (2 * q - q_high)))
    low = least / (product + reach) if product + reach > 0.0 else 0.0
    if q == 0.0:
        return Estimate(None, low, None, above.n)
    most, floor = p_high * (2 * p - p_high), q_low * (2 * q - q_low)
    high = (product + math.sqrt(max(0.0, product**2 - most * floor))) / floor if floor > 0.0 else None
    return Estimate(p / q, low, high, above.n)


def auroc(positive: ArrayLike, negative: ArrayLike) -> float | None:
    """The probability that a positive scores above a negative, with ties counted half (the Mann-Whitney statistic).
    None if either side is empty."""
    p, q = flat(positive), np.sort(flat(negative))
    if p.size == 0 or q.size == 0:
        return None
    below = np.searchsorted(q, p, side="left")
    not_above = np.searchsorted(q, p, side="right")
    return float((below + not_above).sum() / (2.0 * p.size * q.size))


def balanced_accuracy(true_positives: int, positives: int, true_negatives: int, negatives: int) -> float | None:
    """The mean of sensitivity and specificity; None if one of the classes is empty."""
    if positives == 0 or negatives == 0:
        return None
    return 0.5 * (true_positives / positives + true_negatives / negatives)


def balanced_accuracy_interval(
    true_positives: int, positives: int, true_negatives: int, negatives: int, z: float = Z95
) -> Estimate:
    """Balanced accuracy with a 95 % interval, from Wilson's intervals of sensitivity and specificity by the
    square-and-add rule (Newcombe 1998). Unlike a bootstrap, it keeps its width if every answer is right. `n` counts
    both classes; all else is None if one of them is empty."""
    n = positives + negatives
    value = balanced_accuracy(true_positives, positives, true_negatives, negatives)
    if value is None:
        return Estimate(None, None, None, n)
    shares = (wilson(true_positives, positives, z), wilson(true_negatives, negatives, z))
    below = math.hypot(*((s.value or 0.0) - (s.low or 0.0) for s in shares)) / 2
    above = math.hypot(*((s.high or 0.0) - (s.value or 0.0) for s in shares)) / 2
    return Estimate(value, max(0.0, value - below), min(1.0, value + above), n)


@dataclass(frozen=True)
class Tails:
    """The tail probabilities of balanced accuracies, given the true one; made by `balanced_accuracy_tails`."""

    positives: int
    negatives: int
    values: NDArray[np.int64]
    """All possible values, ascending, times 2 * positives * negatives."""
    at_least: NDArray[np.float64]
    """For each value, the largest probability of it or a higher one over all pairs of sensitivity and specificity with
    the given mean."""
    at_most: NDArray[np.float64]
    """For each value, the largest probability of it or a lower one over those pairs."""

    def of(self, true_positives: int, true_negatives: int) -> tuple[float, float]:
        """(probability of this balanced accuracy or a higher one, probability of it or a lower one)."""
        i = int(np.searchsorted(self.values, true_positives * self.negatives + true_negatives * self.positives))
        return float(self.at_least[i]), float(self.at_most[i])

    def largest_at_least(self, bound: float) -> float:
        """The largest upper-tail probability that does not exceed `bound`; 0 if none is that small."""
        return float(self.at_least[self.at_least <= bound].max(initial=0.0))

    def largest_at_most(self, bound: float) -> float:
        """The largest lower-tail probability that does not exceed `bound`; 0 if none is that small."""
        return float(self.at_most[self.at_most <= bound].max(initial=0.0))


@lru_cache(maxsize=4096)
def balanced_accuracy_tails(positives: int, negatives: int, level: float, inflation: float = 1.0) -> Tails:
    """Exact tail probabilities of the balanced accuracy of `positives` and `negatives` independent answers, if the true
    balanced accuracy is `level`, 0..1. Many pairs of sensitivity and specificity have that mean. The largest
    probability among 81 of them, from one extreme to the other, is taken (an unconditional exact test, like
    Barnard's). `inflation`: by how much the variance is larger than that of independent answers; the tails are then
    those of as many standard errors, each longer by its root."""
    reach = min(level, 1.0 - level)
    shift = np.linspace(-reach, reach, 81)
    right = np.arange(positives + 1)[:, None] * negatives + np.arange(negatives + 1)[None, :] * positives
    values, place = np.unique(right.ravel(), return_inverse=True)
    at_least, at_most = np.zeros(values.size), np.zeros(values.size)
    for p, q in zip(_binomial(positives, level + shift), _binomial(negatives, level - shift), strict=True):
        chance = np.bincount(place, weights=np.outer(p, q).ravel(), minlength=values.size)
        at_least = np.maximum(at_least, np.cumsum(chance[::-1])[::-1])
        at_most = np.maximum(at_most, np.cumsum(chance))
    at_least, at_most = np.minimum(at_least, 1.0), np.minimum(at_most, 1.0)
    if inflation > 1.0:
        at_least, at_most = _lengthened(at_least, inflation), _lengthened(at_most, inflation)
    return Tails(positives, negatives, values, at_least, at_most)


def _lengthened(tails: NDArray[np.float64], inflation: float) -> NDArray[np.float64]:
    """Normal tail probabilities as far out in standard errors that are longer by the root of `inflation`."""
    normal, root = NormalDist(), math.sqrt(inflation)
    inside = (tails > 0.0) & (tails < 1.0)
    return np.array([normal.cdf(normal.inv_cdf(p) / root) if ok else p for p, ok in zip(tails, inside, strict=True)])


def _binomial(n: int, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability of each number of successes, [shares, n + 1]."""
    p = np.clip(shares, 1e-300, 1.0)[:, None]
    q = np.clip(1.0 - shares, 1e-300, 1.0)[:, None]
    k = np.arange(n + 1)
    ways = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    return np.asarray(np.exp(ways + k * np.log(p) + (n - k) * np.log(q)))


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """The rank of every value, from 1 for the smallest. Equal values share the mean of their ranks."""
    _, place, counts = np.unique(flat(values), return_inverse=True, return_counts=True)
    return _mid_ranks(counts.astype(np.float64))[place]


def _mid_ranks(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean rank of each group of equal values, from the sizes of the groups in ascending order of value."""
    return np.asarray(np.cumsum(counts) - (counts - 1.0) / 2.0)


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rank correlation, with mean ranks for ties; None if either vector is constant, empty or not finite."""
    a, b = flat(x), flat(y)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    return pearson(ranks(a), ranks(b))


FEWEST_GROUPS = 8


def spearman_interval(
    x: ArrayLike, y: ArrayLike, groups: Sequence[Hashable] | None = None, n_boot: int = 1000, seed: int = 0
) -> Estimate:
    """Spearman's rank correlation with a 95 % percentile bootstrap interval; every resample is ranked anew.

    `groups` gives the group of each pair of values, if pairs of one group are not independent (labels of one feature);
    whole groups are then resampled. The interval is None with fewer than FEWEST_GROUPS groups, where it would hold the
    truth too seldom, or if fewer than half of the resamples define a correlation. With more than 5,000 pairs there are
    fewer resamples, but at least 200; the interval is narrow by then.
    """
    a, b = flat(x), flat(y)
    value = spearman(a, b)
    named: Sequence[Hashable] = range(a.size) if groups is None else groups
    group, index = numbered(named)
    n_groups = len(index)
    if group.size != a.size:
        raise ValueError(f"{a.size} pairs in {group.size} groups")
    if value is None or n_groups < FEWEST_GROUPS:
        return Estimate(value, None, None, int(a.size))
    _, place_a = np.unique(a, return_inverse=True)
    _, place_b = np.unique(b, return_inverse=True)
    rng = np.random.default_rng(seed)
    found = np.empty(min(n_boot, max(200, 5_000_000 // a.size)))
    for i in range(found.size):
        times = np.bincount(rng.integers(0, n_groups, size=n_groups), minlength=n_groups)[group].astype(float)
        # A pair drawn n times counts n times, so ranks and sums follow from the counts without sorting again.
        r, s = (_mid_ranks(np.bincount(place, times).astype(float))[place] for place in (place_a, place_b))
        n = times.sum()
        r, s = r - (n + 1.0) / 2.0, s - (n + 1.0) / 2.0  # mean ranks
        bottom = float(times @ (r * r)) * float(times @ (s * s))
        found[i] = float(times @ (r * s)) / math.sqrt(bottom) if bottom > 0.0 else math.nan
    low, high = percentile_interval(found)
    return Estimate(value, low, high, int(a.size))


def auroc_of_independent(value: float, positives: int, negatives: int) -> Estimate:
    """The AUROC `value` of independent positives and negatives with a 95 % score interval (Newcombe 2006, method 5).
    Like Wilson's interval for a share, it keeps its width at 0 and 1, and it holds for a handful of values."""
    if positives < 1 or negatives < 1 or not 0.0 <= value <= 1.0:
        raise ValueError(f"an AUROC of {value} of {positives} positives and {negatives} negatives")
    extra = (positives + negatives) / 2 - 1

    def covers(theta: float) -> bool:
        spread = 1 + extra * (1 - theta) / (2 - theta) + extra * theta / (1 + theta)
        variance = theta * (1 - theta) / (positives * negatives) * spread
        return (value - theta) ** 2 <= Z95 * Z95 * variance

    def end(outer: float) -> float:
        inside, outside = value, outer
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if covers(middle) else (inside, middle)
        return inside

    low, high = (0.0 if value == 0.0 else end(0.0)), (1.0 if value == 1.0 else end(1.0))
    return Estimate(value, low, high, positives + negatives)


def benjamini_hochberg(p: NDArray[np.float64], n_tests: int) -> NDArray[np.float64]:
    """Adjusted p-values; of the `n_tests` tests those that are not in `p` have a p of 1."""
    order = np.argsort(p, kind="stable")
    scaled = p[order] * n_tests / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted
