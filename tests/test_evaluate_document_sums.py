"""Sums of documents are bounded in memory, and intervals made from them are over documents."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from autointerp.evaluate.document_sums import (
    FEWEST_DOCUMENTS,
    MOST_GROUPS,
    DocumentSums,
    bootstrapped,
    ratio,
    together,
)

Floats = NDArray[np.float64]


@pytest.mark.parametrize("n_documents", [5, 511, 512, 513, 900])
def test_the_rows_of_documents_are_bounded(n_documents: int) -> None:
    rng = np.random.default_rng(0)
    names = [f"file {i}.py" for i in range(n_documents)] * 2
    rows = rng.integers(0, 100, size=(len(names), 3)).astype(np.float64)
    tables = []
    for order, size in ((np.arange(len(names)), 7), (rng.permutation(len(names)), 400)):
        table = DocumentSums(3)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            table.add([names[i] for i in chosen], rows[chosen])
        tables.append(table.rows())
    for table_rows in tables:
        assert len(table_rows) == min(n_documents, MOST_GROUPS)
        np.testing.assert_array_equal(table_rows.sum(0), rows.sum(0))
    first, second = (np.array(sorted(map(tuple, t))) for t in tables)
    np.testing.assert_array_equal(first, second)


def mean_of(totals: Floats) -> dict[str, Floats]:
    return {"mean": ratio(totals[:, 1], totals[:, 0])}


@pytest.mark.parametrize("n_documents", [FEWEST_DOCUMENTS, 60])
def test_intervals_over_documents_cover(n_documents: int) -> None:
    """Tokens of a document share most of their value; an interval over tokens would be a tenth as wide. The plain
    percentiles would cover .90 at 15 documents."""
    rng = np.random.default_rng(0)
    hits, n_runs = 0, 400
    for _ in range(n_runs):
        n_tokens = rng.integers(20, 200, size=n_documents)
        level = rng.normal(size=n_documents)
        sums = n_tokens * level + rng.normal(size=n_documents) * np.sqrt(n_tokens)
        found = bootstrapped(np.stack([n_tokens, sums], axis=1).astype(np.float64), mean_of, seed=1, n_boot=200)["mean"]
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.0 <= found.high
    assert 0.925 <= hits / n_runs <= 0.975


@pytest.mark.parametrize("n_documents", [2, 3, 5, FEWEST_DOCUMENTS - 1])
def test_too_few_documents_have_no_interval(n_documents: int) -> None:
    rows = np.random.default_rng(0).uniform(1, 2, size=(n_documents, 2))
    found = bootstrapped(rows, mean_of, seed=0)["mean"]
    assert found.value is not None and (found.low, found.high, found.n) == (None, None, n_documents)


def test_blocks_of_one_file_are_one_document() -> None:
    """Within a split and over all: 40 blocks of 4 files are 4 documents, whose sums are the files'."""
    rng = np.random.default_rng(0)
    tables = {split: DocumentSums(2) for split in ("explain", "report")}
    sums = rng.integers(0, 9, size=(40, 2)).astype(np.float64)
    for i in range(40):
        tables["explain" if i % 2 else "report"].add([f"file{i % 4}.txt#{i}"], sums[i : i + 1])
    assert tables["explain"].n_documents == tables["report"].n_documents == 2
    tables["report"].add(["file1.txt#99"], np.ones((1, 2)))
    whole = together(list(tables.values()))
    assert whole is not None and whole.n_documents == 4
    expected = np.array([sums[i::4].sum(0) + (i == 1) for i in range(4)])
    np.testing.assert_array_equal(np.sort(whole.rows(), axis=0), np.sort(expected, axis=0))
    many = DocumentSums(2)
    many.add([f"f{i}" for i in range(600)], np.ones((600, 2)))  # folded
    both = together([tables["explain"], many])
    assert both is not None and both.n_documents == 602 and len(both.rows()) == MOST_GROUPS
