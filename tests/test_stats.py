from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp import stats

numbers = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)  # subnormal ones included


@settings(max_examples=60, deadline=None)
@given(numbers, st.integers(0, 2**32 - 1))
def test_pearson_is_numpys_where_that_is_defined(x: list[float], seed: int) -> None:
    y = np.random.default_rng(seed).normal(size=len(x))
    value = stats.pearson(x, y)
    if value is None:
        assert np.ptp(x) <= 1e-10 * float(np.abs(x).max())
    else:
        assert -1.0 <= value <= 1.0
        if np.ptp(x) > 1e-6 * np.abs(x).max():
            assert value == pytest.approx(np.corrcoef(x / np.abs(x).max(), y)[0, 1], abs=1e-6)


def test_a_constant_has_no_correlation() -> None:
    assert stats.pearson([0.1] * 7, range(7)) is None
    assert stats.pearson(range(7), [1e9 + 1 / 3] * 7) is None
    assert stats.pearson([], []) is None
    assert stats.pearson([1.0, math.nan], [1.0, 2.0]) is None
    assert stats.is_constant([0.3, 0.3]) and not stats.is_constant([0.3, 0.4])
    with pytest.raises(ValueError, match="3 and 2"):
        stats.pearson([1, 2, 3], [1, 2])


def test_a_large_offset_does_not_hurt() -> None:
    x = np.random.default_rng(0).normal(size=200)
    y = x + np.random.default_rng(1).normal(size=200)
    assert stats.pearson(x + 1e7, y * 1e-9) == pytest.approx(stats.pearson(x, y), abs=1e-6)


def pooled(n: int = 30, tokens: int = 32, noise: float = 1.0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    truth = [rng.random(tokens) for _ in range(n)]
    return truth, [t + noise * rng.normal(size=tokens) for t in truth]


def test_pooled_correlation_is_one_correlation_over_all_tokens() -> None:
    truth, predicted = pooled()
    found = stats.pooled_correlation(truth, predicted, range(30), seed=3)
    assert found.value == pytest.approx(stats.pearson(np.concatenate(truth), np.concatenate(predicted)))
    assert found.n == 30
    assert found.low is not None and found.high is not None and found.value is not None
    assert found.low < found.value < found.high
    assert found == stats.pooled_correlation(truth, predicted, range(30), seed=3)


def test_the_bootstrap_resamples_documents() -> None:
    """Against a plain loop that draws whole documents."""
    truth, predicted = pooled(12)
    documents = [i // 3 for i in range(12)]
    found = stats.pooled_correlation(truth, predicted, documents, n_boot=4000, seed=1)
    rng = np.random.default_rng(99)
    values = []
    for _ in range(4000):
        chosen = [i for d in rng.integers(0, 4, size=4) for i in range(3 * d, 3 * d + 3)]
        x, y = (np.concatenate([s[i] for i in chosen]) for s in (truth, predicted))
        values.append(np.corrcoef(x, y)[0, 1])
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=0.01)


def test_undefined_pooled_values() -> None:
    assert stats.pooled_correlation([], [], []) == stats.Estimate(None, None, None, 0)
    assert stats.pooled_correlation([[0, 0]], [[1, 2]], "a").value is None
    one = stats.pooled_correlation([[0, 1, 2]], [[0, 1, 3]], "a")
    assert one.value is not None and one.low is None
    # Nine documents of ten are silent: most resamples that miss the tenth are undefined, and so is the interval.
    silent = stats.pooled_correlation([[0.0, 0.0]] * 9 + [[1.0, 0.0]], [[1.0, 0.0]] * 10, range(10))
    assert silent.value is not None
    with pytest.raises(ValueError, match="context 0 has 2 tokens and 1"):
        stats.pooled_correlation([[0, 1]], [[0]], "a")


def test_a_thousand_resamples_are_cheap() -> None:
    truth, predicted = pooled()
    stats.pooled_correlation(truth, predicted, range(30))
    best = min(_timed(lambda: stats.pooled_correlation(truth, predicted, range(30))) for _ in range(10))
    assert best < 0.005, f"{best * 1000:.2f} ms"


def _timed(work: object) -> float:
    start = time.process_time()
    work()  # type: ignore[operator]
    return time.process_time() - start


def test_calibration_and_r_squared() -> None:
    p = np.random.default_rng(0).random(100)
    slope, intercept = stats.linear_calibration(p, 3 * p + 2)
    assert (slope, intercept) == pytest.approx((3, 2))
    assert stats.linear_calibration([1, 1], [2, 4]) == (0.0, 3.0)
    assert stats.r_squared(3 * p + 2, slope * p + intercept) == pytest.approx(1.0)
    assert stats.r_squared([1, 2, 3], [2, 2, 2]) == pytest.approx(0.0)
    assert stats.r_squared([2, 2], [1, 2]) is None
    truth, predicted = pooled(noise=0.1)
    found = stats.pooled_r_squared(truth, predicted, range(30))
    assert found.value == pytest.approx(stats.r_squared(np.concatenate(truth), np.concatenate(predicted)))
    assert found.low is not None and found.low < found.value
    with pytest.raises(ValueError, match="non-empty"):
        stats.linear_calibration([], [])


def test_wilson() -> None:
    assert stats.wilson(0, 0).value is None
    found = stats.wilson(8, 10)  # Wilson 1927, as in any table
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert stats.wilson(0, 5).low == 0.0 and stats.wilson(5, 5).high == 1.0
    with pytest.raises(ValueError):
        stats.wilson(6, 5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_auroc_counts_pairs(positive: list[int], negative: list[int]) -> None:
    pairs = [1.0 if p > q else 0.5 if p == q else 0.0 for p in positive for q in negative]
    assert stats.auroc(positive, negative) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_interval_is_newcombes_fifth_method() -> None:
    """Its ends solve |A - a| = z se(A), with Hanley and McNeil's standard error at A."""
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(0.8, 1, 12), rng.normal(0, 1, 30)
    found = stats.auroc_interval(positive, negative)
    assert found.value == stats.auroc(positive, negative) and found.n == 42
    assert found.low is not None and found.high is not None and 0 < found.low < found.value < found.high < 1
    for end in (found.low, found.high):
        q1, q2, size = end / (2 - end), 2 * end**2 / (1 + end), (12 + 30) / 2 - 1
        variance = (end * (1 - end) + size * (q1 - end**2) + size * (q2 - end**2)) / (12 * 30)
        assert abs(end - found.value) == pytest.approx(stats.Z95 * math.sqrt(variance))
    mirrored = stats.auroc_interval(negative, positive)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))
    fewer = stats.auroc_interval(positive, negative, [0, 1] * 6, range(30))
    assert fewer.value == found.value and fewer.low is not None and fewer.low < found.low
    with pytest.raises(ValueError, match="12 values and 3 documents"):
        stats.auroc_interval(positive, negative, [0, 1, 2])


