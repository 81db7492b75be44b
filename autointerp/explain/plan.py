"""What is to be done about the chosen features: which ones are asked about, and which get their label for free."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from autointerp.ask.explanation_row import blank_row, with_meanings
from autointerp.ask.job import RULE_BLOCK
from autointerp.errors import InputError
from autointerp.explain.evidence_sections import Section, how_to_find, needed_methods
from autointerp.explain.explainer import EVERY_CONTEXT, Explainer, ExplainRun, FindsPending, named
from autointerp.explain.free_pass import FreePass
from autointerp.explain.label_replies import clean_label
from autointerp.records import Explanation, FeatureShape, stable_id
from autointerp.rules.labels import PATTERNS, by_patterns, carries_rules, patterns_sha256, rule_row
from autointerp.rules.reference import Reference
from autointerp.scorer_names import NATURAL

SHAPE = "shape"
"""Stands for the model of a label that the feature's shape alone gives."""
SHAPE_SHA256 = hashlib.sha256(b"shape: token, place in the window or document").hexdigest()
NO_EVIDENCE_SHA256 = hashlib.sha256(b"no evidence").hexdigest()
"""Both replace the template's hash if no template is rendered. A row without evidence is not an answer of the
explainer, which is asked about the feature once there is evidence."""


@dataclass(frozen=True)
class Plan:
    """What is to be done about the chosen features that the explainer has not labelled yet."""

    ask: list[int]
    """Features that the explainer is to label."""
    rows: list[Explanation]
    """Rows that need no call: labels by shape or by rule, and features without evidence that the explainer needs."""
    n_shaped: int = 0
    """Labels by shape, among `rows`."""
    n_patterned: int = 0
    """Labels by the rule of `patterns`, among `rows`."""
    bases: tuple[Explanation, ...] = ()
    """`patterns` labels made for this plan and not yet in the store. They are written, but do not count as results."""

    @property
    def size(self) -> int:
        return len(self.ask) + len(self.rows)

    @property
    def n_free(self) -> int:
        return self.n_shaped + self.n_patterned


def make_plan(run: ExplainRun) -> Plan:
    """The plan for the chosen features. Raises InputError if no feature has the evidence that the explainer reads."""
    explainer = run.explainer
    if isinstance(explainer, FindsPending):
        return Plan(explainer.pending(run), [])
    pending = run.pending(explainer.digest(run))
    if explainer.is_free:
        return Plan(pending, [])
    shapes: dict[int, FeatureShape] = {}
    if run.config.shape_labels and pending and not carries_rules(explainer.name):
        shapes = run.job.store.shape_labels(run.job.dictionary_id)
    shaped = [f for f in pending if f in shapes]
    rows: list[Explanation] = []
    if shaped:
        new = set(run.without_row(SHAPE, SHAPE_SHA256, run.job.harvest_id))
        rows += [_shape_row(run, f, shapes[f]) for f in shaped if f in new]
    n_shaped = len(rows)
    ask = [f for f in pending if f not in shapes]
    patterned = _by_patterns(run, explainer, ask)
    rows += patterned.rows
    ask = [f for f in ask if f not in patterned.done]
    if ask and needed_methods(explainer.reads):
        found = features_with_evidence(run, explainer)
        lacking = [f for f in ask if f not in found]
        new = set(run.without_row(run.config.model, NO_EVIDENCE_SHA256)) if lacking else set()
        rows += [row for f in lacking if f in new and (row := lacking_row(run, explainer.reads, f)) is not None]
        ask = [f for f in ask if f in found]
    return Plan(ask, rows, n_shaped, len(patterned.rows), tuple(patterned.bases))


def features_with_evidence(run: ExplainRun, explainer: Explainer) -> set[int]:
    """The features for which an evidence method that the explainer needs has found anything.

    Raises InputError if no chosen feature is among them.
    """
    job, methods = run.job, needed_methods(explainer.reads)
    found = set().union(*(job.store.features_with_findings(m, job.dictionary_id) for m in methods))
    if not found & set(job.store.selected_features(job.dictionary_id, job.selection)):
        reasons = [why for m in methods if (why := job.store.why_nothing(m, job.dictionary_id)) is not None]
        missing = "; ".join(dict.fromkeys(reasons)) or how_to_find(methods)
        raise InputError(f"no chosen feature has what {explainer.name!r} reads: {missing}")
    return found


