"""Labels of the planted world through the scorers, those that need the model too; and their means by kind."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from autointerp.ask.job import Job, Outcome
from autointerp.config import BudgetConfig, LlmConfig, ScoreConfig
from autointerp.llm.budget import Budget
from autointerp.score.scoring import score
from autointerp.stages import measuring
from autointerp.stages.session import Session
from autointerp.store import Selection, Store
from support.planted_features import QUALITIES, Planted, Quality

Means = dict[tuple[str, str, Quality | None], float]
"""(scorer, kind, quality of the label, or None where no label is involved) -> mean of the scores on `report`."""


def job(store: Store, features: str | None = None) -> Job:
    row = store.dictionary("planted")
    harvest_id = store.current_harvest(row.dictionary_id)
    assert harvest_id is not None
    llm = LlmConfig(requests_per_minute=600_000.0)
    return Job(store, row.dictionary_id, harvest_id, "run", Selection(features=features), llm, Budget(BudgetConfig()))


def score_and_measure(
    session: Session, store: Store, explainer: str, config: ScoreConfig, features: str | None = None
) -> Outcome:
    """Ask, measure, judge."""
    outcome = asyncio.run(score(job(store, features), explainer, config))
    if outcome.waiting:
        measuring.measure(session, store, session.config.sae[0], Selection())
        judged = asyncio.run(score(job(store, features), explainer, config))
        outcome.statuses += judged.statuses
        outcome.waiting = judged.waiting
    return outcome


def means(store: Store, features: Sequence[Planted]) -> Means:
    """A prediction that is the same everywhere counts as no correlation."""
    found: dict[tuple[str, str, Quality | None], list[float]] = defaultdict(list)
    for scorer, feature, quality, status, value in store.rows(
        "SELECT scorer, s.feature, e.model, s.status, value FROM scores s LEFT JOIN explanations e "
        "USING (explanation_id) WHERE part = 'report' AND coalesce(e.model IN (SELECT unnest(?::VARCHAR[])), true)",
        [list(QUALITIES)],
    ):
        if value is not None or status == "constant_prediction":
            found[scorer, features[feature].kind, quality].append(0.0 if value is None else value)
    return {key: sum(values) / len(values) for key, values in found.items()}
