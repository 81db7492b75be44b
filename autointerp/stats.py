"""Correlation, calibration, classification and their intervals. Plain numpy; nothing here returns NaN.

A quantity that is not defined for the data (the correlation with a constant, the mean of nothing) is None, and so are
the ends of an interval that cannot be had (one document cannot be resampled).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""
_FLOOR = 1e-12
"""Resampled sums cancel to about 1e-16 of their size; a variance below this share of them is that of a constant."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval; `n` is what was counted or averaged over."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def _flat(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64).ravel()


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """Pearson correlation of two equally long vectors; None where either is constant, empty or not finite."""
    a, b = _flat(x), _flat(y)
    if a.size != b.size:
        raise ValueError(f"pearson needs vectors of one length, not {a.size} and {b.size}")
    if a.size < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    value = _correlation(_moments(_standard(a), _standard(b)))[0]
    return None if math.isnan(value) else float(value)


def is_constant(values: ArrayLike) -> bool:
    """Whether all values are equal, up to rounding; so is an empty vector."""
    return not _standard(_flat(values)).any()


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred and scaled to at most 1, so that sums of squares neither cancel nor overflow. A constant (up to
    rounding) becomes exactly zero."""
    top = float(np.abs(values).max(initial=0.0))
    if top == 0.0:
        return np.zeros_like(values)
    scaled = values / top
    centred = scaled - scaled.mean()
    spread = float(np.abs(centred).max(initial=0.0))
    return np.zeros_like(values) if spread < 1e-12 else centred / spread


def _moments(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """[1, 6]: n and the sums of x, y, xx, yy, xy."""
    return np.array([[x.size, x.sum(), y.sum(), x @ x, y @ y, x @ y]])


def _correlation(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlations [B] from rows of moments [B, 6]; NaN where a variance is zero."""
    n, sx, sy, sxx, syy, sxy = sums.T
    n = np.maximum(n, 1.0)
    vx, vy = sxx - sx * sx / n, syy - sy * sy / n
    defined = (vx > _FLOOR * np.maximum(sxx, _FLOOR)) & (vy > _FLOOR * np.maximum(syy, _FLOOR))
    bottom = np.sqrt(np.where(defined, vx * vy, 1.0))
    return np.where(defined, np.clip((sxy - sx * sy / n) / bottom, -1.0, 1.0), np.nan)


def _resamples(groups: int, n_boot: int, seed: int) -> NDArray[np.float64]:
    """[n_boot, groups]: how often each group stands in each resample."""
    draws = np.random.default_rng(seed).integers(0, groups, size=(n_boot, groups))
    draws += np.arange(n_boot)[:, None] * groups
    return np.bincount(draws.ravel(), minlength=n_boot * groups).reshape(n_boot, groups).astype(np.float64)


