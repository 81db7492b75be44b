"""Score rows of a label on text as it comes (see prevalence.py). No I/O here.

    simulation_natural    the correlation of truth and prediction over the tokens of ordinary text: the sampled contexts
                          stand for all tiles in which the feature fires, silent tiles of the corpus at large for the
                          others. Top contexts and silent ones that were chosen to look alike do not count
    simulation_precision  of the tiles of ordinary text in which the label predicts CLAIM or more somewhere, the share
                          in which the feature fires
    simulation_recall     of the tiles in which the feature fires, the share in which the label predicts that

`n` counts tiles (for recall, those in which the feature fires), `n_by_kind` both kinds of them, and `n_documents` the
documents of those in which the feature fires. The intervals of precision and recall allow for tiles of one document
being alike (clustered_shares.py). Where no silent tile was claimed, the share of false
alarms is only known to be small: then the precision has no value but the status 'no_false_alarm' and its lower end. A
label that claims no tile at all, neither active nor silent, has none either, and the status 'no_claim'.
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
from autointerp.score.score_rows import Answer, Identity, Result, counted_row, obstacle
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
    n_tokens: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Sum of the predictions over a tile's tokens."""
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    peak: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> SilentTiles:
        """From contexts that were asked about; those without a prediction are left out."""
        told = [(a.context.source, np.asarray(a.prediction.predicted)) for a in answers if a.prediction.predicted]
        return cls(
            [document for document, _ in told],
            np.array([p.size for _, p in told], dtype=np.float64),
            np.array([p.sum() for _, p in told], dtype=np.float64),
            np.array([p @ p for _, p in told], dtype=np.float64),
            np.array([p.max() for _, p in told], dtype=np.float64),
        )


def is_ordinary(context: Context) -> bool:
    """Whether a context stands for text as it comes: a uniform sample of active or of silent tiles."""
    return context.kind == "sampled" or context.tier == "random"


def natural_rows(
    identity: Identity, active: Sequence[Answer], silent: SilentTiles, n_silent_failed: int, prevalence: Prevalence
) -> list[Score]:
    """The three rows. `active`: what was predicted of the sampled contexts."""
    n_failed = sum(a.prediction.status != "ok" for a in active) + n_silent_failed
    kinds = {"sampled": len(active), "random": len(silent.documents) + n_silent_failed}
    why = obstacle(active)
    usable = [a for a in active if a.prediction.predicted is not None]
    if why is not None:
        results = [(name, Result(why)) for name in (NATURAL, PRECISION, RECALL)]
    else:
        recall = share_of([max(a.prediction.predicted or [0.0]) >= CLAIM for a in usable], _documents(usable))
        alarms = share_of(silent.peak >= CLAIM, silent.documents)
        results = [
            (NATURAL, _correlation(usable, silent, prevalence)),
            (PRECISION, precision_result(recall, alarms, prevalence.density)),
            (RECALL, Result("ok", recall)),
        ]
    errors = [a.error for a in active if a.error]
    found = []
    for name, result in results:
        asked = {"sampled": len(active)} if name == RECALL else kinds
        row = counted_row(identity, name, result, sum(asked.values()), n_failed, errors[0] if errors else None)
        n_by_kind = {kind: n for kind, n in asked.items() if n}
        found.append(replace(row, n_documents=len(set(_documents(usable))), n_by_kind=n_by_kind))
    return found


def _documents(answers: Sequence[Answer]) -> list[str]:
    return [a.context.source for a in answers]


def _correlation(active: Sequence[Answer], silent: SilentTiles, prevalence: Prevalence) -> Result:
    firing = Tiles.of(
        [a.prediction.truth for a in active],
        [a.prediction.predicted or [] for a in active],
        _documents(active),
    )
    quiet = Tiles.silent(silent.n_tokens, silent.total, silent.squares, silent.documents)
    found = natural_correlation(firing, quiet, prevalence.active, prevalence.silent)
    if found.value is not None:
        return Result("ok", found)
    if prevalence.silent >= 0.5 and not silent.documents:
        return Result("no_contexts")
    everywhere = max((p for a in active for p in a.prediction.predicted or []), default=0.0)
    same = [p for a in active for p in a.prediction.predicted or []]
    same += (silent.total / np.maximum(silent.n_tokens, 1)).tolist() + silent.peak.tolist()
    if np.allclose(same, everywhere):  # worth 0, as in correlation.py
        documents: dict[Hashable, float] = dict.fromkeys((a.context.source for a in active), 0.0)
        return Result("constant_prediction", stats.Estimate(0.0, None, None, found.n, documents))
    return Result("constant_truth")


def precision_result(sensitivity: stats.Estimate, alarms: stats.Estimate, density: float) -> Result:
    """Precision at natural prevalence (see prevalence.natural_precision), or the status that says why there is none."""
    if sensitivity.value is None or alarms.value is None:
        return Result("no_contexts")
    if sensitivity.value == alarms.value == 0:
        return Result(NO_CLAIM)
    found = natural_precision(sensitivity, alarms, density)
    return Result("ok" if found.value is not None else NO_FALSE_ALARM, found)
