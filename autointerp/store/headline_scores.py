"""The headline scores of one dictionary as the view `labels` shows them, with the features that have none and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.store.connection import StoreConnection

_HEADLINES = """
    SELECT explainer, scorer, count(score) AS n FROM labels
    WHERE dictionary_id = ? AND score IS NOT NULL AND explainer IS NOT NULL
    GROUP BY ALL ORDER BY n DESC, explainer, scorer LIMIT 1
"""
# No row of `explanations`, or one that an endpoint gave up on, is no answer yet.
_SCORES = """
    WITH shown AS (
        SELECT
            feature, model, method,
            status = 'dead' AS is_dead,
            coalesce(explainer = $explainer AND explanation_status <> 'gave_up', false) AS is_explained,
            coalesce(explainer = $explainer AND explanation_status = 'ok', false) AS is_labelled,
            if(explainer = $explainer AND scorer = $scorer, score, NULL) AS value
        FROM labels WHERE dictionary_id = $dictionary
    )
    SELECT
        coalesce(list(value ORDER BY feature) FILTER (value IS NOT NULL), []),
        count(*) FILTER (is_labelled),
        count(*) FILTER (is_explained AND NOT is_labelled),
        count(*) FILTER (NOT is_explained AND NOT is_dead),
        count(*) FILTER (is_dead),
        coalesce(list(DISTINCT model) FILTER (value IS NOT NULL), []),
        coalesce(list(DISTINCT method) FILTER (value IS NOT NULL), [])
    FROM shown
"""


@dataclass(frozen=True, slots=True)
class Headline:
    """Which score of whose labels stands for a dictionary."""

    explainer: str
    scorer: str


@dataclass(frozen=True, slots=True)
class HeadlineScores:
    """The scores of one dictionary's labels by one explainer, by one scorer."""

    scores: NDArray[np.float64]
    """Of every labelled feature that has a score."""
    n_labelled: int
    """Features with a label, scored or not."""
    n_unlabelled: int
    """Features for which the explainer was asked and gave no label: it abstained, or its answer was none."""
    n_pending: int
    """Features that fire and for which the explainer has not answered yet."""
    n_dead: int
    models: frozenset[str]
    """The models, or rules, that made the scored labels."""
    methods: frozenset[str]
    """The methods by which they were scored."""

    @property
    def with_zeros(self) -> NDArray[np.float64]:
        """The scores, and 0 for every unlabelled feature."""
        return np.concatenate([self.scores, np.zeros(self.n_unlabelled)])


def headline_of_dictionary(store: StoreConnection, dictionary_id: int) -> Headline | None:
    """The explainer and scorer of most of the scores that `labels` shows; None where it shows none."""
    found = store.rows(_HEADLINES, [dictionary_id])
    return Headline(found[0][0], found[0][1]) if found else None


def headline_scores(store: StoreConnection, dictionary_id: int, headline: Headline) -> HeadlineScores:
    chosen = {"dictionary": dictionary_id, "explainer": headline.explainer, "scorer": headline.scorer}
    with store.cursor() as cursor:
        ((scores, labelled, unlabelled, pending, dead, models, methods),) = cursor.execute(_SCORES, chosen).fetchall()
    values = np.asarray(scores, dtype=np.float64)
    return HeadlineScores(values, labelled, unlabelled, pending, dead, frozenset(models), frozenset(methods))
