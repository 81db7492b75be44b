"""Overlaps of shingles against their definition on Python sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.slow_shingles import slow_pairs

from autointerp.store import near_duplicates
from autointerp.store.near_duplicates import Shingles, indexed, near_pairs, runs, shingles_of, spans

SEQUENCES = st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=8)


def made(sequences: list[list[int]], n: int) -> Shingles:
    tokens = np.array([t for s in sequences for t in s], dtype=np.int64)
    return shingles_of(tokens, np.array([len(s) for s in sequences], dtype=np.int64), n)


@given(SEQUENCES, SEQUENCES, st.integers(1, 5), st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 0.9]), st.integers(1, 30))
@settings(max_examples=300, deadline=None)
def test_overlaps_are_those_of_the_definition(
    queries: list[list[int]], held: list[list[int]], n: int, threshold: float, budget: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_EXPANDED", budget)
        patch.setattr(near_duplicates, "_DENSE", budget % 2 * 8)  # both ways of counting
        found = {
            (int(q), int(h)): float(overlap)
            for pairs in near_pairs(made(queries, n), indexed(made(held, n)), threshold)
            for q, h, overlap in zip(*pairs, strict=True)
        }
    assert found == slow_pairs(queries, held, n, threshold)


def test_known_overlaps() -> None:
    text = list(range(32))  # 25 shingles of 8 tokens
    moved, changed, other = text[8:] + list(range(100, 108)), text[:16] + [99] + text[17:], list(range(200, 232))
    pairs = list(near_pairs(made([moved, changed, other, text[:7]], 8), indexed(made([text], 8)), 0.0))
    assert [list(x) for x in zip(*[x.tolist() for x in pairs[0]], strict=True)] == [[0, 0, 17 / 33], [1, 0, 17 / 33]]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), max_size=12), st.integers(1, 20))
def test_runs_keep_owners_together_and_within_the_budget(groups: list[tuple[int, int]], budget: int) -> None:
    owners = np.array([i for i, (size, _) in enumerate(groups) for _ in range(size)], dtype=np.int64)
    weights = np.array([weight for size, weight in groups for _ in range(size)], dtype=np.int64)
    found = list(runs(owners, weights, budget))
    assert [i for low, high in found for i in range(low, high)] == list(range(len(owners)))
    for low, high in found:
        assert weights[low:high].sum() <= budget or len(set(owners[low:high])) == 1
        assert high == len(owners) or owners[high - 1] != owners[high]


def test_spans() -> None:
    assert spans(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert spans(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).tolist() == []
