"""A label against what a control puts in its place, on contexts whose truth is known: how often the test is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from support.simulated_truth import FAIR, GOOD, POOR, TOKENS, Label

from autointerp.jackknife import MIN_DOCUMENTS, pooled_correlation
from autointerp.means import t_p_value, t_point
from autointerp.paired import SIGNIFICANT, PairedDifference, paired_difference
from autointerp.prevalence import SILENT_GROUPS, Tiles, is_group, natural_correlation, silent_group
from autointerp.stats import benjamini_hochberg

Floats = NDArray[np.float64]


class TwoLabels:
    """Contexts of a feature, each of a document of its own, and what two labels predict on them; `shared` of what
    each gets right and wrong by chance is the same for both."""

    def __init__(self, one: Label, other: Label, shared: float, seed: int, size: int = 6000) -> None:
        rng = np.random.default_rng(seed)
        x = np.zeros((size, TOKENS))
        active = np.arange(size) < 2 * size // 3
        for _ in range(2):
            rows = np.flatnonzero(active)
            x[rows, rng.integers(0, TOKENS, rows.size)] = np.minimum(3 * np.exp(rng.normal(0, 0.6, rows.size)), 10)
        chance, noise = rng.random(x.shape), rng.normal(0, 1, x.shape)
        self.truth, self.predicted = x, []
        for label in (one, other):
            u = np.where(rng.random(x.shape) < shared, chance, rng.random(x.shape))
            z = np.where(rng.random(x.shape) < shared, noise, rng.normal(0, 1, x.shape))
            hit = u < np.where(x > 0, label.recall, label.alarms)
            self.predicted.append(hit * np.minimum(6 * np.exp(label.noise * z), 10))
        self._active, self._silent, self._rng = np.flatnonzero(active), np.flatnonzero(~active), rng
        values = [np.corrcoef(x.ravel(), p.ravel())[0, 1] for p in self.predicted]
        self.difference = float(values[0] - values[1])

    def test(self, documents: int) -> PairedDifference:
        n = 2 * documents // 3
        rows = np.concatenate([self._rng.choice(self._active, n), self._rng.choice(self._silent, documents - n)])
        names = [f"d{i}" for i in range(documents)]
        found = [pooled_correlation(self.truth[rows], p[rows], names) for p in self.predicted]
        a, b = (({str(d): v for d, v in (e.influences or {}).items()}, e.value or 0.0) for e in found)
        return paired_difference(a[1], a[0], b[1], b[0])


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [(GOOD, FAIR, 0.0), (FAIR, FAIR, 0.0), pytest.param(FAIR, POOR, 0.5, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("documents", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_intervals_hold_the_true_difference(one: Label, other: Label, shared: float, documents: int) -> None:
    """Of 600 draws a share of .95 is known to .009."""
    world = TwoLabels(one, other, shared, seed=1)
    found = [world.test(documents) for _ in range(600)]
    held = [e.low is not None and e.high is not None and e.low <= world.difference <= e.high for e in found]
    assert 0.925 <= np.mean(held) <= 0.98, np.mean(held)


def test_false_verdicts_stay_within_the_level_and_large_differences_are_found() -> None:
    """200 features in each of 5 dictionaries. Labels of the first half are as good as their controls, the others far
    better."""
    # The same quality, so that the true difference is 0 up to the population's own sampling.
    null, real = TwoLabels(FAIR, FAIR, 0.5, seed=3, size=30_000), TwoLabels(GOOD, POOR, 0.5, seed=4)
    false, found, share_false = 0, 0, []
    for _ in range(5):
        tests = [null.test(30) for _ in range(100)] + [real.test(30) for _ in range(100)]
        p = np.array([one.p_value for one in tests], dtype=np.float64)
        called = benjamini_hochberg(p, len(p)) < SIGNIFICANT
        false, found = false + int(called[:100].sum()), found + int(called[100:].sum())
        share_false.append(called[:100].sum() / max(1, called.sum()))
        alone = benjamini_hochberg(p[:100], 100) < SIGNIFICANT
        assert alone.sum() <= 3  # where nothing is true, hardly a verdict is given
    assert np.mean(share_false) <= SIGNIFICANT + 0.01, (share_false, false)
    assert found >= 0.9 * 500, found


def test_p_is_student_s() -> None:
    for freedom in (1.0, 2.0, 5.0, 19.0, 60.0):
        assert t_p_value(t_point(freedom), freedom) == pytest.approx(0.05, abs=2e-3)
        assert t_p_value(-t_point(freedom), freedom) == pytest.approx(0.05, abs=2e-3)
        assert t_p_value(0.0, freedom) == pytest.approx(1.0)
    # With one degree of freedom it is Cauchy's distribution, with two there is a formula.
    for t in (0.3, 1.0, 4.0, 50.0):
        assert t_p_value(t, 1.0) == pytest.approx(1 - 2 * math.atan(t) / math.pi)
        assert t_p_value(t, 2.0) == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert t_p_value(math.inf, 3.0) == 0.0
    with pytest.raises(ValueError, match="at least one degree"):
        t_p_value(1.0, 0.5)


def test_where_there_is_no_test() -> None:
    some = {f"d{i}": 0.01 * (-1) ** i for i in range(MIN_DOCUMENTS)}
    assert paired_difference(0.5, some, 0.2, None).p_value is None
    few = dict(list(some.items())[:-1])
    one = paired_difference(0.5, few, 0.2, few | {silent_group("x"): 0.1})
    assert (one.p_value, one.low, one.n_documents) == (None, None, MIN_DOCUMENTS - 1)  # a group is no document
    same = paired_difference(0.5, some, 0.5, some)
    assert (same.value, same.p_value) == (0.0, 1.0)
    # A judge that is always right against one that always says no: no document makes a difference.
    agreed = paired_difference(1.0, dict.fromkeys(some, 0.0), 0.5, dict.fromkeys(some, 0.0))
    assert agreed.p_value is not None and 0 < agreed.p_value < 0.01 and agreed.low is None


# --- influences on the natural correlation ----------------------------------------------------------------------------


def world(rng: np.random.Generator, n_silent: int, alarms: float) -> tuple[Tiles, Tiles]:
    """Active tiles of 30 documents, and silent ones of many more."""
    truth = [np.eye(8)[3] * rng.gamma(2, 2) for _ in range(45)]
    predicted = [t * rng.uniform(0.2, 1.2) * (rng.random() < 0.8) for t in truth]
    quiet = (rng.random((n_silent, 8)) < alarms) * rng.gamma(2, 2, (n_silent, 8))
    return (
        Tiles.of(truth, predicted, [f"d{i % 30}" for i in range(45)]),
        Tiles.silent(np.full(n_silent, 8), quiet.sum(1), (quiet**2).sum(1), [f"d{i % 700}" for i in range(n_silent)]),
    )


def test_influences_of_groups_give_the_error_of_the_full_jackknife() -> None:
    rng = np.random.default_rng(5)
    ratios = []
    for _ in range(40):
        active, silent = world(rng, 2000, 0.004)
        found = natural_correlation(active, silent, 500, 9500)
        assert found.value is not None and found.low is not None and found.influences is not None
        left = _left_out([without_each(active), without_each(silent)])
        full = math.sqrt(699 / 700 * float(((left - left.mean()) ** 2).sum()))
        assert sum(is_group(str(name)) for name in found.influences) == SILENT_GROUPS
        assert len(found.influences) == 30 + SILENT_GROUPS
        ratios.append(math.sqrt(sum(v * v for v in found.influences.values())) / full)
    assert abs(np.mean(ratios) - 1) < 0.03 and np.std(ratios) < 0.12, (np.mean(ratios), np.std(ratios))


def without_each(tiles: Tiles) -> tuple[Floats, Floats]:
    """For each of 700 documents, the sums over the tiles of all others, and how many those are."""
    documents = np.array([int(str(name)[1:]) for name in tiles.documents])
    own = np.zeros((700, 6))
    np.add.at(own, documents, tiles.sums)
    return tiles.sums.sum(0) - own, len(documents) - np.bincount(documents, minlength=700).astype(np.float64)


def _left_out(kinds: list[tuple[Floats, Floats]]) -> Floats:
    """The correlation by its formula, without each document."""
    n, x, p, xx, pp, xp = sum(size * sums.T / left for (sums, left), size in zip(kinds, (500, 9500), strict=True))  # type: ignore[misc]
    return np.asarray((n * xp - x * p) / np.sqrt((n * xx - x * x) * (n * pp - p * p)))


def test_groups_are_the_same_for_all_labels() -> None:
    assert silent_group("a.txt") == silent_group("a.txt") and is_group(silent_group("a.txt"))
    assert len({silent_group(f"{i}.txt") for i in range(500)}) == SILENT_GROUPS and not is_group("a.txt")