def check_parts(run: ExplainRun) -> None:
    """Raises InputError where the explainer is made of other labels and no chosen feature has what these read."""
    parts = [named(run.explainers, name) for name in run.explainer.made_of(run.config)]
    if parts and all(needed_methods(part.reads) for part in parts):
        for part in parts:
            features_with_evidence(run, part)


def lacking_row(run: ExplainRun, reads: Sequence[Section], feature: int) -> Explanation | None:
    """The row of a feature of which no method has found what the explainer reads; None where it reads more than what
    methods find."""
    methods = needed_methods(reads)
    if not methods:
        return None
    row = blank_row(run.job, run.config, feature, run.config.model, NO_EVIDENCE_SHA256, NO_EVIDENCE_SHA256)
    why = f"it has nothing that {run.config.explainer!r} reads: {how_to_find(methods)}"
    return dataclasses.replace(row, status="abstained", error=why)


def _shape_row(run: ExplainRun, feature: int, shape: FeatureShape) -> Explanation:
    row = blank_row(run.job, run.config, feature, SHAPE, SHAPE_SHA256, stable_id(shape.text, shape.rule))
    return dataclasses.replace(row, text=clean_label(shape.text or ""), status="ok", rule=shape.rule, side="input")


# --- features that `patterns` explains well enough ------------------------------------------------------------------


@dataclass(frozen=True)
class _Patterned:
    rows: list[Explanation]
    """New rows of the explainer, with the text of the `patterns` label."""
    bases: list[Explanation]
    """The `patterns` labels behind them that the store lacks."""
    done: set[int]
    """All features that need no LLM, those of earlier runs included."""


def _by_patterns(run: ExplainRun, explainer: Explainer, features: Sequence[int]) -> _Patterned:
    """An explainer of what a feature leads to has no use for a rule of what it responds to."""
    config, job = run.config, run.job
    threshold = config.unless_patterns_above
    if threshold is None or explainer.side == "output":
        return _Patterned([], [], set())
    reference = Reference(job)
    rule_digest = patterns_sha256(reference)
    digest = hashlib.sha256(f"{PATTERNS} above {threshold} by {NATURAL} {rule_digest}".encode()).hexdigest()
    left = set(run.without_row(PATTERNS, digest, job.harvest_id))
    new = [f for f in features if f in left]
    found = _Patterned([], [], set(features) - left)  # the others were judged by an earlier run
    if not new:
        return found
    judge = FreePass(job, threshold)
    for start in range(0, len(new), RULE_BLOCK):
        block = new[start : start + RULE_BLOCK]
        held = _held_patterns(run, block, rule_digest)
        as_rule = dataclasses.replace(config, explainer=PATTERNS)
        lacking = run.evidence([f for f in block if f not in held], EVERY_CONTEXT)
        made = {e.feature: rule_row(by_patterns(e, reference), e, job, as_rule, rule_digest) for e in lacking}
        labels = {**held, **made}
        for base in judge.well_explained([labels[f] for f in block]):
            row = with_meanings(blank_row(job, config, base.feature, PATTERNS, digest, base.evidence_sha256), base)
            found.rows.append(dataclasses.replace(row, rule=base.rule, derived_from=[base.explanation_id]))
            if base.feature not in held:
                found.bases.append(base)
            found.done.add(base.feature)
    return found


def _held_patterns(run: ExplainRun, features: Sequence[int], rule_digest: str) -> dict[int, Explanation]:
    """The current `patterns` labels that the store holds of these features."""
    stored = run.job.store.explanations_of(run.job.dictionary_id, features)
    return {
        e.feature: e
        for labels in stored.values()
        for e in labels
        if (e.explainer, e.model, e.template_sha256) == (PATTERNS, PATTERNS, rule_digest)
        and (e.harvest_id, e.seed) == (run.job.harvest_id, run.config.seed)
    }
