"""Finds token sequences of one set that look like one of another set, by the exact Jaccard overlap of their n-gram
shingles.

The shingles of a sequence are its distinct runs of n tokens; a sequence shorter than n is a single shingle. Shingles
are compared by 64-bit hashes: among ten million of them, the chance that any two are wrongly taken for equal is below
1e-5. The overlap of two sequences is |A and B| / |A or B|. With n = 8, two stretches of 32 tokens overlap by more than
0.5 if one is the other shifted by up to 8 tokens, or if one token in the middle differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Pairs = tuple[Ints, Ints, NDArray[np.float64]]

_EXPANDED = 2**21
"""The most shared shingles listed at a time. This bounds the memory if much text repeats."""
_DENSE = 8
"""Pairs are counted in a table if it has at most this many counters for every shared shingle, or else by sorting."""
_MULTIPLIERS = tuple(np.uint64(m) for m in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True, slots=True)
class Shingles:
    """The distinct shingles of several sequences, sequence by sequence."""

    hashes: NDArray[np.uint64]
    owners: Ints
    """The sequence that each shingle belongs to, ascending."""
    sizes: Ints
    """Distinct shingles of each sequence; 0 for one without tokens."""


@dataclass(frozen=True, slots=True)
class ShingleIndex:
    """Sequences that can be looked up by their shingles."""

    hashes: NDArray[np.uint64]
    """The shingles' hashes, ascending. A hash that several sequences have occurs several times."""
    owners: Ints
    sizes: Ints


def shingles_of(tokens: Ints, lengths: Ints, n: int) -> Shingles:
    """The shingles of the sequences that `tokens` holds one after the other; `lengths` are their numbers of tokens."""
    hashes, owners, _, is_start = runs_of_tokens(tokens, lengths, n)
    hashes, owners = hashes[is_start], owners[is_start]
    order = np.lexsort((hashes, owners))
    hashes, owners = hashes[order], owners[order]
    is_new = np.ones(len(hashes), dtype=bool)
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return Shingles(hashes[is_new], owners[is_new], np.bincount(owners[is_new], minlength=len(lengths)))


def runs_of_tokens(tokens: Ints, lengths: Ints, n: int) -> tuple[NDArray[np.uint64], Ints, Ints, NDArray[np.bool_]]:
    """For every token of the sequences: (hash of the run of n tokens that begins there, its sequence, its place in it,
    whether the run is within the sequence). A sequence shorter than n has one run, all of it."""
    owners = np.repeat(np.arange(len(lengths)), lengths)
    offsets = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    widths = np.minimum(lengths, n)[owners]
    mixed = np.concatenate([_mixed(tokens.astype(np.uint64) + np.uint64(1)), np.zeros(n, np.uint64)])
    # The width comes first, so that a short sequence never equals a part of a longer one.
    hashes = widths.astype(np.uint64)
    for i in range(n):
        hashes = hashes * _MULTIPLIERS[0] + np.where(i < widths, mixed[i : i + len(tokens)], np.uint64(0))
    return _mixed(hashes), owners, offsets, offsets + widths <= lengths[owners]


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64, which moves neighbouring token ids far apart."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIERS[1]
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIERS[2]
    return x ^ (x >> np.uint64(31))


def indexed(shingles: Shingles) -> ShingleIndex:
    order = np.argsort(shingles.hashes, kind="stable")
    return ShingleIndex(shingles.hashes[order], shingles.owners[order], shingles.sizes)


def near_pairs(queries: Shingles, index: ShingleIndex, threshold: float) -> Iterator[Pairs]:
    """Yields every pair that overlaps by more than `threshold`, as (queries, indexed sequences, overlaps), some at a
    time. All pairs of one query come together.
    """
    first = np.searchsorted(index.hashes, queries.hashes, "left")
    n_hits = np.searchsorted(index.hashes, queries.hashes, "right") - first
    # No overlap can exceed the share of a query's shingles that occur at all, so most queries end here.
    n_found = np.bincount(queries.owners[n_hits > 0], minlength=len(queries.sizes))
    is_open = (n_found > threshold * queries.sizes - 1e-9)[queries.owners] & (n_hits > 0)
    owners, first, n_hits = queries.owners[is_open], first[is_open], n_hits[is_open]
    for low, high in runs(owners, n_hits, _EXPANDED):
        present, query = np.unique(owners[low:high], return_inverse=True)
        found = index.owners[spans(first[low:high], n_hits[low:high])]
        keys, shared = _counted(np.repeat(query, n_hits[low:high]) * len(index.sizes) + found, len(present), index)
        query, found = np.divmod(keys, len(index.sizes))
        query = present[query]
        overlap = shared / (queries.sizes[query] + index.sizes[found] - shared)
        is_near = overlap > threshold
        if is_near.any():
            yield query[is_near], found[is_near], overlap[is_near]


def _counted(keys: Ints, n_queries: int, index: ShingleIndex) -> tuple[Ints, Ints]:
    """The distinct keys (query * number of sequences + sequence), and how often each occurs."""
    n = n_queries * len(index.sizes)
    if n > _DENSE * len(keys):
        return np.unique(keys, return_counts=True)
    counts = np.bincount(keys, minlength=n)  # several times faster than sorting, where much text repeats
    found = np.flatnonzero(counts)
    return found, counts[found]


def runs(owners: Ints, weights: Ints, budget: int) -> Iterator[tuple[int, int]]:
    """Cuts the ascending `owners` into stretches [low, high) that weigh at most `budget` each. The entries of one
    owner stay together, even where they weigh more."""
    ends = np.append(np.flatnonzero(np.diff(owners)) + 1, len(owners)) if len(owners) else owners
    totals = np.cumsum(weights)
    low, before = 0, 0
    while low < len(owners):
        last = int(np.searchsorted(totals[ends - 1], before + budget, "right")) - 1
        high = int(ends[last]) if last >= 0 and ends[last] > low else int(ends[np.searchsorted(ends, low, "right")])
        yield low, high
        low, before = high, int(totals[high - 1])


def spans(first: Ints, counts: Ints) -> Ints:
    """The numbers first[0], first[0] + 1, ... (counts[0] of them), then first[1], ... (counts[1] of them) ..."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(first - (ends - counts), counts)
