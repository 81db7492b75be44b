"""Controls: what a scorer is told in the place of a label.

    shuffled      another feature's label: what any label of this explainer scores
    empty         no label: what the scorer gives for nothing
    token_lookup  the label of the explainer `token_lookup` for the same feature, a list of the tokens on which it is
                  most active: what a label must beat to have said more than that (Bills et al. 2023)

Controls of the whole dictionary (see dictionary_controls.py) are runs of their own, in which labels are scored as they
are. The stand-ins are a function of labels and evidence alone, whatever features are chosen and whatever scorer asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from autointerp.ask.job import Job
from autointerp.config import ExplainConfig
from autointerp.dictionary_controls import DICTIONARY_CONTROLS
from autointerp.errors import InputError
from autointerp.records import Explanation, stable_id
from autointerp.rules.labels import rule_explanation, rule_sha256
from autointerp.store import Selection

LOOKUP = "token_lookup"
CONTROLS = ("shuffled", "empty", LOOKUP, *DICTIONARY_CONTROLS)
_EVERY = 1000
"""More contexts than any harvest keeps."""


def stand_ins(
    job: Job, explainer: str, seed: int, control: str | None, pending: Sequence[Explanation]
) -> Sequence[Explanation | None]:
    """For every pending label, the label that a scorer gets instead, or itself without a control. Raises InputError if
    nothing can replace it."""
    if control == LOOKUP:
        return LookupLabels(job, seed, pending)
    if control == "empty":
        return [None] * len(pending)
    if control == "shuffled":
        donors = _donors(job, explainer, seed)
        return [donors[e.explanation_id] for e in pending]
    return pending


def _donors(job: Job, explainer: str, seed: int) -> dict[str, Explanation]:
    """For every label of the dictionary, another feature's label: the next one in an order drawn with `seed`. It
    depends on the labels alone, not on the chosen features. Raises InputError if there are fewer than two features."""
    ordered = sorted(every_label(job, explainer), key=lambda e: stable_id(seed, e.explanation_id))
    donors = {}
    for i, own in enumerate(ordered):
        own_model = (o for o in _after(ordered, i) if o.feature != own.feature and o.model == own.model)
        # A few labels may have been made without the LLM, and only one in that way.
        donor = next(own_model, None) or next((o for o in _after(ordered, i) if o.feature != own.feature), None)
        if donor is None:
            raise InputError("shuffling labels takes the labels of at least two features")
        donors[own.explanation_id] = donor
    return donors


def _after(ordered: Sequence[Explanation], i: int) -> Iterator[Explanation]:
    """The others, from the one after the i-th on, round to the one before it."""
    return (ordered[(i + step) % len(ordered)] for step in range(1, len(ordered)))


def every_label(job: Job, explainer: str) -> Sequence[Explanation]:
    """The latest label by `explainer` and each explaining model for every feature, whatever features are chosen."""
    return job.store.explanations_to_score(
        job.dictionary_id, explainer, "", None, "", "", "report", Selection(), control="shuffled"
    )


class LookupLabels(Sequence[Explanation | None]):
    """For every pending label, the label by `token_lookup` for the same feature. It is the store's if that is of this
    harvest, or else it is made from the evidence when accessed (in a loader's worker thread) and not stored."""

    def __init__(self, job: Job, seed: int, pending: Sequence[Explanation]) -> None:
        self._job = job
        self._config = ExplainConfig(explainer=LOOKUP, seed=seed)
        self._digest = rule_sha256(LOOKUP)
        self._features = [e.feature for e in pending]
        stored = job.store.explanations_to_score(
            job.dictionary_id, LOOKUP, "", None, "", "", "report", Selection(), control=LOOKUP
        )
        current = (job.harvest_id, self._digest)
        self._stored = {e.feature: e for e in stored if (e.harvest_id, e.template_sha256) == current}

    def __len__(self) -> int:
        return len(self._features)

    @overload
    def __getitem__(self, place: int) -> Explanation | None: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Explanation | None]: ...
    def __getitem__(self, place: int | slice) -> Explanation | None | Sequence[Explanation | None]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        feature, job = self._features[place], self._job
        if feature in self._stored:
            return self._stored[feature]
        evidence = job.store.feature_evidence(job.dictionary_id, job.harvest_id, [feature], _EVERY)[feature]
        return rule_explanation(evidence, job, self._config, self._digest)
