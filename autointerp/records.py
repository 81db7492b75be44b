"""The plain records that cross from one step of the pipeline to the next. No torch, no SQL, no I/O."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

VALUED_STATUSES = ("ok", "constant_prediction")
"""Statuses of scores that have a value. A constant prediction is a score of the label, 0, and no failure."""
Split = Literal["explain", "select", "report"]
SPLITS: tuple[Split, ...] = ("explain", "select", "report")
Kind = Literal["top", "sampled", "negative"]
Tier = Literal["random", "same_token", "neighbour"]
Begins = Literal["document", "window"]
"""What the first token of a text begins; that of a document begins a window too."""
Side = Literal["input", "output", "both"]
"""What a label describes: what the feature responds to, what it makes the model say, or both."""
ShapeKind = Literal["token", "position", "dense", "rare", "other"]


@dataclass(frozen=True, slots=True)
class Document:
    """One document of the corpus (or one block of a huge one), after cleaning."""

    name: str
    """The source's own id, or path plus index; a block of a larger document is `name#3`."""
    text: str
    split: Split
    """A function of the corpus's text alone (see corpus/splits.py)."""


_BLOCK_NUMBER = re.compile(r"#\d+$")


@lru_cache(maxsize=65_536)
def source_of(document: str) -> str:
    """The document that a block was cut from, or the document itself. Blocks of one source are about the same things,
    so that resampling them as if they were independent gives intervals that are too narrow."""
    return _BLOCK_NUMBER.sub("", document)


@dataclass(frozen=True, slots=True)
class Window:
    """One model input: consecutive tokens of one document, special tokens included, never padded."""

    document: str
    start: int
    """Position in the document's tokens of the window's first corpus token (a prepended BOS has no position)."""
    split: Split
    token_ids: Sequence[int]
    n_prefix: int = 0
    """Leading ids that were added for the model (a BOS). They belong to no document and never count."""


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """The windows of consecutive documents: the unit of sharding, committing and resuming. A function of the corpus
    alone."""

    index: int
    windows: list[Window]
    n_documents: int


def beginning_of(begins_document: bool, begins_window: bool) -> Begins | None:
    """What a text is the beginning of; a document's, which is a window's too, is called the document's."""
    return "document" if begins_document else "window" if begins_window else None


@dataclass(frozen=True, slots=True)
class Context:
    """A stretch of text with the activation of one feature on each token, for explainers and scorers to read."""

    context_id: int
    feature: int
    split: Split
    kind: Kind
    tier: Tier | None
    decile: int | None
    """0 (weakest) .. 9 (strongest) of the feature's activating tiles, by the tile's maximum; None for negatives."""
    rank: int
    document: str
    """Its name; `source` is what it was cut from."""
    position: int
    """Where the peak is in the document's tokens; for negatives, where the first token is."""
    tokens: list[str]
    activations: list[float]
    """One per token, raw units; 0 where the feature is silent and on special tokens."""
    begins_document: bool = False
    """Whether its first token is the document's first one."""
    begins_window: bool = False
    """Whether its first token is the first one of the document's in its window, as it is where it begins a document; a
    BOS in front does not count."""

    @property
    def begins(self) -> Begins | None:
        return beginning_of(self.begins_document, self.begins_window)

    @property
    def source(self) -> str:
        """The document, or the file of which it is a block: what intervals resample."""
        return source_of(self.document)

    @property
    def max_activation(self) -> float:
        return max(self.activations, default=0.0)

    @property
    def text(self) -> str:
        return "".join(self.tokens)


@dataclass(frozen=True, slots=True)
class PromotedToken:
    token: str
    logit: float
    rank: int
    sign: Literal[1, -1]
    """1: the feature's decoder row promotes the token; -1: suppresses it."""


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """A pruned context with one important token replaced by another, and what became of the activation."""

    position: int
    """Place in the pruned context's tokens."""
    substitute: str
    activation: float
    """The activation at the peak, raw units."""
    kept: bool
    """Whether the feature kept at least the share of its activation that was asked for."""


