"""Whether one label of a feature scores better than what stands in its place, from two scores on the same contexts.

Leaving out a document moves both scores, mostly in the same way, so the difference is known better than either of them.
By how much each document moves the difference is the difference of its influences (see jackknife.influences_of).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from autointerp.jackknife import MIN_DOCUMENTS
from autointerp.means import satterthwaite, t_p_value, t_point
from autointerp.prevalence import is_group

SIGNIFICANT = 0.05
"""Of the features that a verdict is given on, at most this share is expected to have got it by chance."""
_LEAST = 1e-9
"""Differences and standard errors below this are rounding. Influences are stored with seven digits."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The difference of two scores with its 95 % interval and the two-sided p-value of no difference."""

    value: float
    low: float | None
    high: float | None
    p_value: float | None
    """None where the scores are from fewer than MIN_DOCUMENTS documents, or it is not known how those move them."""
    n_documents: int


def paired_difference(
    value: float, influences: Mapping[str, float] | None, other: float, other_influences: Mapping[str, float] | None
) -> PairedDifference:
    """`value` minus `other`, by a jackknife over documents with Student's t (see jackknife.interval).

    Where the scores differ, but by as much without any document, there is no spread to measure the difference by. All
    documents then agree, and p is that of half as many coins, since each may speak of one class of contexts only.
    """
    difference = value - other
    if influences is None or other_influences is None:
        return PairedDifference(difference, None, None, None, 0)
    moved_by = _moved(influences, other_influences)
    n_documents = sum(not is_group(document) for document in moved_by)
    if n_documents < MIN_DOCUMENTS:
        return PairedDifference(difference, None, None, None, n_documents)
    moved = list(moved_by.values())
    squares = math.fsum(one * one for one in moved)
    error = math.sqrt(squares)
    if error < _LEAST:
        if abs(difference) < _LEAST:
            return PairedDifference(difference, difference, difference, 1.0, n_documents)
        return PairedDifference(difference, None, None, 2.0 ** (1 - n_documents // 2), n_documents)
    freedom = satterthwaite(squares, math.fsum(one**4 for one in moved), len(moved))
    half = t_point(freedom) * error
    p_value = t_p_value(difference / error, freedom)
    return PairedDifference(difference, difference - half, difference + half, p_value, n_documents)


def noise_of_difference(
    influences: Mapping[Hashable, float] | None, other_influences: Mapping[Hashable, float] | None
) -> float | None:
    """The standard error of the difference of two scores, from however few documents, and at least what rounding may
    make of no difference; None where it is not known how documents move the scores."""
    if influences is None or other_influences is None:
        return None
    return max(_LEAST, math.sqrt(math.fsum(one * one for one in _moved(influences, other_influences).values())))


def _moved(influences: Mapping[Any, float], other_influences: Mapping[Any, float]) -> dict[Any, float]:
    """By how much each document moves the difference."""
    documents = dict.fromkeys([*influences, *other_influences])
    return {document: influences.get(document, 0.0) - other_influences.get(document, 0.0) for document in documents}
