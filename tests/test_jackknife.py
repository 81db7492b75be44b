"""Correlation, R squared and AUROC by document: values by hand, and how often the intervals hold a simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.simulated_truth import LABELS, Label, Population, coverage

from autointerp import stats
from autointerp.jackknife import MIN_DOCUMENTS, pooled_auroc, pooled_correlation, pooled_r_squared
from autointerp.means import t_point
from autointerp.stats import Estimate


def some(n: int = 30, noise: float = 0.5) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    truth = [rng.random(32) * (rng.random(32) < 0.2) for _ in range(n)]
    return truth, [t + noise * rng.random(32) for t in truth]


def test_the_jackknife_leaves_each_document_out() -> None:
    """Against a plain loop over documents of two contexts each, and formula by formula."""
    truth, predicted = some(60)
    documents = [f"d{i // 2}" for i in range(60)]
    found = pooled_correlation(truth, predicted, documents)
    flat = np.corrcoef(np.concatenate(truth), np.concatenate(predicted))[0, 1]
    left = []
    for d in range(30):
        kept = [i for i in range(60) if i // 2 != d]
        left.append(np.corrcoef(*(np.concatenate([s[i] for i in kept]) for s in (truth, predicted)))[0, 1])
    assert found.value == pytest.approx(flat) and found.n == 60
    z = np.arctanh(left)
    moved = z - z.mean()
    error = math.sqrt(29 / 30 * (moved**2).sum())
    kurtosis = 30 * (moved**4).sum() / (moved**2).sum() ** 2
    half = t_point(min(29.0, max(1.0, 60 / (kurtosis - 1)))) * error
    assert (found.low, found.high) == pytest.approx(
        (np.tanh(np.arctanh(flat) - half), np.tanh(np.arctanh(flat) + half))
    )
    influences = found.influences or {}
    assert list(influences) == [f"d{d}" for d in range(30)]
    assert sum(v * v for v in influences.values()) == pytest.approx(29 / 30 * ((left - np.mean(left)) ** 2).sum())
    # A document without which the correlation is lower moves it up.
    assert np.corrcoef(list(influences.values()), left)[0, 1] == pytest.approx(-1.0)
    squared = pooled_r_squared(truth, predicted, documents)
    assert squared.value == pytest.approx(stats.r_squared(np.concatenate(truth), np.concatenate(predicted)))
    assert squared.low is not None and squared.low < (squared.value or 0.0) < (squared.high or 0.0)


def test_where_there_is_no_interval() -> None:
    truth, predicted = some(MIN_DOCUMENTS)
    assert pooled_correlation(truth, predicted, range(MIN_DOCUMENTS)).low is not None
    few = pooled_correlation(truth, predicted, [min(i, MIN_DOCUMENTS - 2) for i in range(MIN_DOCUMENTS)])
    assert few.value is not None and (few.low, few.high) == (None, None) and len(few.influences or {}) == 19
    same = pooled_correlation(truth, truth, range(MIN_DOCUMENTS))  # without any document it is 1 too
    assert same.value == pytest.approx(1.0) and same.low is None
    # All hangs on one document: without it the truth is constant, or prediction and truth never meet.
    silent = pooled_correlation([[0.0, 0.0]] * 29 + [[1.0, 0.0]], [[1.0, 0.0]] * 30, range(30))
    assert silent.value is not None and silent.low is None and silent.influences is None
    once = [np.zeros(8) for _ in range(30)]
    for i in range(10):
        once[i] = np.eye(8)[0]
    said = [np.eye(8)[0] if i == 0 else np.eye(8)[1] * (i > 20) for i in range(30)]
    hanging = pooled_correlation(once, said, range(30))
    assert hanging.value is not None and hanging.low is None and hanging.influences is not None


def test_constant_truth_and_constant_prediction() -> None:
    assert pooled_correlation([], [], []) == Estimate(None, None, None, 0)
    assert pooled_correlation([[0, 0]], [[1, 2]], "a").value is None
    constant = pooled_correlation([[0, 1], [2, 0]], [[3, 3], [3, 3]], "ab")
    assert (constant.value, constant.low, constant.influences) == (0.0, None, {"a": 0.0, "b": 0.0})
    assert pooled_r_squared([[1, 1]], [[1, 2]], "a").value is None
    assert pooled_correlation([[0, 1, 2]], [[0, 1, 3]], "a").influences is None
    with pytest.raises(ValueError, match="context 0 has 2 tokens and 1"):
        pooled_correlation([[0, 1]], [[0]], "a")
    with pytest.raises(ValueError, match="finite"):
        pooled_r_squared([[0, math.nan]], [[0, 1]], "a")


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize(
    "documents", [20, pytest.param(30, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.slow)]
)
def test_published_intervals_hold_the_truth(label: Label, documents: int) -> None:
    """Of 600 draws a share of .95 is known to .009."""
    population = Population(label)
    true, true_squared = population.correlation, population.r_squared
    draws = [population.draw(documents) for _ in range(600)]
    again = iter(draws)
    assert 0.93 <= coverage(lambda: (true, pooled_correlation(*next(again))), 600) <= 0.975
    again = iter(draws)
    assert 0.92 <= coverage(lambda: (true_squared, pooled_r_squared(*next(again))), 600) <= 0.975


def test_contexts_of_one_document_do_not_make_an_interval_narrower() -> None:
    population = Population(LABELS["fair"])
    truth, predicted, documents = population.draw(25)
    one = pooled_correlation(truth, predicted, documents)
    four = pooled_correlation(np.repeat(truth, 4, axis=0), np.repeat(predicted, 4, axis=0), np.repeat(documents, 4))
    assert (four.low, four.high) == pytest.approx((one.low, one.high)) and four.n == 100


# --- AUROC -----------------------------------------------------------------------------------------------------------


def test_auroc_counts_documents() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(0.8, 1.0, 24), rng.normal(0.0, 1.0, 20)
    own, others = [i // 3 for i in range(24)], [4 + i // 2 for i in range(20)]  # the classes share documents 4 to 7
    found = pooled_auroc(list(positive), list(negative), own, others)
    assert found.value == stats.auroc(positive, negative) and found.n == 44
    independent = stats.auroc_of_independent(found.value or 0.0, 8, 10)
    assert (found.low, found.high) == (independent.low, independent.high)
    left = []
    for d in range(14):
        p = positive[[i for i in range(24) if own[i] != d]]
        left.append(stats.auroc(p, negative[[i for i in range(20) if others[i] != d]]))
    moved = math.sqrt(13 / 14) * (np.mean(left) - np.array(left))  # type: ignore[arg-type]
    assert list((found.influences or {}).values()) == pytest.approx(moved.tolist())


def test_auroc_intervals_never_close() -> None:
    apart = pooled_auroc([2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 1.0], "aabc", "def")
    assert (apart.value, apart.high, apart.n) == (1.0, 1.0, 7) and apart.low is not None and 0.3 < apart.low < 0.7
    assert pooled_auroc([1.0], [], "a", "") == Estimate(None, None, None, 1)
    assert pooled_auroc([1.0], [0.0], "a", "a") == Estimate(1.0, None, None, 2)
    with pytest.raises(ValueError, match="document"):
        pooled_auroc([1.0], [0.0], "ab", "a")


@pytest.mark.parametrize(("positives", "negatives", "shift"), [(20, 20, 0.0), (20, 20, 1.0), (20, 5, 1.0), (6, 6, 0.0)])
def test_auroc_intervals_cover(positives: int, negatives: int, shift: float) -> None:
    rng = np.random.default_rng(0)
    true = 0.5 * (1 + math.erf(shift / 2))

    def once() -> tuple[float, Estimate]:
        p, q = rng.normal(shift, 1.0, positives), rng.normal(0.0, 1.0, negatives)
        return true, pooled_auroc(p.tolist(), q.tolist(), range(positives), range(50, 50 + negatives))

    assert 0.93 <= coverage(once, 500) <= 0.98
