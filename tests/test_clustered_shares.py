"""Shares of hits among tiles of which those of one document are alike, and the precision made of two of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.simulated_claims import clustered, of_documents

from autointerp import stats
from autointerp.clustered_shares import FEWEST_DOCUMENTS, design_effect, share_of
from autointerp.prevalence import natural_precision


def test_tiles_of_documents_of_their_own_are_independent() -> None:
    for n in (1, 5, 40):
        hits = [i % 2 for i in range(n)]
        assert share_of(hits, list(range(n))) == stats.wilson(sum(hits), n)
    assert share_of([], []) == stats.Estimate(None, None, None, 0)


def test_tiles_of_a_document_that_are_the_same_count_once() -> None:
    hits, documents = np.repeat([0, 1], [60, 60]), np.repeat(np.arange(30), 4)
    assert design_effect(hits, documents.tolist()) == pytest.approx(4)
    found, once = share_of(hits, documents.tolist()), stats.wilson(15, 30)
    assert (found.low, found.high) == pytest.approx((once.low, once.high))


def test_tiles_that_are_mixed_within_documents_are_as_good_as_independent() -> None:
    hits, documents = [0, 1] * 60, np.repeat(np.arange(30), 4).tolist()
    assert design_effect(hits, documents) == 1.0


def test_of_few_documents_it_is_not_known() -> None:
    hits = [0, 1, 1] * 9
    found = share_of(hits, [i // 3 for i in range(27)])
    assert found == stats.Estimate(pytest.approx(2 / 3), None, None, 27)
    assert design_effect([0, 1, 1], ["a", "b", "c"]) == 1.0
    assert design_effect([0, 1] * 4 + [1], ["a", "a", *"bcdefgh"]) == pytest.approx(11 / 9)
    with pytest.raises(ValueError, match="as many documents"):
        design_effect([0, 1], ["a"])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 25)), min_size=1, max_size=80))
def test_the_effect_lies_between_independence_and_sameness(tiles: list[tuple[bool, int]]) -> None:
    hits, documents = [hit for hit, _ in tiles], [document for _, document in tiles]
    effect, sizes = design_effect(hits, documents), np.bincount(documents).astype(float)
    assert effect is None or 1 <= effect <= float(sizes @ sizes) / len(tiles) + 1e-9
    assert effect is not None or len(set(documents)) < FEWEST_DOCUMENTS
    found = share_of(hits, documents)
    assert found.value == pytest.approx(np.mean(hits))
    if found.low is not None and found.high is not None:
        assert 0 <= found.low <= np.mean(hits) + 1e-12 and np.mean(hits) - 1e-12 <= found.high <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("active", "silent"), [(20, 40), (40, 2000), (60, 40), (60, 2000), (200, 2000)])
def test_intervals_of_shares_and_of_precision_cover(active: int, silent: int) -> None:
    rng = np.random.default_rng(active + silent)
    shares, precisions, corners = [], [], []
    for true in (0.1, 0.3, 0.5, 0.8, 0.95):
        for density in (0.02, 0.1, 0.3):
            for alike in (0.0, 0.1, 0.2):
                for _ in range(60):
                    alarm = true * density * rng.uniform(0.05, 0.9)
                    of, silent_of = of_documents(rng, active, 30), of_documents(rng, silent, 300)
                    s = share_of(clustered(rng, of, alike) < true, of.tolist())
                    f = share_of(clustered(rng, silent_of, alike) < alarm, silent_of.tolist())
                    found = natural_precision(s, f, density)
                    truth = true * density / (true * density + alarm * (1 - density))
                    if s.low is not None and s.high is not None:
                        shares.append(s.low <= true <= s.high)
                    if found.low is not None and found.high is not None:
                        precisions.append(found.low <= truth <= found.high)
                        corners.append(_corners(s, f, density, truth))
    for held in (shares, precisions):
        assert len(held) > 2000 and 0.93 <= np.mean(held) <= 0.97, np.mean(held)
    assert silent < 2000 or np.mean(corners) > 0.97  # both at their ends at once: too wide


def _corners(s: stats.Estimate, f: stats.Estimate, density: float, truth: float) -> bool:
    assert s.low is not None and s.high is not None and f.low is not None and f.high is not None
    ends = [(s.low, f.high), (s.high, f.low)]
    low, high = (a * density / max(a * density + b * (1 - density), 1e-12) for a, b in ends)
    return low <= truth <= high