@dataclass(frozen=True, slots=True)
class PrunedContext:
    """The shortest left context that keeps a top context's peak (PruningMaxAct; Foote et al. 2023)."""

    feature: int
    context_id: int
    mode: Literal["delete", "mask"]
    """What was done to the text before it: left out, so that positions move, or masked in place."""
    tokens: list[str]
    """The kept tokens; the last one is the peak. Never empty."""
    importance: list[float]
    """For each kept token, the share of the peak's activation that is lost without it. It is 1 for the peak itself, and
    below 0 for a token that suppresses the feature."""
    activation: float
    """The activation at the peak with these tokens alone, raw units."""
    full_activation: float
    """The activation at the peak in the whole window, raw units."""
    status: Literal["ok", "not_kept"] = "ok"
    """not_kept: no context that was tried kept the share asked for; `tokens` is the longest of them."""
    counterfactuals: list[Counterfactual] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ChangedToken:
    """A token that the model says more often (sign 1) or less often (-1) when the feature is clamped (TokenChange)."""

    token: str
    sign: Literal[1, -1]
    rank: int
    delta: float
    """Mean change of the logit, over prompts and positions, relative to the mean over the vocabulary."""
    z: float
    """The change against that of random features at the same KL: (delta - their mean) / their deviation."""


@dataclass(frozen=True, slots=True)
class RelatedWord:
    """A word related to a feature, by mutual information with its direction or by where it fires."""

    word: str
    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class ShapeFacts:
    """The numbers that decide a feature's shape (see evidence/shape.py)."""

    feature: int
    kind: ShapeKind
    unigram: str | None
    """The token on which it fires most."""
    unigram_purity: float | None
    unigram_recall: float | None
    unigram_strength: float
    """Mean activation where it fires on that token, as a share of its maximum on the explain split."""
    position_dependence: float | None
    places: tuple[int, int] | None
    """First and last place of the shortest stretch of a window (or document, see `place_in`) that holds most of the
    active tokens. The text's first token is at place 1; what was put before it for the model (a BOS) has none."""
    place_recall: float | None
    """Share of the tokens in that stretch on which it fires, at most 1."""
    is_dense: bool
    is_rare: bool
    place_in: Literal["window", "document"] = "window"
    """In which of the two the place says more of whether it fires: what position_dependence and places are about."""


@dataclass(frozen=True, slots=True)
class FeatureShape:
    """What the numbers alone say about a feature. `text` is the label where they say enough, else None."""

    kind: ShapeKind
    unigram: str | None
    """The token on which it fires most."""
    unigram_purity: float | None
    """Share of its active tokens that are `unigram`, over uniform samples of where it fires."""
    position_dependence: float | None
    """0: it fires anywhere. 1: the place in the window, or in the document, alone decides whether it fires."""
    text: str | None = None
    rule: str | None = None
    """JSON of the rule that the text states, where it states one (see rules/patterns.py)."""


