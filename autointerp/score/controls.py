"""Controls: what a scorer is told in the place of a label.

    shuffled         the label of another feature, of like density: what any label of this explainer scores. (The denser
                     a feature is, the more of a judge's questions does a label that fits much answer right)
    neighbour_label  the label of the feature whose decoder row is nearest by cosine, of those that have a label: what a
                     label must beat to tell the feature from what is most like it
    empty            no label: what the scorer gives for nothing
    token_lookup     the label of the explainer `token_lookup` for the same feature, a list of the tokens on which it is
                     most active: what a label must beat to have said more than that (Bills et al. 2023)

Controls of the whole dictionary (see dictionary_controls.py) are runs of their own, in which labels are scored as they
are. The stand-ins are a function of labels and evidence alone, whatever features are chosen and whatever scorer asks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import overload

from autointerp.ask.job import Job
from autointerp.config import ExplainConfig
from autointerp.dictionary_controls import DICTIONARY_CONTROLS, LABEL_CONTROLS
from autointerp.errors import InputError
from autointerp.records import Explanation, FeatureEvidence, stable_id
from autointerp.rules.labels import by_token_lookup, rule_row, token_lookup_sha256
from autointerp.store import Selection
from autointerp.store.labels_left import LabelFacts, LabelKey, LabelsLeft, keys_of

SHUFFLED = "shuffled"
NEIGHBOUR = "neighbour_label"
LOOKUP = "token_lookup"
CONTROLS = (*LABEL_CONTROLS, *DICTIONARY_CONTROLS)
_EVERY = 1000
"""More contexts than any harvest keeps."""
_AT_ONCE = 64
"""Features whose evidence is read together."""
DENSITY_GROUPS = 10
"""Labels are shuffled among as many groups of features, from the sparsest to the densest."""

AUTO = "auto"
"""In score.controls: token_lookup and neighbour_label, for scorers that cost nothing."""


def free_controls(job: Job, explainer: str, configured: Sequence[str]) -> list[str]:
    """The controls that `auto` stands for among the `configured` ones, for the labels by `explainer`."""
    if AUTO not in configured:
        return []
    found = [LOOKUP] if explainer != LOOKUP else []  # which would be compared with itself
    return [*found, NEIGHBOUR] if knows_neighbours(job) else found


def stand_ins(
    job: Job, explainer: str, seed: int, control: str | None, pending: Sequence[Explanation]
) -> Sequence[Explanation | None]:
    """For every pending label, the label that a scorer gets instead, or itself without a control. Raises InputError if
    nothing can replace it."""
    if control == LOOKUP:
        return LookupLabels(job, seed, pending)
    if control == "empty":
        return [None] * len(pending)
    if control == SHUFFLED:
        return _labels_for(job, pending, shuffled_labels(job.store.labels_by(job.dictionary_id, explainer), seed))
    if control == NEIGHBOUR:
        return _labels_for(job, pending, job.store.nearest_labels(job.dictionary_id, explainer))
    return pending


def _labels_for(job: Job, pending: Sequence[Explanation], donors: Mapping[str, LabelKey]) -> LabelsLeft:
    """The donor of each pending label, read when it is needed."""
    keys = [donors[explanation_id] for explanation_id, _ in keys_of(pending)]
    return LabelsLeft(job.store, job.dictionary_id, keys)


def shuffled_labels(labels: Sequence[LabelFacts], seed: int) -> dict[str, LabelKey]:
    """For every label of a dictionary, by its id, the label of another feature: the next one of the same model, in an
    order drawn with `seed`, among the features of its tenth of the densities. Raises InputError if there are fewer than
    two features."""
    of_model: dict[str, list[LabelFacts]] = defaultdict(list)
    for label in labels:
        of_model[label.model].append(label)
    donors: dict[str, LabelKey] = {}
    for model, own in of_model.items():
        # A few labels may have been made without the LLM, and only one in that way.
        pool = own if len({label.feature for label in own}) > 1 else labels
        for group in _by_density(pool):
            ordered = sorted(group, key=lambda label: stable_id(seed, label.explanation_id))
            for i, label in enumerate(ordered):
                if label.model == model:
                    following = (ordered[(i + step) % len(ordered)] for step in range(1, len(ordered)))
                    donor = next(other for other in following if other.feature != label.feature)
                    donors[label.explanation_id] = donor.key
    return donors


def _by_density(labels: Sequence[LabelFacts]) -> list[list[LabelFacts]]:
    """The labels in DENSITY_GROUPS groups of as many features each, or in fewer groups of two features or more."""
    densities = {label.feature: label.density for label in labels}
    if len(densities) < 2:
        raise InputError("shuffling labels takes the labels of at least two features")
    n_groups = min(DENSITY_GROUPS, len(densities) // 2)
    place = {feature: i for i, feature in enumerate(sorted(densities, key=lambda f: (densities[f], f)))}
    groups: list[list[LabelFacts]] = [[] for _ in range(n_groups)]
    for label in labels:
        groups[place[label.feature] * n_groups // len(place)].append(label)
    return groups


def every_label(job: Job, explainer: str) -> Sequence[Explanation]:
    """The latest label by `explainer` and each explaining model for every feature, whatever features are chosen."""
    return LabelsLeft(
        job.store, job.dictionary_id, [label.key for label in job.store.labels_by(job.dictionary_id, explainer)]
    )


def replaceable(job: Job, explainer: str, control: str | None, pending: LabelsLeft) -> LabelsLeft:
    """Those of the pending labels that something can replace under this control. Raises InputError where `control` is
    `neighbour_label` and it is not known which features are near to one another."""
    if control != NEIGHBOUR or not pending:
        return pending
    if not knows_neighbours(job):
        raise InputError(
            f"the control {NEIGHBOUR!r} needs to know which features are near to one another; find that with "
            "`autointerp measure --method neighbours`"
        )
    near = job.store.nearest_labels(job.dictionary_id, explainer)
    keys = [key for key in pending.keys if key[0] in near]
    return LabelsLeft(job.store, job.dictionary_id, keys)


def knows_neighbours(job: Job) -> bool:
    """Whether it is known of any feature which others are near to it."""
    return bool(job.store.features_with_findings("neighbours", job.dictionary_id))


def without_neighbour(job: Job, explainer: str) -> tuple[str, ...]:
    """A line that says how many labels `neighbour_label` can put nothing in the place of, if there are any."""
    n_labels = len(job.store.labels_by(job.dictionary_id, explainer))
    missing = n_labels - len(job.store.nearest_labels(job.dictionary_id, explainer))
    if not missing:
        return ()
    return (
        f"{missing:,} of {n_labels:,} labels are not scored under {NEIGHBOUR}: none of the nearest features has a "
        "label yet",
    )


class LookupLabels(Sequence[Explanation | None]):
    """For every pending label, the label by `token_lookup` for the same feature. It is the store's if that is of this
    harvest, or else it is made from the evidence when accessed (in a loader's worker thread) and not stored."""

    def __init__(self, job: Job, seed: int, pending: Sequence[Explanation]) -> None:
        self._job = job
        self._config = ExplainConfig(explainer=LOOKUP, seed=seed)
        self._digest = token_lookup_sha256()
        self._features = [feature for _, feature in keys_of(pending)]
        self._evidence: dict[int, FeatureEvidence] = {}
        """Of the features that were last read together."""
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
        evidence = self._evidence.get(feature)  # one dictionary at a time: several threads may be here
        if evidence is None:
            first = place - place % _AT_ONCE
            near = list(dict.fromkeys(self._features[first : first + _AT_ONCE]))
            found = job.store.feature_evidence(job.dictionary_id, job.harvest_id, near, _EVERY)
            self._evidence, evidence = found, found[feature]
        return rule_row(by_token_lookup(evidence), evidence, job, self._config, self._digest)
