"""Finds contexts whose peak stands, word for word, in a context that the explainer or a chooser of labels has seen.

What makes a feature fire is mostly the few tokens that end at its peak. Two contexts that share them may differ in all
the rest, so that their overlap as a whole says nothing; but a label made from one of them is certain to fit the other.
So for every active context (top and sampled) the run of `ngram` tokens that ends at its peak is looked for in the
contexts of the same feature in another split. The contexts are read with the tokens in front of them, so that a peak at
a context's beginning has its run, too. A peak with fewer tokens before it in its window has no run and is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray

from autointerp.records import SPLITS, Split
from autointerp.store.near_duplicates import Ints, runs, runs_of_tokens

PAIRS: tuple[tuple[Split, Split], ...] = (("explain", "select"), ("explain", "report"), ("select", "report"))
"""(the split that was seen, the one that is held out from it)."""
SHOWN = 5
"""How many example pairs the report gives for each pair of splits, and how many features the printed text names."""
_BLOCK_TOKENS = 2**21
"""Tokens of contexts in memory at a time."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

_SIZES = """
    SELECT feature::BIGINT AS feature, sum(length)::BIGINT AS tokens FROM evidence.context_rows
    WHERE dictionary_id = ? AND harvest_id = ? GROUP BY feature ORDER BY feature
"""
# `low` and `high` bound the context and the tokens before it, without the special tokens in front of a document.
_CONTEXTS = """
    SELECT feature::BIGINT AS feature, context_id, split, kind, high - low AS length, peak - low AS peak,
        token_ids[low + 1 : high] AS ids
    FROM (
        SELECT c.feature, c.context_id, c.split, c.kind, w.token_ids, c.position - w.start + w.n_prefix AS peak,
            greatest(c."offset" - ? + 1, w.n_prefix)::BIGINT AS low,
            greatest(c."offset" + c.length, low)::BIGINT AS high
        FROM evidence.context_rows AS c JOIN evidence.windows AS w USING (window_id)
        WHERE c.dictionary_id = ? AND c.harvest_id = ? AND c.feature BETWEEN ? AND ?
    )
    ORDER BY feature, context_id
"""


@dataclass(frozen=True, slots=True)
class PeakPair:
    context_id: int
    """A context of the held-out split."""
    seen_context_id: int
    """The first context of the same feature in the seen split that holds its peak's run."""


@dataclass(frozen=True, slots=True)
class FeaturePeaks:
    feature: int
    n_contexts: int
    n_contained: int


@dataclass(frozen=True, slots=True)
class PeakLeaks:
    """The peaks of one split that stand in another split's contexts of the same feature."""

    seen: Split
    held: Split
    n_contexts: int
    """Active contexts of the held-out split with a whole run before the peak."""
    n_contained: int
    share: float | None
    """n_contained / n_contexts; None without contexts."""
    n_top: int
    """The top contexts among them."""
    n_top_contained: int
    share_top: float | None
    n_features: int
    examples: list[PeakPair]
    """The first SHOWN, by feature."""
    features: list[FeaturePeaks]
    """Every feature with n_contained above 0, the one with the largest share first."""


@dataclass(frozen=True)
class _Block:
    """The contexts of a block of features, and the runs of their tokens. Equal keys mean the same feature and the same
    tokens."""

    feature: Ints
    context_id: Ints
    split: NDArray[np.object_]
    kind: NDArray[np.object_]
    peak_key: NDArray[np.uint64]
    """Per context: the key of the run that ends at its peak, 0 where there is none."""
    key: NDArray[np.uint64]
    """Per run."""
    owner: Ints
    """Per run: the index of its context."""