@dataclass(frozen=True, slots=True)
class FeatureEvidence:
    """Everything that an explainer may see of one feature: contexts come from the explain split only. What a method
    finds is empty where it was not run."""

    dictionary_id: int
    feature: int
    status: str
    density: float
    max_activation: float
    """Largest activation on the explain split, raw units: the scale of every 0..10 number."""
    top: list[Context] = field(default_factory=list)
    sampled: list[Context] = field(default_factory=list)
    negatives: list[Context] = field(default_factory=list)
    promoted: list[PromotedToken] = field(default_factory=list)
    suppressed: list[PromotedToken] = field(default_factory=list)
    pruned: list[PrunedContext] = field(default_factory=list)
    lens: list[PromotedToken] = field(default_factory=list)
    """Tokens promoted, then tokens suppressed, by way of the blocks that come after (method jacobian_lens)."""
    changed: list[ChangedToken] = field(default_factory=list)
    """Tokens said more often, then tokens said less often, when the feature is clamped; strongest first."""
    related_words: list[RelatedWord] = field(default_factory=list)
    """Words by mutual information with the feature's direction, best first."""
    input_words: list[RelatedWord] = field(default_factory=list)
    """Words whose presence goes with firing, best first."""
    shape: FeatureShape | None = None
    stands_out: bool | None = None
    """Whether its promoted tokens stand out clearly from those of a random direction (see store/finding_tables.py):
    fewer features do than are output features by their p-value. None: not known."""
    recurring: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By list (promoted, suppressed, lens_promoted, lens_suppressed, raised, lowered), which of its tokens stand in the
    lists of many other features too (see store/recurring_tokens.py), sorted. Lists without any have no entry."""


ExplanationStatus = Literal[
    "ok", "abstained", "refused", "filtered", "truncated", "unparseable", "ctx_too_long", "gave_up"
]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One label of one feature, or the reason why it has no label. `text`, the label, is None unless status is 'ok'."""

    explanation_id: str
    dictionary_id: int
    feature: int
    harvest_id: int
    explainer: str
    model: str
    """The explainer LLM, or the name of the rule for an explainer without one."""
    template_sha256: str
    evidence_sha256: str
    seed: int
    text: str | None
    status: ExplanationStatus
    error: str | None = None
    rule: str | None = None
    """JSON of a machine-checkable rule, where the explainer makes one (`patterns`)."""
    side: Side | None = None
    """What `text` describes: what the feature responds to, what it makes the model say, or both. None: not known."""
    derived_from: list[str] | None = None
    """Ids of the explanations that this one was chosen from, joined from or revised from."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    output_text: str | None = None
    """What the feature makes the model say, where the explainer tells it apart; `text` itself if side is 'output'."""
    second_text: str | None = None
    """A second, different meaning of the input side."""
    share: float | None = None
    """The share of the feature's active places, 0..1, that `text` covers, as the explainer estimates it."""
    second_share: float | None = None
    """The same for `second_text`."""

    @property
    def judged_text(self) -> str:
        """What a judge is told of where the feature is active: `text`, and the second meaning, since both count. ''
        where there is no text."""
        if self.text and self.second_text:
            return f"{self.text.removesuffix('.')}; or {self.second_text}"
        return self.text or self.second_text or ""

    @property
    def whole_text(self) -> str:
        """All that the label says, for a judge of what the feature makes the model say. '' where there is no text."""
        leads_to = self.output_text if self.output_text and self.side != "output" else None
        return self.judged_text + (f"; leads to {leads_to}" if leads_to else "")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a scorer predicted on one context. truth and predicted have one value for each token; predicted is None
    unless status is 'ok'."""

    context_id: int
    truth: list[float]
    predicted: list[float] | None
    status: str


@dataclass(frozen=True, slots=True)
class Holding:
    """From which activation on a label holds (see score/holding.py): columns of `scores`, None in all rows but the
    scorer's headline row, and of the view `labels`."""

    label_from: float | None = None
    """Raw units: the label holds in tiles whose largest activation is at least this; 0: wherever the feature fires."""
    from_status: str | None = None
    """'ok', or why there is no such activation. None: it was not looked for."""
    from_share: float | None = None
    """Share of the active tiles that reach it."""
    from_mass: float | None = None
    """Share of the activation, summed over tokens, that lies in those tiles."""
    from_precision: float | None = None
    """On text as it comes, the share of claimed tiles that reach it; None where no false alarm was seen."""
    from_precision_low: float | None = None
    from_precision_high: float | None = None
    from_recall: float | None = None
    """The share of the tiles that reach it that are claimed."""
    from_recall_low: float | None = None
    from_recall_high: float | None = None
    from_n: int | None = None
    """Sampled active tiles on which all of this was measured."""
    from_floor: float | None = None
    """score.label_precision, the precision that was asked for."""


@dataclass(frozen=True, slots=True)
class HeadlineScore:
    """What a label scores: columns of the view `labels`, None where it has no score."""

    scorer: str | None = None
    score: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    precision: float | None = None
    """Over all places of ordinary text; None where no false alarm was seen."""
    precision_low: float | None = None
    precision_high: float | None = None
    recall: float | None = None
    recall_low: float | None = None
    recall_high: float | None = None


@dataclass(frozen=True, slots=True)
class FeatureHistogram:
    """How often a feature fires how strongly, and what its label is worth."""

    feature: int
    label: str | None
    edges: Sequence[float]
    """[n + 1], raw units."""
    counts: Sequence[int]
    """[n]: tokens on which it is active."""
    holding: Holding
    """From which activation on the label holds."""
    second_label: str | None
    """A second, different meaning of what the feature responds to."""
    headline: HeadlineScore


