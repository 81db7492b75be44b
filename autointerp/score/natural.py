"""Score rows of a label on text as it comes (see prevalence.py). No I/O here.

    simulation_natural    the correlation of truth and prediction over the tokens of ordinary text: the sampled contexts
                          stand for all tiles in which the feature fires, silent tiles of the corpus at large for the
                          others. Top contexts and silent ones that were chosen to look alike do not count
    simulation_precision  of the tiles of ordinary text in which the label predicts CLAIM or more somewhere, the share
                          in which the feature fires
    simulation_recall     of the tiles in which the feature fires, the share in which the label predicts that

`n` counts tiles (for recall, those in which the feature fires), `n_by_kind` both kinds of them, and `n_documents` the
documents of those in which the feature fires. The intervals of precision and recall allow for tiles of one document
being alike (clustered_shares.py). Where no silent tile was claimed, the share of false alarms is only known to be
small: then the precision has no value but the status 'no_false_alarm' and its lower end. A label that claims no tile at
all, neither active nor silent, has none either, and the status 'no_claim'.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.clustered_shares import share_of
from autointerp.prevalence import Tiles, natural_correlation, natural_precision
from autointerp.records import Context, Score
from autointerp.score.score_rows import Answer, Identity, Result, counted_row, documents_of, obstacle, series_of, usable
from autointerp.scorer_names import NATURAL

PRECISION = "simulation_precision"
RECALL = "simulation_recall"
NO_FALSE_ALARM = "no_false_alarm"
NO_CLAIM = "no_claim"
CLAIM = 1.0
"""A label claims a tile in which it predicts at least this on the scale of 0..10."""


@dataclass(frozen=True)
class Prevalence:
    """How many tiles of the split a feature fires in, and in how many it is silent."""

    active: float
    silent: float

    @property
    def density(self) -> float:
        return self.active / max(self.active + self.silent, 1.0)


@dataclass(frozen=True)
class SilentTiles:
    """What was predicted of silent tiles of the corpus at large, each array [tiles]."""

    documents: list[str] = field(default_factory=list)
    """What each tile's document was cut from (see records.source_of)."""
    n_tokens: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Sum of the predictions over a tile's tokens."""
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    peak: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    n_failed: int = 0
    """Tiles that were asked about and of which nothing was predicted; the others are in the arrays."""

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> SilentTiles:
        """From contexts that were asked about."""
        told = [(a.context.source, np.asarray(a.prediction.predicted)) for a in answers if a.prediction.predicted]
        return cls(
            [document for document, _ in told],
            np.array([p.size for _, p in told], dtype=np.float64),
            np.array([p.sum() for _, p in told], dtype=np.float64),
            np.array([p @ p for _, p in told], dtype=np.float64),
            np.array([p.max() for _, p in told], dtype=np.float64),
            len(answers) - len(told),
        )

    @property
    def claimed(self) -> NDArray[np.bool_]:
        """Which of them the label claims."""
        return self.peak >= CLAIM


def is_ordinary(context: Context) -> bool:
    """Whether a context stands for text as it comes: a uniform sample of active or of silent tiles."""
    return context.kind == "sampled" or context.tier == "random"


def is_claimed(answer: Answer) -> bool:
    """Whether the label claims the tile of a context."""
    return max(answer.prediction.predicted or [0.0]) >= CLAIM


def natural_rows(
    identity: Identity, active: Sequence[Answer], silent: SilentTiles, prevalence: Prevalence
) -> list[Score]:
    """The three rows. `active`: what was predicted of the sampled contexts."""
    why, told, natural = obstacle(active), usable(active), natural_result(active, silent, prevalence)
    documents = documents_of(told)
    if why is not None:
        precision = recall = Result(why)
    else:
        claimed, alarms = share_of([is_claimed(a) for a in told], documents), share_of(silent.claimed, silent.documents)
        precision, recall = precision_result(claimed, alarms, prevalence.density), Result("ok", claimed)
    n_failed = len(active) - len(told)
    error = next((a.error for a in active if a.error), None)

    def row(scorer: str, result: Result, n_silent: int = 0, n_silent_failed: int = 0) -> Score:
        n_by_kind = {kind: n for kind, n in (("sampled", len(active)), ("random", n_silent)) if n}
        found = counted_row(identity, scorer, result, len(active) + n_silent, n_failed + n_silent_failed, error)
        return replace(found, n_documents=len(set(documents)), n_by_kind=n_by_kind)

    asked = len(silent.documents) + silent.n_failed, silent.n_failed
    return [row(NATURAL, natural, *asked), row(PRECISION, precision, *asked), row(RECALL, recall)]


def natural_result(active: Sequence[Answer], silent: SilentTiles, prevalence: Prevalence) -> Result:
    """The natural correlation, or the status that says why there is none. `active`: what was predicted of the sampled
    contexts."""
    why = obstacle(active)
    if why is not None:
        return Result(why)
    truth, predicted, documents = series_of(active)
    firing = Tiles.of(truth, predicted, documents)
    quiet = Tiles.silent(silent.n_tokens, silent.total, silent.squares, silent.documents)
    found = natural_correlation(firing, quiet, prevalence.active, prevalence.silent)
    if found.value is not None:
        return Result("ok", found)
    if prevalence.silent >= 0.5 and not silent.documents:
        return Result("no_contexts")
    if stats.is_constant(np.concatenate([*truth, np.zeros(len(silent.documents))])):
        return Result("constant_truth")
    # So the prediction is: worth 0, as in correlation.py.
    unmoved: dict[Hashable, float] = dict.fromkeys(documents, 0.0)
    return Result("constant_prediction", stats.Estimate(0.0, None, None, found.n, unmoved))


def precision_result(sensitivity: stats.Estimate, alarms: stats.Estimate, density: float) -> Result:
    """Precision at natural prevalence (see prevalence.natural_precision), or the status that says why there is none."""
    if sensitivity.value is None or alarms.value is None:
        return Result("no_contexts")
    if sensitivity.value == alarms.value == 0:
        return Result(NO_CLAIM)
    found = natural_precision(sensitivity, alarms, density)
    return Result("ok" if found.value is not None else NO_FALSE_ALARM, found)
