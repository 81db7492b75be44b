"""Statistics at natural prevalence, against a population of which every tile is known."""

from __future__ import annotations

import numpy as np
import pytest
from support.simulated_truth import Corpus

from autointerp import stats
from autointerp.prevalence import Tiles, natural_correlation, natural_precision


def estimates(density: float, times: int) -> tuple[float, list[stats.Estimate]]:
    """The correlation over all tiles, and what samples of 40 active and 1500 silent tiles say of it."""
    rng = np.random.default_rng(1)
    # Many more documents than are sampled: of a corpus that is all but known, an interval would be too wide.
    corpus = Corpus(rng, density, 4000)
    return corpus.correlation, [corpus.estimate(rng, 40, 1500) for _ in range(times)]


@pytest.mark.parametrize("density", [0.02, 0.2])
def test_the_sample_tells_the_correlation_of_all_text(density: float) -> None:
    truth, found = estimates(density, 100)
    values = np.array([e.value for e in found], dtype=np.float64)
    assert abs(values.mean() - truth) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.02, 0.2])
def test_intervals_of_the_correlation_cover(density: float) -> None:
    truth, found = estimates(density, 2500)
    covered = np.mean([e.low is not None and e.low <= truth <= (e.high or 0) for e in found])
    assert 0.93 <= covered <= 0.97, covered


def test_everything_known_gives_the_correlation_itself() -> None:
    corpus = Corpus(np.random.default_rng(2), 0.1, 40)
    truth, predicted, document, active = corpus.truth, corpus.predicted, corpus.document, corpus.active
    found = natural_correlation(
        Tiles.of(list(truth[active]), list(predicted[active]), document[active].tolist()),
        Tiles.silent(
            np.full((~active).sum(), Corpus.T), predicted[~active].sum(1), (predicted[~active] ** 2).sum(1),
            document[~active].tolist(),
        ),
        int(active.sum()), int((~active).sum()),
    )  # fmt: skip
    assert found.value == pytest.approx(stats.pearson(truth, predicted), abs=1e-12) and found.n == len(truth)


def test_what_was_not_sampled_has_no_value() -> None:
    one = Tiles.of([[0, 1.0]], [[0, 2.0]], ["d"])
    none = Tiles.of([], [], [])
    assert natural_correlation(one, none, 1, 5).value is None
    assert natural_correlation(none, one, 1, 5).value is None
    assert natural_correlation(one, none, 1, 0).value == pytest.approx(1)  # a feature that fires everywhere
    few = natural_correlation(one, Tiles.silent([2], [0.5], [0.25], ["e"]), 1, 5)
    assert few.value is not None and few.low is None  # one document
    with pytest.raises(ValueError, match="1 predictions"):
        Tiles.of([[0, 1.0]], [[0.0]], ["d"])


def test_precision_is_that_of_the_audit() -> None:
    def found_of(hits: int, active: int, alarms: int, silent: int, density: float) -> stats.Estimate:
        return natural_precision(stats.wilson(hits, active), stats.wilson(alarms, silent), density)

    found = found_of(90, 100, 5, 1000, 0.001)
    assert found.value == pytest.approx(0.9 * 0.001 / (0.9 * 0.001 + 0.005 * 0.999)) == pytest.approx(0.1527, abs=1e-3)
    assert found.low is not None and found.high is not None and found.low < 0.1 < found.value < 0.35 > found.high
    none = found_of(9, 10, 0, 10, 0.001)
    assert none.value is None and none.high == 1 and none.low is not None and none.low < 0.004
    assert found_of(0, 10, 0, 10, 0.1).low is None
    assert found_of(5, 10, 0, 0, 0.1).low is None
    wrong = found_of(0, 100, 5, 1000, 0.1)  # it claims silent tiles alone
    assert (wrong.value, wrong.low) == (0, 0) and wrong.high is not None and 0 < wrong.high < 0.6
    without = natural_precision(stats.Estimate(0.9, None, None, 100), stats.wilson(5, 1000), 0.001)
    assert without.value == found.value and without.low is None and without.high is None
