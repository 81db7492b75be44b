"""Sums over the tokens of each document, and figures of these sums with their intervals.

The tokens of one document are not independent, so an interval comes from resampling documents (percentile bootstrap,
95 %). Blocks that were cut from one file count as one document. A percentile interval is too narrow on few documents,
so its percentiles are moved out by as much as Student's t exceeds the normal quantile (Hesterberg 2015, "expanded
percentile"). Below FEWEST_DOCUMENTS, where that does not suffice, there is none.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.means import t_point
from autointerp.records import source_of

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Mapping[str, Floats]]

MOST_GROUPS = 512
"""How many documents have their own sums. More documents share this many rows, by the hash of their names."""
N_BOOT = 1000
FEWEST_DOCUMENTS = 15
"""Fewest documents with which an interval is given. With fewer, 95 % intervals hold the truth too rarely."""
_BLOCK_ELEMENTS = 1 << 22
"""float64 elements of one block of resamples (32 MB)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure with its 95 % interval. `value` is None where the data do not define it. The ends are None where there
    is no interval: for fewer than FEWEST_DOCUMENTS, and for figures that resampling documents would bias."""

    metric: str
    value: float | None
    split: str | None
    """The split; None for all splits together."""
    ci_low: float | None
    ci_high: float | None
    n_tokens: int
    n_documents: int
    """Documents that the tokens come from; the blocks of one file count once."""


class DocumentSums:
    """Rows of float64 sums [width]: one per document, or for more than MOST_GROUPS documents one per hash of the name.
    The blocks of one file are one document.

    Which documents share a row depends only on their names, so the order and size of batches do not matter.
    """

    def __init__(self, width: int) -> None:
        self._names: dict[str, int] | None = {}
        self._sums = np.zeros((8, width))
        self._seen: set[int] = set()
        """A hash of every document's name."""

    @property
    def n_documents(self) -> int:
        return len(self._seen)

    def add(self, documents: Sequence[str], sums: Floats) -> None:
        """Add `sums` [B, width], taken over stretches of the `documents` [B]. A document may occur more than once."""
        self._add([source_of(name) for name in documents], sums)

    def add_all(self, other: DocumentSums) -> None:
        """Add all that `other`, of the same width, holds."""
        if other._names is not None:
            self._add(list(other._names), other.rows())
            return
        if self._names is not None:
            self._fold()
        self._sums += other._sums
        self._seen |= other._seen

    def _add(self, documents: Sequence[str], sums: Floats) -> None:
        self._seen.update(map(_name_hash, documents))
        rows = np.array([self._row(name) for name in documents], dtype=np.int64)
        if self._names is None:  # the table was folded meanwhile, so all rows are hashes now
            rows = np.array([_bucket(name) for name in documents], dtype=np.int64)
        np.add.at(self._sums, rows, sums)

    def _row(self, name: str) -> int:
        if self._names is None:
            return _bucket(name)
        row = self._names.setdefault(name, len(self._names))
        if row == MOST_GROUPS:
            self._fold()
        elif row == len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        return row

    def _fold(self) -> None:
        assert self._names is not None
        folded = np.zeros((MOST_GROUPS, self._sums.shape[1]))
        held = list(self._names)[: len(self._sums)]
        np.add.at(folded, np.array([_bucket(name) for name in held], dtype=np.int64), self._sums[: len(held)])
        self._sums, self._names = folded, None

    def rows(self) -> Floats:
        """The rows in use, [G, width]."""
        return self._sums if self._names is None else self._sums[: len(self._names)]


def _name_hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _bucket(name: str) -> int:
    return _name_hash(name) % MOST_GROUPS


def bootstrapped(rows: Floats, statistic: Statistic, seed: int, n_boot: int = N_BOOT) -> dict[str, stats.Estimate]:
    """Each figure of `statistic` with its interval, from resampling the rows [G, width] (sums of documents).

    `statistic` maps totals [B, width] to figures [B], with NaN where undefined. An estimate's `n` is the number of
    rows. The interval is None with fewer than FEWEST_DOCUMENTS rows, or when fewer than half of the resamples define
    the figure.
    """
    found = statistic(rows.sum(axis=0, keepdims=True))
    drawn: dict[str, list[Floats]] = {name: [] for name in found}
    n_rows, width = rows.shape
    rng = np.random.default_rng(seed)
    left = n_boot if n_rows >= FEWEST_DOCUMENTS else 0
    while left > 0:
        size = min(left, max(1, _BLOCK_ELEMENTS // max(width, n_rows)))
        times = rng.multinomial(n_rows, np.full(n_rows, 1.0 / n_rows), size=size).astype(np.float64)
        for name, values in statistic(times @ rows).items():
            drawn[name].append(values)
        left -= size
    return {
        name: _estimate(value, np.concatenate([*drawn[name], np.zeros(0)]), n_rows) for name, value in found.items()
    }


def _estimate(value: Floats, drawn: Floats, n: int) -> stats.Estimate:
    defined = drawn[np.isfinite(drawn)]
    if not np.isfinite(value[0]):
        return stats.Estimate(None, None, None, n)
    if not len(defined) or 2 * len(defined) < len(drawn):
        return stats.Estimate(float(value[0]), None, None, n)
    outside = 100 * expanded_tail(n)
    low, high = np.percentile(defined, [outside, 100 - outside])
    return stats.Estimate(float(value[0]), float(low), float(high), n)


def expanded_tail(n: int) -> float:
    """The share of resamples to leave out on either side for a 95 % interval from `n` documents: below .025."""
    return 0.5 * math.erfc(t_point(n - 1) * math.sqrt(n / (n - 1)) / math.sqrt(2))


def ratio(top: Floats, bottom: Floats, defined: NDArray[np.bool_] | None = None) -> Floats:
    """top / bottom, with NaN where it is not `defined`; by default it is defined where bottom is above 0."""
    good = bottom > 0 if defined is None else defined
    return np.where(good, top / np.where(good, bottom, 1.0), np.nan)


def as_metrics(
    estimates: Mapping[str, stats.Estimate], split: str | None, n_tokens: int, n_documents: int
) -> list[Metric]:
    return [Metric(name, e.value, split, e.low, e.high, n_tokens, n_documents) for name, e in estimates.items()]


def together(tables: Sequence[DocumentSums]) -> DocumentSums | None:
    """The sums of several tables; a document that stands in more than one has one row. None without tables."""
    if len(tables) < 2:
        return tables[0] if tables else None
    whole = DocumentSums(tables[0].rows().shape[1])
    for table in tables:
        whole.add_all(table)
    return whole
