"""Runs all scorers, those that need the model included, on labels of the planted world. Gives the means by kind."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest

from autointerp.ask.job import Job, Outcome
from autointerp.config import BudgetConfig, LlmConfig, ScoreConfig
from autointerp.llm.budget import Budget
from autointerp.measure.texts import Maxima, feature_maxima
from autointerp.score.scoring import score
from autointerp.stages import measuring
from autointerp.stages.session import Session
from autointerp.store import Selection, Store
from support.planted_features import QUALITIES, Planted, Quality

Means = dict[tuple[str, str, Quality | None], float]
"""(scorer, kind, quality of the label, or None where no label is involved) -> mean of the scores on `report`."""
DIGITS = 5
"""Decimals of a planted activation that float32 gets right, since its error is at most 2e-6."""


def job(store: Store, features: str | None = None) -> Job:
    row = store.dictionary("planted")
    harvest_id = store.current_harvest(row.dictionary_id)
    assert harvest_id is not None
    llm = LlmConfig(requests_per_minute=600_000.0)
    return Job(store, row.dictionary_id, harvest_id, "run", Selection(features=features), llm, Budget(BudgetConfig()))


def score_and_measure(
    session: Session, store: Store, explainer: str, config: ScoreConfig, features: str | None = None
) -> Outcome:
    """Asks, measures and judges.

    By a feature's law many texts have equal activations, above all those of a dense feature. Float32 makes them differ
    in the last bits, in an order that depends on the machine's BLAS. So measured values are rounded, and ties are ties
    on every machine.
    """
    outcome = asyncio.run(score(job(store, features), explainer, config))
    if outcome.waiting:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measuring, "feature_maxima", _rounded_maxima)
            measuring.measure(session, store, session.config.sae[0], Selection())
        judged = asyncio.run(score(job(store, features), explainer, config))
        outcome.statuses += judged.statuses
        outcome.waiting = judged.waiting
    return outcome


def _rounded_maxima(*asked: Any) -> list[Any]:
    found = feature_maxima(*asked)
    for one in found:
        if isinstance(one, Maxima):
            one.maximum = [None if value is None else round(value, DIGITS) for value in one.maximum]
    return list(found)


def means(store: Store, features: Sequence[Planted]) -> Means:
    """The means of the scores."""
    found: dict[tuple[str, str, Quality | None], list[float]] = defaultdict(list)
    for scorer, feature, quality, value in store.rows(
        "SELECT scorer, s.feature, e.model, value FROM scores s LEFT JOIN explanations e "
        "USING (explanation_id) WHERE part = 'report' AND coalesce(e.model IN (SELECT unnest(?::VARCHAR[])), true)",
        [list(QUALITIES)],
    ):
        if value is not None:
            found[scorer, features[feature].kind, quality].append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}