def test_auroc_interval_at_the_edges() -> None:
    """Separation is no proof of an AUROC of 1."""
    apart = stats.auroc_interval(range(10, 20), range(10))
    assert (apart.value, apart.high) == (1.0, 1.0) and apart.low is not None and 0.7 < apart.low < 0.9
    assert stats.auroc_interval(range(10), range(10, 20)).low == 0.0
    one = stats.auroc_interval([1.0], [1.0])
    assert one.value == 0.5 and one.low is not None and one.high is not None and one.low < 0.1 < 0.9 < one.high
    assert stats.auroc_interval([], [1.0, 2.0]) == stats.Estimate(None, None, None, 2)


@pytest.mark.parametrize("per_document", [1, 3])
def test_auroc_interval_covers_the_truth(per_document: int) -> None:
    """Normal values whose AUROC is 0.8, several to a document with the same value: documents count."""
    rng = np.random.default_rng(0)
    shift = 1.1902  # sqrt(2) times the 80 % point of the normal distribution
    documents = np.repeat(np.arange(20), per_document).tolist()
    held = 0
    for _ in range(800):
        p, q = (np.repeat(rng.normal(mean, 1, 20), per_document) for mean in (shift, 0.0))
        e = stats.auroc_interval(p, q, documents, documents)
        assert e.low is not None and e.high is not None
        held += e.low <= 0.8 <= e.high
    assert 0.93 < held / 800 < 0.98


def test_balanced_accuracy_and_empty_classes() -> None:
    assert stats.balanced_accuracy(8, 10, 50, 100) == pytest.approx(0.65)
    assert stats.balanced_accuracy(0, 0, 1, 1) is None
    assert stats.auroc([], [1.0]) is None


def test_mean_interval() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, size=400)
    found = stats.mean_interval(values)
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert stats.mean_interval([]).value is None
    assert stats.mean_interval([2.0]) == stats.Estimate(2.0, None, None, 1)
    with pytest.raises(ValueError, match="finite"):
        stats.mean_interval([1.0, math.inf])
