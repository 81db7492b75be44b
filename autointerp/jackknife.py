"""Correlation and R squared over the tokens of many contexts, and AUROC over the contexts, by document.

Contexts of one document are not independent, so each document is left out in turn. That tells by how much it moves the
value. For correlation and R squared it also gives the interval, a jackknife over documents: made where the statistic is
nearly normal (Fisher's z for a correlation, the logarithm of the unexplained share for R squared), with Student's t and
the degrees of freedom that the scatter of the left-out values supports. A percentile bootstrap over few documents is
far too narrow: `scripts/audit_scores.py` prints both beside simulated truth.

There is an interval only where 93 to 98 % of intervals held the truth, in simulations and on the demo's own features:

- at least MIN_DOCUMENTS documents. On simulated truth half as many are enough; but real activations have longer tails,
  and of fifteen of the demo's contexts, from eleven documents, 86 % of intervals held the truth;
- truth and prediction rise together in at least MIN_BEARING documents, each weighted by its share. With fewer, the
  value hangs on one document, and what it would be without that one is not seen;
- every document can be left out, and leaving one out changes the value. A value of 1 in every document says nothing of
  the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autointerp.means import satterthwaite, t_point
from autointerp.stats import (
    Estimate,
    auroc,
    auroc_of_independent,
    correlation_of,
    flat,
    is_constant,
    numbered,
    pooled,
    standardised,
)

Floats = NDArray[np.float64]
MIN_DOCUMENTS = 20
MIN_BEARING = 2.0
FEWEST_OF_CLASS = 3
_LEAST = 1e-9
"""Standard errors below this are rounding."""


def pooled_correlation(
    truth: Sequence[Sequence[float]], predicted: Sequence[Sequence[float]], documents: Sequence[Hashable]
) -> Estimate:
    """Pearson correlation over the tokens of all contexts pooled, with its 95 % interval.

    `truth[i]` and `predicted[i]` hold one number per token of context i, which is from `documents[i]`. `n` is the
    number of contexts. Where the prediction is constant and the truth is not, the value is 0: such a prediction tells
    nothing. Where the truth is constant, the value is None.
    """
    x, y, group, names = _pooled(truth, predicted, documents)
    if is_constant(x):
        return Estimate(None, None, None, len(truth))
    if is_constant(y):
        return Estimate(0.0, None, None, len(truth), dict.fromkeys(names, 0.0))
    bearing = _bearing(x, y, group, len(names))
    x, y = standardised(x), standardised(y)
    sums = sums_by(group, (np.ones_like(x), x, y, x * x, y * y, x * y), len(names))
    value, left_out = leaving_each_out(correlation_of, sums)
    return _estimate(value, left_out, names, len(truth), bearing, np.arctanh, np.tanh)


def pooled_r_squared(
    truth: Sequence[Sequence[float]], predicted: Sequence[Sequence[float]], documents: Sequence[Hashable]
) -> Estimate:
    """`stats.r_squared` over the tokens of all contexts pooled, with its 95 % interval; the arguments are those of
    `pooled_correlation`. None where the truth is constant."""
    x, y, group, names = _pooled(truth, predicted, documents)
    if is_constant(x):
        return Estimate(None, None, None, len(truth))
    bearing = _bearing(x, y, group, len(names))
    centred = x - x.mean()
    spread = float(np.abs(centred).max())
    centred, error = centred / spread, (x - y) / spread
    sums = sums_by(group, (np.ones_like(x), centred, centred * centred, error * error), len(names))
    value, left_out = leaving_each_out(_r_squared_of, sums)
    return _estimate(value, left_out, names, len(truth), bearing, _log_unexplained, _explained)


def pooled_auroc(
    positive: Sequence[float],
    negative: Sequence[float],
    positive_documents: Sequence[Hashable],
    negative_documents: Sequence[Hashable],
) -> Estimate:
    """`stats.auroc` with the 95 % interval of as many independent values as there are documents of each class
    (`stats.auroc_of_independent`): right where every context has a document of its own, too wide where documents
    repeat. `n` counts the values of both classes. The value is None if a class is empty; the interval is None where a
    class has fewer than FEWEST_OF_CLASS documents."""
    p, q = flat(positive), flat(negative)
    if p.size != len(positive_documents) or q.size != len(negative_documents):
        raise ValueError("an AUROC by document needs one document per value")
    n = int(p.size + q.size)
    value = auroc(p, q)
    if value is None:
        return Estimate(None, None, None, n)
    group, index = numbered([*positive_documents, *negative_documents])
    names = list(index)
    of_p, of_q = group[: p.size], group[p.size :]
    above = (p[:, None] > q[None, :]) + 0.5 * (p[:, None] == q[None, :])
    won = np.zeros((len(names), len(names)))  # by the positives of one document against the negatives of another
    np.add.at(won, (of_p[:, None], of_q[None, :]), above)
    pairs = np.bincount(of_p, minlength=len(names))[:, None] * np.bincount(of_q, minlength=len(names))[None, :]
    won_left, pairs_left = (t.sum() - t.sum(axis=0) - t.sum(axis=1) + t.diagonal() for t in (won, pairs))
    left_out = np.where(pairs_left > 0, won_left / np.maximum(pairs_left, 1.0), np.nan)
    moved = influences_of(left_out, names)
    counts = np.unique(of_p).size, np.unique(of_q).size
    if min(counts) < FEWEST_OF_CLASS:
        return Estimate(value, None, None, n, moved)
    return replace(auroc_of_independent(value, *counts), n=n, influences=moved)


def influences_of(left_out: Floats, names: Sequence[Hashable]) -> dict[Hashable, float] | None:
    """By how much each document moves a statistic, from its values without each of them [G]: the sum of their squares
    is the jackknife variance, and the sum of the products of two statistics' influences their covariance. None where
    the statistic is not defined without some document, or there is but one."""
    groups = left_out.size
    if groups < 2 or not np.isfinite(left_out).all():
        return None
    moved = math.sqrt((groups - 1) / groups) * (left_out.mean() - left_out)
    return dict(zip(names, moved.tolist(), strict=True))


def influences(
    statistic: Callable[[Floats], Floats], columns: Sequence[ArrayLike], documents: Sequence[Hashable]
) -> dict[Hashable, float] | None:
    """`influences_of` a statistic of the sums of columns over items (see `leaving_each_out`), item i from
    `documents[i]`."""
    group, index = numbered(documents)
    sums = sums_by(group, list(map(flat, columns)), len(index))
    return influences_of(leaving_each_out(statistic, sums)[1], list(index))


def interval(value: float, left_out: Floats) -> tuple[float, float] | None:
    """Student's 95 % interval of a statistic of documents, from its values without each of them [G]; None where one of
    those is not finite, or all agree. The degrees of freedom are those of `means.satterthwaite`."""
    groups = left_out.size
    if groups < 2 or not (math.isfinite(value) and np.isfinite(left_out).all()):
        return None
    moved = left_out - left_out.mean()
    squares = float(moved @ moved)
    error = math.sqrt((groups - 1) / groups * squares)
    if error < _LEAST:
        return None
    freedom = satterthwaite(squares, float((moved**4).sum()), groups)
    half = t_point(freedom) * error
    return value - half, value + half


def interval_where_normal(
    value: float, left_out: Floats, forward: Callable[[Floats], Floats], back: Callable[[Floats], Floats]
) -> tuple[float, float] | tuple[None, None]:
    """`interval`, made after the map `forward` and taken back from there; (None, None) where there is none."""
    with np.errstate(divide="ignore"):  # at the edge, where there is no interval
        ends = interval(float(forward(np.array(value))), forward(left_out))
    if ends is None:
        return None, None
    low, high = sorted(back(np.array(ends)).tolist())
    return low, high


def leaving_each_out(statistic: Callable[[Floats], Floats], sums: Floats) -> tuple[float, Floats]:
    """A statistic of sums over all documents, and without each of them [G]. `sums` [G, K] are each document's own;
    `statistic` maps rows of sums [B, K] to values [B], NaN where it is not defined."""
    total = sums.sum(axis=0, keepdims=True)
    values = statistic(np.concatenate([total, total - sums]))
    return float(values[0]), values[1:]


def _estimate(
    value: float, left_out: Floats, names: Sequence[Hashable], n: int, bearing: float,
    forward: Callable[[Floats], Floats], back: Callable[[Floats], Floats],
) -> Estimate:  # fmt: skip
    if math.isnan(value):
        return Estimate(None, None, None, n)
    low, high = None, None
    if len(names) >= MIN_DOCUMENTS and bearing >= MIN_BEARING:
        low, high = interval_where_normal(value, left_out, forward, back)
    return Estimate(value, low, high, n, influences_of(left_out, names))


def _log_unexplained(r_squared: Floats) -> Floats:
    return np.log1p(-r_squared)


def _explained(log_unexplained: Floats) -> Floats:
    return -np.expm1(log_unexplained)


def _r_squared_of(sums: Floats) -> Floats:
    n, sx, sxx, error = sums.T
    variance = sxx - sx * sx / np.maximum(n, 1.0)
    defined = variance > 1e-12 * np.maximum(sxx, 1e-12)
    return np.where(defined, 1.0 - error / np.where(defined, variance, 1.0), np.nan)


def _bearing(x: Floats, y: Floats, group: NDArray[np.int64], groups: int) -> float:
    """In how many documents truth and prediction rise above their means together, each weighted by its share: the
    square of the sum over the sum of the squares. 0 where they never do."""
    together = np.maximum(x - x.mean(), 0.0) * np.maximum(y - y.mean(), 0.0)
    top = float(together.max(initial=0.0))
    if top == 0.0:
        return 0.0
    shares = np.bincount(group, weights=together / top, minlength=groups)
    return float(shares.sum() ** 2 / (shares @ shares))


def sums_by(group: NDArray[np.int64], columns: Sequence[Floats], groups: int) -> Floats:
    """The sums of each column over each document's items, [groups, columns]."""
    return np.stack([np.bincount(group, weights=column, minlength=groups) for column in columns], axis=1)


def _pooled(
    truth: Sequence[Sequence[float]], predicted: Sequence[Sequence[float]], documents: Sequence[Hashable]
) -> tuple[Floats, Floats, NDArray[np.int64], list[Hashable]]:
    """(truth, prediction, number of its document) for all tokens of all contexts, and the documents."""
    if not len(truth) == len(predicted) == len(documents):
        raise ValueError(f"{len(truth)} truths, {len(predicted)} predictions, {len(documents)} documents")
    x, y, sizes = pooled(truth, predicted)
    of_context, index = numbered(documents)
    return x, y, np.repeat(of_context, sizes), list(index)
