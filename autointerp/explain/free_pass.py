"""The free first pass: features that a rule explains well enough take no LLM.

How well is the headline of a rule's label, its natural correlation (score/natural.py), on `select`, so that what is
reported of the label is not what it was chosen by. Whether the label holds (score/holding.py) would not do: a rule that
is right about a tenth of a feature's places holds, though an LLM might well find out what the others are.
"""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.ask.job import Job
from autointerp.ask.scale import scaled
from autointerp.errors import InputError
from autointerp.records import Context, Explanation, Prediction
from autointerp.rules.patterns import Rule
from autointerp.score.natural import SilentTiles, natural_result
from autointerp.score.ordinary_text import OrdinaryText
from autointerp.score.prevalences import prevalences
from autointerp.score.score_rows import Answer


class FreePass:
    """Chooses among rule labels by their natural correlation on `select`."""

    def __init__(self, job: Job, threshold: float) -> None:
        """Raises InputError where the harvest did not count the tiles that a natural correlation is over."""
        if job.store.n_tiles(job.harvest_id, "select") is None:
            raise InputError(
                f"explain.unless_patterns_above = {threshold} asks for natural correlations, and the harvest did not "
                "count how many tiles its text has; harvest again, or leave the setting out"
            )
        self._job, self._threshold = job, threshold
        self._ordinary = OrdinaryText(job, "select")

    def well_explained(self, labels: Sequence[Explanation]) -> list[Explanation]:
        """The labels (of different features) that are worth at least the threshold."""
        job = self._job
        usable = [label for label in labels if label.status == "ok" and label.rule is not None]
        features = [label.feature for label in usable]
        contexts = job.store.contexts_of(
            job.dictionary_id, job.harvest_id, features, "select", {"sampled": None, "negative": None}
        )
        scales = job.store.feature_evidence(job.dictionary_id, job.harvest_id, features, 0)
        firing = prevalences(job, "select", features)
        self._ordinary.read(features)
        chosen = []
        for label in usable:
            rule, own = Rule.from_json(label.rule or ""), contexts[label.feature]
            largest = scales[label.feature].max_activation
            active = [_answer(rule, c, largest) for c in own if c.kind == "sampled"]
            silent = self._ordinary.silent(label.feature, rule)
            if silent is None:  # older evidence: the silent contexts of the random tier stand for the corpus
                silent = SilentTiles.of([_answer(rule, c, largest) for c in own if c.tier == "random"])
            value = natural_result(active, silent, firing[label.feature]).estimate.value
            if value is not None and value >= self._threshold:
                chosen.append(label)
        return chosen


def _answer(rule: Rule, context: Context, largest: float) -> Answer:
    truth = scaled(context.activations, largest)
    return Answer(context, Prediction(context.context_id, truth, rule.predict(context.tokens, context.begins), "ok"))
