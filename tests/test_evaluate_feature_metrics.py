"""Figures of the features by themselves: their densities, and how alike their decoder rows are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autointerp.evaluate import feature_metrics as module
from autointerp.evaluate.document_sums import Metric
from autointerp.evaluate.feature_metrics import DENSITY_EDGES, decoder_metrics, feature_metrics


def values(found: list[Metric]) -> dict[str, float | None]:
    return {m.metric: m.value for m in found}


def test_densities() -> None:
    counts = np.array([0, 0, 1, 50, 101, 1000, 100, 10])
    found = values(feature_metrics(counts, 1000, "report", 7))
    assert found["dead_fraction"] == 0.25 and found["dense_fraction"] == 0.25
    bins = {name: v for name, v in found.items() if name.startswith("log10_density_bin_")}
    assert len(bins) == len(DENSITY_EDGES) and sum(filter(None, bins.values())) + 0.25 == pytest.approx(1.0)
    held = {name.rpartition("_")[2]: v for name, v in bins.items() if v}
    assert held == {"-3.0": 0.125, "-2.0": 0.125, "-1.5": 0.125, "-1.0": 0.25, "-0.5": 0.125}
    assert values(feature_metrics(np.array([1]), 10**9, None, 7))["log10_density_bin_-7.0"] == 1.0
    assert feature_metrics(np.zeros(3, np.int64), 0, None, 0) == []


def test_decoder_rows_that_are_alike() -> None:
    rows = torch.eye(6)
    rows[1] = 5 * (0.95 * rows[0] + (1 - 0.95**2) ** 0.5 * rows[1])  # a cosine of .95, not of unit length
    rows[5] = rows[4]
    alive = np.array([True, True, True, True, True, False])
    found = values(decoder_metrics(rows, alive, 100, 7, seed=0))
    assert found["decoder_redundant_fraction"] == pytest.approx(2 / 5)  # the copy of row 4 is dead
    assert found["decoder_mean_max_cosine"] == pytest.approx((0.95 + 0.95) / 5, abs=1e-6)
    assert decoder_metrics(rows, np.eye(6, dtype=bool)[0], 100, 7, seed=0) == []


def test_a_large_dictionary_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    alive = np.ones(600, dtype=bool)
    whole = decoder_metrics(rows, alive, 100, 7, seed=0)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 5000)
    assert values(decoder_metrics(rows, alive, 100, 7, seed=0)) == pytest.approx(values(whole))
    monkeypatch.setattr(module, "MOST_QUERY_ROWS", 200)
    for all_of_them, drawn in zip(whole, decoder_metrics(rows, alive, 100, 7, seed=0), strict=True):
        assert all_of_them.ci_low is None and drawn.ci_low is not None and drawn.ci_high is not None
        assert all_of_them.value is not None and drawn.ci_low <= all_of_them.value <= drawn.ci_high
