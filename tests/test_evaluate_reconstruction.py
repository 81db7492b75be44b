"""Figures from streamed sums are the textbook's on all vectors at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autointerp.evaluate import reconstruction
from autointerp.evaluate.document_sums import Metric
from autointerp.evaluate.reconstruction import Reconstruction
from autointerp.sae.codes import SparseCodes

Floats = NDArray[np.float64]
D_SAE = 12


def some_codes(n: int, rng: np.random.Generator) -> SparseCodes:
    dense = rng.exponential(size=(n, D_SAE)) * (rng.random((n, D_SAE)) < 0.3)
    dense[:, 5] = 0.0
    rows, features = np.nonzero(dense)
    values = torch.tensor(dense[rows, features], dtype=torch.float32)
    return SparseCodes(torch.from_numpy(rows), torch.from_numpy(features), values, n)


def part_of(codes: SparseCodes, start: int, stop: int) -> SparseCodes:
    inside = (codes.rows >= start) & (codes.rows < stop)
    return SparseCodes(codes.rows[inside] - start, codes.features[inside], codes.values[inside], stop - start)


def streamed(
    y: Floats, y_hat: Floats, codes: SparseCodes, cuts: list[int], documents: NDArray[np.int64], x: Floats | None = None
) -> Reconstruction:
    """One accumulator over batches that end at `cuts`; `documents` [n] ascending says where each token stands."""
    sums = Reconstruction(D_SAE)
    edges = [0, *sorted(set(cuts) - {0, len(y)}), len(y)]
    for start, stop in zip(edges, edges[1:], strict=False):
        here = documents[start:stop]
        names, window = np.unique(here, return_inverse=True)
        sums.add(
            "report",
            [f"doc{name}" for name in names],
            torch.from_numpy(window),
            torch.from_numpy(y[start:stop]),
            torch.from_numpy(y_hat[start:stop]),
            part_of(codes, start, stop),
            None if x is None else torch.from_numpy(x[start:stop]),
        )
    return sums


def values(found: list[Metric]) -> dict[str, float | None]:
    return {m.metric: m.value for m in found}


def example(n: int = 400, d: int = 7, seed: int = 0) -> tuple[Floats, Floats, SparseCodes, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, d)) * rng.exponential(size=d) + 3.0 * rng.normal(size=d)
    y_hat = 0.9 * y + 0.2 * rng.normal(size=(n, d))
    return y, y_hat, some_codes(n, rng), np.sort(rng.integers(0, 9, size=n))


def test_the_figures_are_those_of_all_vectors_at_once() -> None:
    y, y_hat, codes, documents = example()
    found = values(streamed(y, y_hat, codes, [13, 14, 200], documents).metrics("report", seed=0))
    e, norm, norm_hat = y - y_hat, np.linalg.norm(y, axis=1), np.linalg.norm(y_hat, axis=1)
    fvu = (e**2).sum() / ((y - y.mean(0)) ** 2).sum()
    expected = {
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "mse": (e**2).sum(1).mean(),
        "cosine": ((y * y_hat).sum(1) / norm / norm_hat).mean(),
        "l2_ratio": (norm_hat / norm).mean(),
        "relative_bias": (y_hat**2).sum() / (y * y_hat).sum(),
        "error_norm_share": (np.linalg.norm(e, axis=1) / norm).mean(),
        "l0": len(codes.values) / len(y),
        "l1": float(codes.values.double().sum()) / len(y),
        "input_gamma": np.linalg.norm(y.mean(0)) / np.linalg.norm(y.std(0)),
        "fvu_all_tokens": fvu,
    }
    assert found == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.lists(st.integers(1, 59), max_size=8), st.integers(0, 99), st.booleans())
def test_batches_do_not_matter(n: int, cuts: list[int], seed: int, transcoder: bool) -> None:
    y, y_hat, codes, documents = example(n, 5, seed)
    x = example(n, 3, seed + 1)[0] if transcoder else None
    whole = streamed(y, y_hat, codes, [], documents, x)
    parts = streamed(y, y_hat, codes, [c for c in cuts if c < n], documents, x)
    for one, other in zip(whole.metrics(None, 0, 50), parts.metrics(None, 0, 50), strict=True):
        assert (one.metric, one.n_tokens) == (other.metric, other.n_tokens)
        for a, b in ((one.value, other.value), (one.ci_low, other.ci_low), (one.ci_high, other.ci_high)):
            assert (a is None) == (b is None)
            assert a is None or a == pytest.approx(b, rel=1e-6, abs=1e-9)
    assert (whole.counts() == parts.counts()).all()
    torch.testing.assert_close(whole.mean(), torch.from_numpy(y.mean(0)))


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(0, 99))
def test_fvu_has_no_unit(scale: float, seed: int) -> None:
    y, y_hat, codes, documents = example(50, 4, seed)
    assert streamed(scale * y, scale * y_hat, codes, [20], documents).fvu() == pytest.approx(
        streamed(y, y_hat, codes, [20], documents).fvu(), rel=1e-9
    )


def peers_explained_variance(y: Floats, y_hat: Floats) -> float:
    """As SAELens before March 2026 and SAEBench 0.6: the total is E|x|^2 minus the square of a mean square."""
    total = (y**2).sum(1).mean() - ((y**2).mean(0) ** 2).mean()
    return float(1 - ((y - y_hat) ** 2).sum(1).mean() / total)


@settings(max_examples=40, deadline=None)
@given(st.floats(-1e3, 1e3), st.integers(0, 99))
def test_a_constant_mean_changes_no_explained_variance(offset: float, seed: int) -> None:
    y, y_hat, codes, documents = example(60, 4, seed)
    plain = values(streamed(y, y_hat, codes, [7], documents).metrics(None, 0, 0))["explained_variance"]
    moved = values(streamed(y + offset, y_hat + offset, codes, [7], documents).metrics(None, 0, 0))
    assert moved["explained_variance"] == pytest.approx(plain, rel=1e-8, abs=1e-8)


def test_the_peers_formula_would_move() -> None:
    rng = np.random.default_rng(0)
    y = 0.5 * rng.normal(size=(4000, 16))
    y_hat = y + 0.125 * rng.normal(size=y.shape)
    documents = np.arange(4000) // 100
    codes = some_codes(len(y), rng)
    for offset in (0.0, 1.0, 3.0):
        right = values(streamed(y + offset, y_hat + offset, codes, [99], documents).metrics(None, 0, 0))
        assert right["explained_variance"] == pytest.approx(0.9375, abs=0.003)
    assert peers_explained_variance(y + 1.0, y_hat + 1.0) > 0.98


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_mean_costs_no_digits(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    y = torch.from_numpy(rng.normal(size=(3000, 6)) + 1e3).to(dtype)
    y_hat = (y.float() + 0.3 * torch.from_numpy(rng.normal(size=y.shape))).float()
    sums = Reconstruction(D_SAE)
    for start in range(0, 3000, 500):
        part = slice(start, start + 500)
        window = torch.zeros(500, dtype=torch.int64)
        sums.add("report", [str(start)], window, y[part], y_hat[part], part_of(some_codes(3000, rng), start, start))
    exact = y.double()
    expected = ((exact - y_hat.double()) ** 2).sum() / ((exact - exact.mean(0)) ** 2).sum()
    assert sums.fvu() == pytest.approx(float(expected), rel=1e-12)


def test_known_fractions_of_variance() -> None:
    y, _, codes, documents = example()
    mean = y.mean(0)
    for y_hat, fvu in ((y, 0.0), (np.broadcast_to(mean, y.shape), 1.0), (y + (mean - y) * 0.5**0.5, 0.5)):
        found = streamed(y, np.ascontiguousarray(y_hat), codes, [50], documents)
        assert found.fvu() == pytest.approx(fvu, abs=1e-12)


def test_what_is_not_defined_is_none() -> None:
    n = 6
    same, codes = np.full((n, 3), 0.1), some_codes(n, np.random.default_rng(0))
    found = {m.metric: m for m in streamed(same, 0 * same, codes, [2], np.zeros(n, np.int64)).metrics(None, 0)}
    for name in ("fvu", "explained_variance", "fvu_all_tokens", "relative_bias", "input_gamma"):
        assert found[name].value is None, name
    assert (found["cosine"].value, found["l2_ratio"].value, found["error_norm_share"].value) == (0.0, 0.0, 1.0)
    assert all(m.ci_low is None and m.ci_high is None for m in found.values())  # one document
    nothing = {m.metric: m.value for m in streamed(0 * same, same, codes, [], np.arange(n)).metrics(None, 0)}
    assert nothing["cosine"] is None and nothing["l2_ratio"] is None
    assert Reconstruction(3).metrics(None, 0) == [] and Reconstruction(3).fvu() is None


def test_splits_stay_apart_and_add_up() -> None:
    y, y_hat, codes, _ = example(300)
    sums = Reconstruction(D_SAE)
    for split, start, stop in (("explain", 0, 100), ("report", 100, 300)):
        window = torch.arange(stop - start) // 10
        names = [f"{split}{i}" for i in range((stop - start) // 10)]
        here = slice(start, stop)
        sums.add(
            split, names, window, torch.from_numpy(y[here]), torch.from_numpy(y_hat[here]), part_of(codes, start, stop)
        )
    assert sums.splits == ["explain", "report"] and sums.metrics("select", 0) == []
    assert [sums.n_tokens(s) for s in ("explain", "report", None)] == [100, 200, 300]
    parts: dict[str | None, slice] = {"explain": slice(0, 100), "report": slice(100, 300), None: slice(0, 300)}
    for part, here in parts.items():
        a, b = y[here], y_hat[here]
        assert sums.fvu(part) == pytest.approx(((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum())
        in_split = (codes.rows >= here.start) & (codes.rows < here.stop)
        assert sums.counts(part).tolist() == torch.bincount(codes.features[in_split], minlength=D_SAE).tolist()


def test_excluded_tokens_only_enter_the_figure_of_all_tokens() -> None:
    y, y_hat, codes, documents = example(100)
    sums = streamed(y, y_hat, codes, [30], documents)
    before = values(sums.metrics("report", 0))
    sink = np.full((4, y.shape[1]), 50.0)
    sums.add_excluded("report", torch.from_numpy(sink), torch.from_numpy(sink), part_of(codes, 0, 4))
    after = values(sums.metrics("report", 0))
    everything = np.concatenate([y, sink])
    expected = ((y - y_hat) ** 2).sum() / ((everything - everything.mean(0)) ** 2).sum()
    assert after.pop("fvu_all_tokens") == pytest.approx(expected)
    assert before.pop("fvu_all_tokens") == pytest.approx(before["fvu"]) and before == after


def test_a_transcoders_gamma_is_of_what_it_reads() -> None:
    y, y_hat, codes, documents = example(200)
    x = example(200, 4, seed=5)[0] + 10.0
    found = values(streamed(y, y_hat, codes, [9, 120], documents, x).metrics(None, 0))
    assert found["input_gamma"] == pytest.approx(np.linalg.norm(x.mean(0)) / np.linalg.norm(x.std(0)))
    assert found["fvu"] == pytest.approx(((y - y_hat) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())


def test_the_interval_is_seeded_and_holds_the_value() -> None:
    y, y_hat, codes, documents = example()
    sums = streamed(y, y_hat, codes, [], np.sort(np.arange(len(y)) % 20))
    first, again, other = (sums.metrics(None, seed) for seed in (3, 3, 4))
    assert first == again and first != other
    for metric in first:
        if metric.metric != "fvu_all_tokens":
            assert metric.ci_low is not None and metric.ci_high is not None and metric.value is not None
            assert metric.ci_low <= metric.value <= metric.ci_high


def test_blocks_of_tokens_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    y, y_hat, codes, documents = example()
    whole = values(streamed(y, y_hat, codes, [], documents).metrics(None, 0))
    monkeypatch.setattr(reconstruction, "_BLOCK_ELEMENTS", 30)
    assert values(streamed(y, y_hat, codes, [], documents).metrics(None, 0)) == pytest.approx(whole)