def pooled_correlation(
    truth: Sequence[ArrayLike],
    predicted: Sequence[ArrayLike],
    documents: Sequence[Hashable],
    n_boot: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Pearson correlation over the tokens of all contexts pooled (Bills et al. 2023), with a 95 % percentile interval
    from a bootstrap over documents.

    `truth[i]` and `predicted[i]` hold one number per token of context i, which stands in `documents[i]`. `n` is the
    number of contexts. Value None where truth or prediction is constant; the interval None with fewer than two
    documents, or where fewer than half of the resamples define a correlation. Only six sums per document are
    resampled, so a thousand resamples of thirty contexts take about a millisecond.
    """
    x, y, group = _pooled(truth, predicted, documents)
    x, y = _standard(x), _standard(y)
    columns = (np.ones_like(x), x, y, x * x, y * y, x * y)
    return _bootstrapped(_correlation, columns, group, len(truth), n_boot, seed)


def pooled_r_squared(
    truth: Sequence[ArrayLike],
    predicted: Sequence[ArrayLike],
    documents: Sequence[Hashable],
    n_boot: int = 1000,
    seed: int = 0,
) -> Estimate:
    """`r_squared` over the tokens of all contexts pooled, with the interval and the rules of `pooled_correlation`."""
    x, y, group = _pooled(truth, predicted, documents)
    scale = float(np.abs(x).max(initial=0.0)) or 1.0
    x, y = x / scale, y / scale
    columns = (np.ones_like(x), x, x * x, (x - y) ** 2)

    def r_squares(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        n, sx, sxx, error = sums.T
        variance = sxx - sx * sx / np.maximum(n, 1.0)
        defined = variance > _FLOOR * np.maximum(sxx, _FLOOR)
        return np.where(defined, 1.0 - error / np.where(defined, variance, 1.0), np.nan)

    return _bootstrapped(r_squares, columns, group, len(truth), n_boot, seed)


def _pooled(
    truth: Sequence[ArrayLike], predicted: Sequence[ArrayLike], documents: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """All tokens of all contexts: truth, prediction, and the number of the document each stands in."""
    if not len(truth) == len(predicted) == len(documents):
        raise ValueError(f"{len(truth)} truths, {len(predicted)} predictions, {len(documents)} documents")
    xs, ys = [_flat(t) for t in truth], [_flat(p) for p in predicted]
    for i, (a, b) in enumerate(zip(xs, ys, strict=True)):
        if a.size != b.size:
            raise ValueError(f"context {i} has {a.size} tokens and {b.size} predictions")
    index: dict[Hashable, int] = {}
    of_context = np.array([index.setdefault(d, len(index)) for d in documents], dtype=np.int64)
    x = np.concatenate([*xs, np.zeros(0)])
    y = np.concatenate([*ys, np.zeros(0)])
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("activations and predictions must be finite")
    return x, y, np.repeat(of_context, [a.size for a in xs])


def _bootstrapped(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    columns: Sequence[NDArray[np.float64]],
    group: NDArray[np.int64],
    n: int,
    n_boot: int,
    seed: int,
) -> Estimate:
    """A statistic of sums over tokens, and its interval from resampling the groups' sums."""
    if group.size < 2:
        return Estimate(None, None, None, n)
    count = int(group.max()) + 1
    sums = np.stack([np.bincount(group, weights=column, minlength=count) for column in columns], axis=1)
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    if math.isnan(value):
        return Estimate(None, None, None, n)
    if count < 2 or n_boot < 1:
        return Estimate(value, None, None, n)
    low, high = _percentiles(statistic(_resamples(count, n_boot, seed) @ sums))
    return Estimate(value, low, high, n)


def _percentiles(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    defined = values[~np.isnan(values)]
    if defined.size == 0 or defined.size * 2 < values.size:
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def linear_calibration(predicted: ArrayLike, truth: ArrayLike) -> tuple[float, float]:
    """(slope, intercept) of the least-squares line truth ~ slope * predicted + intercept; slope 0 where `predicted`
    is constant. Raises ValueError on no data."""
    x, y = _flat(predicted), _flat(truth)
    if x.size != y.size or x.size == 0:
        raise ValueError(f"a calibration needs two equally long, non-empty vectors, not {x.size} and {y.size}")
    dx = x - x.mean()
    bottom = float(dx @ dx)
    slope = float(dx @ (y - y.mean())) / bottom if bottom > 1e-12 * max(1.0, float(x @ x)) else 0.0
    return slope, float(y.mean() - slope * x.mean())


def r_squared(truth: ArrayLike, predicted: ArrayLike) -> float | None:
    """1 - sum (truth - predicted)^2 / sum (truth - mean truth)^2: the share of the centred variance explained.
    Negative where the mean would have done better; None where `truth` is constant."""
    y, p = _flat(truth), _flat(predicted)
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
    """Share of successes with Wilson's score interval; None where n is 0."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return Estimate(None, None, None, 0)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The ends at p = 0 and p = 1 are exact; rounding would leave them a hair outside.
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(p, 0.0 if successes == 0 else low, 1.0 if successes == n else high, n)


def auroc(positive: ArrayLike, negative: ArrayLike) -> float | None:
    """Probability that a positive scores above a negative, ties counted half (the Mann-Whitney statistic); None
    where either side is empty."""
    p, q = _flat(positive), np.sort(_flat(negative))
    if p.size == 0 or q.size == 0:
        return None
    below = np.searchsorted(q, p, side="left")
    not_above = np.searchsorted(q, p, side="right")
    return float((below + not_above).sum() / (2.0 * p.size * q.size))


def auroc_interval(
    positive: ArrayLike,
    negative: ArrayLike,
    positive_documents: Sequence[Hashable] | None = None,
    negative_documents: Sequence[Hashable] | None = None,
) -> Estimate:
    """AUROC with a 95 % interval: the score-type interval of Newcombe (2006, method 5) from Hanley and McNeil's
    variance, with the number of documents of each class as its sizes, since contexts of one document are no
    independent witnesses (None: each value is a document of its own).

    Chosen over DeLong's interval and over a bootstrap, both of which have no width at all where the classes are
    separated: with a few dozen contexts that is common, and proves little. `n` is of both classes; all else None where
    one of them is empty.
    """
    p, q = _flat(positive), _flat(negative)
    for values, documents in ((p, positive_documents), (q, negative_documents)):
        if documents is not None and len(documents) != values.size:
            raise ValueError(f"{values.size} values and {len(documents)} documents")
    value = auroc(p, q)
    n = int(p.size + q.size)
    if value is None:
        return Estimate(None, None, None, n)
    sizes = [
        values.size if documents is None else len(set(documents))
        for values, documents in ((p, positive_documents), (q, negative_documents))
    ]
    return Estimate(value, _auroc_low(value, *sizes), 1.0 - _auroc_low(1.0 - value, *sizes), n)


def _auroc_low(value: float, m: int, n: int) -> float:
    """The AUROC that lies Z95 of its own standard errors below `value`, for m and n independent values."""
    pairs, mean_size = m * n, (m + n) / 2 - 1

    def reaches(area: float) -> bool:
        spread = area * (1 - area) / pairs * (1 + mean_size * ((1 - area) / (2 - area) + area / (1 + area)))
        return area + Z95 * math.sqrt(max(0.0, spread)) >= value

    # The standard error is a concave function of the area, 0 at both ends, so exactly one place below `value` begins
    # to reach it.
    low, high = 0.0, value
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return low


def balanced_accuracy(true_positives: int, positives: int, true_negatives: int, negatives: int) -> float | None:
    """Mean of sensitivity and specificity; None where one of the classes is empty."""
    if positives == 0 or negatives == 0:
        return None
    return 0.5 * (true_positives / positives + true_negatives / negatives)


def balanced_accuracy_interval(true_positives: int, positives: int, true_negatives: int, negatives: int) -> Estimate:
    """Balanced accuracy with a 95 % interval, from Wilson's intervals of sensitivity and specificity by the square-and-
    add rule (Newcombe 1998): unlike a bootstrap it keeps its width where every answer is right. `n` is of both classes;
    all else None where one of them is empty."""
    n = positives + negatives
    value = balanced_accuracy(true_positives, positives, true_negatives, negatives)
    if value is None:
        return Estimate(None, None, None, n)
    shares = (wilson(true_positives, positives), wilson(true_negatives, negatives))
    below = math.hypot(*((s.value or 0.0) - (s.low or 0.0) for s in shares)) / 2
    above = math.hypot(*((s.high or 0.0) - (s.value or 0.0) for s in shares)) / 2
    return Estimate(value, max(0.0, value - below), min(1.0, value + above), n)


def mean_interval(values: ArrayLike, n_boot: int = 2000, seed: int = 0) -> Estimate:
    """Mean with a 95 % percentile bootstrap interval over the values. For a paired comparison pass the differences.
    Value None where there are no values, the interval None with fewer than two."""
    v = _flat(values)
    if v.size == 0:
        return Estimate(None, None, None, 0)
    if not np.isfinite(v).all():
        raise ValueError("mean_interval needs finite values; leave failed rows out and count them")
    if v.size < 2:
        return Estimate(float(v.mean()), None, None, 1)
    rng = np.random.default_rng(seed)
    # In blocks: n_boot x n draws at once would take gigabytes for a million features.
    block = max(1, 4_000_000 // v.size)
    sizes = [(min(block, n_boot - i), v.size) for i in range(0, n_boot, block)]
    means = np.concatenate([v[rng.integers(0, v.size, size=size)].mean(axis=1) for size in sizes])
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(v.mean()), float(low), float(high), int(v.size))
