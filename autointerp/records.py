"""The plain records that cross from one step of the pipeline to the next. No torch, no SQL, no I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["explain", "select", "report"]
SPLITS: tuple[Split, ...] = ("explain", "select", "report")
Kind = Literal["top", "sampled", "negative"]
Tier = Literal["random", "same_token", "neighbour"]


@dataclass(frozen=True, slots=True)
class Document:
    """One document of the corpus (or one block of a huge one), after cleaning."""

    name: str
    """The source's own id, or path plus index; a block of a larger document is `name#3`."""
    text: str
    split: Split
    """A function of the document's content alone (of the whole document's, for a block: see corpus/splits.py)."""


@dataclass(frozen=True, slots=True)
class Window:
    """One model input: consecutive tokens of one document, special tokens included, never padded."""

    document: str
    start: int
    """Position in the document's tokens of the window's first corpus token (a prepended BOS has no position)."""
    split: Split
    token_ids: Sequence[int]
    n_prefix: int = 0
    """How many leading ids were added for the model (a BOS); they belong to no document and never count."""


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Consecutive documents' windows: the unit of sharding, committing and resuming. A function of the corpus alone."""

    index: int
    windows: list[Window]
    n_documents: int


@dataclass(frozen=True, slots=True)
class Context:
    """A stretch of text with one feature's activation on each token: what explainers and scorers read."""

    context_id: int
    feature: int
    split: Split
    kind: Kind
    tier: Tier | None
    decile: int | None
    """0 (weakest) .. 9 (strongest) of the feature's activating tiles, by the tile's maximum; None for negatives."""
    rank: int
    document: str
    position: int
    """Of the peak, in the document's tokens; of the first token, for negatives."""
    tokens: list[str]
    activations: list[float]
    """One per token, raw units; 0 where the feature is silent and on special tokens."""

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
class FeatureEvidence:
    """Everything an explainer may see of one feature: contexts of the explain split only."""

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


ExplanationStatus = Literal[
    "ok", "abstained", "refused", "filtered", "truncated", "unparseable", "ctx_too_long", "gave_up"
]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One label of one feature, or the reason why there is none. `text` is None unless status is 'ok'."""

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
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """A scorer's view of one context. truth and predicted are per token; predicted is None where status is not 'ok'."""

    context_id: int
    truth: list[float]
    predicted: list[float] | None
    status: str


@dataclass(frozen=True, slots=True)
class Score:
    """One number for one label, with its interval and its failures. `value` is None where status is not 'ok'."""

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
    predictions: list[Prediction] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One paid attempt's outcome, written before its reply is parsed. Key: (request_sha256, sample)."""

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
    """The endpoint's JSON body, at most a few hundred kB; None where none came."""
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: float
    latency_s: float
    attempts: int = 1
    error: str | None = None


def stable_id(*parts: Any) -> str:
    """32 hex digits that depend on the parts alone: the key of a row that must not be written twice."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]