@dataclass(frozen=True, slots=True, kw_only=True)
class Score(Holding):
    """One number for one label, with its interval, its failures and from where on the label holds. `value` is None
    unless status is one of VALUED_STATUSES."""

    score_id: str
    dictionary_id: int
    feature: int
    explanation_id: str | None
    harvest_id: int
    scorer: str
    method: str
    control: str | None
    part: Literal["select", "report"]
    model: str
    template_sha256: str
    seed: int
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    n_failed: int
    status: str
    error: str | None = None
    n_documents: int | None = None
    """Different documents among the contexts that have a prediction; None for a score that is not over contexts."""
    n_by_kind: dict[str, int] | None = None
    """Contexts asked about, by kind: top, sampled, and for negatives their tier. None as for n_documents."""
    documents: list[str] | None = None
    """Those documents, in the order of `influences`; None where influences are not known."""
    influences: list[float] | None = None
    """By how much each document moves `value` (jackknife.influences_of)."""
    predictions: list[Prediction] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """The outcome of one paid call, written before its reply is parsed. Key: (request_sha256, sample)."""

    request_sha256: str
    sample: int
    run_id: str
    dictionary_id: int | None
    feature: int | None
    stage: str
    model: str
    status: str
    """'ok', or what became of it: refused, filtered, truncated, bad_reply, ctx_too_long, gave_up."""
    reply: str | None
    """The endpoint's JSON body, at most a few hundred kB; None if no body came."""
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: float
    latency_s: float
    attempts: int = 1
    error: str | None = None


@dataclass(frozen=True, slots=True)
class BatchedRequest:
    """One request of a batch: the key of its call record, and what is needed to read its result."""

    custom_id: str
    request_sha256: str
    sample: int
    dictionary_id: int | None
    feature: int | None
    stage: str
    length_is_expected: bool
    """Whether a reply that was cut at its token limit counts as whole."""
    n_inputs: int = 0
    """Texts of an embeddings request."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch at an endpoint, known from just before its upload until its results are in the call ledger."""

    batch_key: str
    """Our own key, which the endpoint is told as metadata."""
    batch_id: str | None
    """The endpoint's id; None until it has acknowledged the batch."""
    run_id: str
    model: str
    base_url: str
    kind: str
    """chat, completions or embeddings."""
    input_file_id: str | None
    status: str
    """uploading, created, or how it ended."""
    created_at: float
    """Seconds since 1970, UTC."""


@dataclass(frozen=True, slots=True)
class MeasureTask:
    """What a scorer asks of the model: it asks, the model is measured, the scorer judges. One row, written once."""

    task_id: str
    """stable_id of everything that the answer depends on."""
    dictionary_id: int
    feature: int
    explanation_id: str | None
    """The label that the task is about; None if the answer does not depend on a label."""
    kind: str
    """activations, surprisal, similarity, steering, label_gain: which measurement (see tasks.py)."""
    payload: dict[str, Any]
    """JSON: texts and settings."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The model's answer to a task. `result` is None where status is not 'ok'."""

    task_id: str
    status: str
    result: dict[str, Any] | None = None
    error: str | None = None
    n_forwards: int = 0
    """Sequences that the model read for it."""
    n_tokens: int = 0


@dataclass(frozen=True, slots=True)
class JudgeRepeat:
    """One label that a judge was asked about twice, on the same contexts in other batches. An error is 1 where an
    answer is wrong, less the share of wrong answers about the label's contexts of that class."""

    repeat_id: str
    dictionary_id: int
    feature: int
    explanation_id: str
    harvest_id: int
    scorer: str
    method: str
    model: str
    template_sha256: str
    seed: int
    n_twice: int
    """Contexts that were answered both times, ..."""
    n_agreed: int
    """... and those of them with the same answer."""
    n_answers: int
    square_sum: float
    """Sum of the squared errors of all answers."""
    n_within: int
    """Pairs of answers of one call."""
    within_sum: float
    """Sum of the products of their errors."""
    n_between: int
    """Pairs of answers of two calls, about two contexts."""
    between_sum: float


def stable_id(*parts: Any) -> str:
    """The key of a row that must not be written twice: 32 hex digits that depend on the parts alone."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]
