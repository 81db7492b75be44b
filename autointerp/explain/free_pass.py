"""The free first pass: features that a rule explains well enough take no LLM.

How well is the headline of a rule's label, its natural correlation, on `select` (see rule_select.py). Whether the label
holds (score/holding.py) would not do: a rule that is right about a tenth of a feature's places holds, though an LLM
might well find out what the others are.
"""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.ask.job import Job
from autointerp.errors import InputError
from autointerp.explain.rule_select import SelectPart, SelectTexts
from autointerp.records import Explanation
from autointerp.rules.patterns import Rule


class FreePass:
    """Chooses among rule labels by their natural correlation on `select`."""

    def __init__(self, job: Job, threshold: float) -> None:
        """Raises InputError where the harvest did not count the tiles that a natural correlation is over."""
        self._job, self._threshold, self._select = job, threshold, SelectTexts(job)
        if not self._select.is_counted:
            raise InputError(
                f"explain.unless_patterns_above = {threshold} asks for natural correlations, and the harvest did not "
                "count how many tiles its text has; harvest again, or leave the setting out"
            )

    def well_explained(self, labels: Sequence[Explanation]) -> list[Explanation]:
        """The labels (of different features) that are worth at least the threshold."""
        job = self._job
        rules = [(label, Rule.from_json(label.rule)) for label in labels if label.status == "ok" and label.rule]
        features = [label.feature for label, _ in rules]
        scales = job.store.feature_evidence(job.dictionary_id, job.harvest_id, features, 0)
        chosen = []
        for (label, rule), of in zip(rules, self._select.read(features), strict=True):
            part = SelectPart(of, scales[label.feature].max_activation, self._select.tiles)
            value = part.natural_of(rule).value
            if value is not None and value >= self._threshold:
                chosen.append(label)
        return chosen