@dataclass
class _Counts:
    """What was found so far for one pair of splits."""

    top: int = 0
    top_contained: int = 0

    def __post_init__(self) -> None:
        self.examples: list[PeakPair] = []
        self.features: list[FeaturePeaks] = []

    def add(self, features: Ints, is_top: NDArray[np.bool_], contained: NDArray[np.bool_]) -> None:
        self.top += int(is_top.sum())
        self.top_contained += int((is_top & contained).sum())
        found, counts = np.unique(features, return_counts=True)
        leaked = np.bincount(np.searchsorted(found, features[contained]), minlength=len(found))
        self.features += [FeaturePeaks(*map(int, row)) for row in zip(found, counts, leaked, strict=True)]

    def result(self, seen: Split, held: Split) -> PeakLeaks:
        n, contained = (sum(getattr(f, name) for f in self.features) for name in ("n_contexts", "n_contained"))
        touched = [f for f in self.features if f.n_contained]
        touched.sort(key=lambda f: (-f.n_contained / f.n_contexts, -f.n_contained, f.feature))
        return PeakLeaks(
            seen, held, n, contained, contained / n if n else None, self.top, self.top_contained,
            self.top_contained / self.top if self.top else None, len(self.features), self.examples, touched,
        )  # fmt: skip


def peak_leaks(cursor: duckdb.DuckDBPyConnection, dictionary_id: int, harvest_id: int, ngram: int) -> list[PeakLeaks]:
    """The leaks of every pair of PAIRS. Memory grows with the tokens of a block of features, not with the store."""
    counts = {pair: _Counts() for pair in PAIRS}
    for block in _blocks(cursor, dictionary_id, harvest_id, ngram):
        splits = {split: block.split == split for split in SPLITS}
        active = (block.kind != "negative") & (block.peak_key != 0)
        for seen, held in PAIRS:
            has_key = splits[seen][block.owner]
            keys, first = np.unique(block.key[has_key], return_index=True)
            asked = np.flatnonzero(active & splits[held])
            if not len(asked):
                continue
            place = np.searchsorted(keys, block.peak_key[asked])
            contained = np.zeros(len(asked), dtype=bool)
            inside = place < len(keys)
            contained[inside] = keys[place[inside]] == block.peak_key[asked][inside]
            found = counts[seen, held]
            found.add(block.feature[asked], block.kind[asked] == "top", contained)
            partners = block.owner[has_key][first[place[contained]]]
            for context, partner in zip(asked[contained], partners, strict=True):
                if len(found.examples) == SHOWN:
                    break
                found.examples.append(PeakPair(int(block.context_id[context]), int(block.context_id[partner])))
    return [counts[pair].result(*pair) for pair in PAIRS]


def _blocks(cursor: duckdb.DuckDBPyConnection, dictionary_id: int, harvest_id: int, ngram: int) -> Iterator[_Block]:
    sizes = cursor.execute(_SIZES, [dictionary_id, harvest_id]).fetchnumpy()
    features, tokens = (np.asarray(sizes[name], dtype=np.int64) for name in ("feature", "tokens"))
    for low, high in runs(np.arange(len(features)), tokens, _BLOCK_TOKENS):
        bounds = [int(features[low]), int(features[high - 1])]
        rows = cursor.execute(_CONTEXTS, [ngram, dictionary_id, harvest_id, *bounds]).fetchnumpy()
        length, peak, feature = (np.asarray(rows[name], dtype=np.int64) for name in ("length", "peak", "feature"))
        ids = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in rows["ids"]])
        hashes, owners, offsets, is_start = runs_of_tokens(ids, length, ngram)
        keys = (hashes + feature[owners].astype(np.uint64)) * _MULTIPLIER | np.uint64(1)
        whole = is_start & (length[owners] >= ngram)
        begins = np.cumsum(length) - length
        has_run = (peak >= ngram - 1) & (peak < length)
        peak_key = np.zeros(len(length), dtype=np.uint64)
        peak_key[has_run] = keys[(begins + peak - ngram + 1)[has_run]]
        context_ids = np.asarray(rows["context_id"], dtype=np.int64)
        split, kind = (np.asarray(rows[name], dtype=object) for name in ("split", "kind"))
        yield _Block(feature, context_ids, split, kind, peak_key, keys[whole], owners[whole])
