"""One feature as a record: what the terminal, JSON, a viewer and an export show of it, without any formatting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from autointerp.records import Context, Holding, Kind, PromotedToken, Split
from autointerp.report.page_findings import Findings, MethodRunRow, findings_from, record, records
from autointerp.report.score_groups import ScoreGroup, ScoreRow, score_groups
from autointerp.store import Store
from autointerp.store.finding_tables import PAGE_KEYS
from autointerp.store.head_shares import HeadShare
from autointerp.store.label_controls import LabelControl
from autointerp.store.rows import DictionaryRow


@dataclass(frozen=True, slots=True)
class Histogram:
    """Activations of one feature."""

    edges: Sequence[float]
    """[n + 1] bounds, raw units."""
    counts: Sequence[int]
    """[n] tokens."""


@dataclass(frozen=True, slots=True)
class FeatureFacts:
    """One row of the table `features`: what the harvest counted."""

    dictionary_id: int
    feature: int
    harvest_id: int
    status: str
    """live, rare, dead or no_heldout."""
    density: float
    """Share of tiles in which it fires."""
    token_density: float
    """Share of tokens on which it fires."""
    n_active_tiles: int
    n_active_tokens: int
    max_activation: float
    """Raw units; 0 where it is dead."""
    mean_activation: float
    """Over active tokens."""
    explain_max_activation: float
    """The largest activation on the explain split, which is the scale of every 0..10 number."""
    histogram_edges: list[float] | None
    histogram_counts: list[int] | None

    @property
    def histogram(self) -> Histogram | None:
        """The histogram of the feature's activations; None if it never fired."""
        if not self.histogram_edges or not self.histogram_counts:
            return None
        return Histogram(self.histogram_edges, self.histogram_counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownLabel(Holding):
    """One row of the view `labels`: the label that stands for the feature, with its headline score and from where on it
    holds. None throughout where the feature has no explanation, or its label no score."""

    dictionary_id: int
    name: str
    """The dictionary's name."""
    feature: int
    label: str | None
    explainer: str | None
    model: str | None
    """The explainer LLM, or the name of the rule."""
    scorer: str | None
    method: str | None
    """The scoring method."""
    score: float | None
    ci_low: float | None
    ci_high: float | None
    n: int | None
    n_failed: int | None
    density: float
    status: str
    """The feature's status."""
    explanation_status: str | None
    score_status: str | None
    error: str | None
    explanation_id: str | None
    score_id: str | None
    side: str | None
    """input, output or both: what the label describes."""
    precision: float | None
    """Of ordinary text in which the label predicts activity, the share in which the feature fires."""
    precision_low: float | None
    precision_high: float | None
    recall: float | None
    recall_low: float | None
    recall_high: float | None
    from_quantile: float | None
    """Share of the active tiles that do not reach `label_from`."""
    second_label: str | None
    """A second, different meaning of what the feature responds to."""
    output_label: str | None
    """What it makes the model say, where the explainer tells it apart."""
    label_share: float | None
    """The share of its active places, 0..1, that the label covers, as the explainer estimates it."""
    second_share: float | None
    n_same_label: int | None
    """How many features have this label, word for word, by this explainer and model."""
    label_flag: str | None
    """'repeated': so many features have it that it says nothing of any of them."""
    beats_lookup: bool | None
    """Whether it scores better than the list of the feature's tokens; None where that was not tested."""
    beats_neighbour: bool | None
    """Whether it scores better than the nearest feature's label."""


@dataclass(frozen=True, slots=True)
class ExplanationRow:
    """One row of the table `explanations`."""

    explanation_id: str
    dictionary_id: int
    feature: int
    harvest_id: int
    explainer: str
    model: str
    template_sha256: str
    evidence_sha256: str
    seed: int
    text: str | None
    """The label; None unless `status` is ok."""
    status: str
    error: str | None
    rule: str | None
    """JSON of the rule that the text states."""
    input_tokens: int
    output_tokens: int
    cost_usd: float
    created_at: datetime
    """UTC."""
    sequence: int
    """Its place in the order in which rows were written to the store."""
    side: str | None
    derived_from: list[str] | None
    """Ids of the explanations that it was chosen from, joined of or revised from."""
    output_text: str | None
    second_text: str | None
    share: float | None
    second_share: float | None


@dataclass(frozen=True, slots=True)
class FeaturePage:
    """Everything that the store knows of one feature."""

    dictionary: DictionaryRow
    facts: FeatureFacts
    label: ShownLabel
    explanations: list[ExplanationRow]
    """The latest first."""
    scores: list[ScoreRow]
    """The scores of all explanations, the latest first."""
    label_controls: list[LabelControl]
    """Tests of all explanations against what controls put in their place."""
    promoted: list[PromotedToken]
    """The strongest first."""
    suppressed: list[PromotedToken]
    no_projection: str | None
    """Why there are no promoted tokens; None where nothing is in the way of them."""
    heads: list[HeadShare]
    """What each attention head has in the feature, the largest part first; empty unless the dictionary is of heads."""
    contexts: list[Context]
    """Contexts of all splits and kinds, as many of each as were asked for."""
    findings: Findings
    method_runs: list[MethodRunRow]
    """The runs in order of the methods' names."""

    @property
    def name(self) -> str:
        """What a user types to see the page: "h6:1234"."""
        return f"{self.dictionary.name}:{self.facts.feature}"

    @property
    def shown_explanation(self) -> ExplanationRow | None:
        """Where the label comes from."""
        return next((e for e in self.explanations if e.explanation_id == self.label.explanation_id), None)

    @property
    def made_of(self) -> list[str]:
        """The explainers of the explanations that the label was made of; the id of one that is not there any more."""
        shown = self.shown_explanation
        by_id = {e.explanation_id: e.explainer for e in self.explanations}
        return [by_id.get(one, one) for one in (shown.derived_from if shown else None) or ()]

    @property
    def label_scores(self) -> list[ScoreGroup]:
        """The scores of the label shown, and those that need no label."""
        wanted = (self.label.explanation_id, None)
        return score_groups([score for score in self.scores if score.explanation_id in wanted])

    def contexts_of(self, split: Split, kind: Kind) -> list[Context]:
        return [context for context in self.contexts if context.split == split and context.kind == kind]


def load_page(store: Store, dictionary_id: int, feature: int, contexts: int = 5) -> FeaturePage:
    """The page of one feature, with up to `contexts` contexts of each split and kind.

    Raises InputError where the dictionary has no such feature.
    """
    found = store.feature_page(dictionary_id, feature, contexts)
    findings: Mapping[str, Any] = {name: rows for name, rows in found.items() if name not in PAGE_KEYS}
    return FeaturePage(
        dictionary=next(row for row in store.dictionaries() if row.dictionary_id == dictionary_id),
        facts=record(FeatureFacts, found["feature"]),
        label=record(ShownLabel, found["label"]),
        explanations=records(ExplanationRow, found["explanations"]),
        scores=records(ScoreRow, found["scores"]),
        label_controls=found["label_controls"],
        promoted=found["promoted"],
        suppressed=found["suppressed"],
        no_projection=found["no_projection"],
        heads=found["heads"],
        contexts=found["contexts"],
        findings=findings_from(findings),
        method_runs=records(MethodRunRow, found["method_runs"]),
    )
