"""The free first pass: features that a rule explains well enough take no LLM. Judged on `select`, so that what is
reported of them is not what they were chosen by."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.ask.job import Job
from autointerp.ask.scale import scaled
from autointerp.records import Explanation, Prediction
from autointerp.rules.patterns import Rule
from autointerp.score.correlation import correlation
from autointerp.score.score_rows import Answer
from autointerp.score.simulation import choose_contexts

CONTEXTS = 10
"""N: the judgement is over N top, N sampled and N negative contexts, as a simulation score is."""


def well_explained(job: Job, labels: Sequence[Explanation], threshold: float) -> list[Explanation]:
    """The rule labels (of different features) whose simulation score on `select` is at least `threshold`."""
    usable = [label for label in labels if label.status == "ok" and label.rule is not None]
    features = [label.feature for label in usable]
    limits = {"top": CONTEXTS, "sampled": 2 * CONTEXTS, "negative": None}
    contexts = job.store.contexts_of(job.dictionary_id, job.harvest_id, features, "select", limits)
    scales = job.store.feature_evidence(job.dictionary_id, job.harvest_id, features, 0)
    chosen = []
    for label in usable:
        rule, largest = Rule.from_json(label.rule or ""), scales[label.feature].max_activation
        answers = [
            Answer(c, Prediction(c.context_id, scaled(c.activations, largest), rule.predict(c.tokens), "ok"))
            for c in choose_contexts(contexts[label.feature], CONTEXTS)
        ]
        value = correlation(answers).estimate.value
        if value is not None and value >= threshold:
            chosen.append(label)
    return chosen
