"""Records of what the store itself knows: dictionaries, corpora, harvests, spending, and training curves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class CorpusRow:
    corpus_id: int
    source: str
    config: dict[str, Any]
    tokenizer_sha256: str | None
    n_documents: int | None
    n_tokens: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class DictionaryRow:
    dictionary_id: int
    name: str
    model: str
    revision: str | None
    hookpoint: str
    output_hookpoint: str | None
    architecture: str
    d_in: int
    d_out: int
    d_sae: int
    sae_sha256: str
    tokenizer_sha256: str
    config: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class HarvestRow:
    harvest_id: int
    dictionary_id: int
    corpus_id: int
    n_tokens: int
    config: dict[str, Any]
    report: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Spent:
    """What LLM calls cost so far, failed attempts included."""

    requests: int
    input_tokens: int
    output_tokens: int
    usd: float
    cached_tokens: int = 0
    """Input tokens that the endpoint's prefix cache served; they are part of `input_tokens`."""

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class TrainingPoint(NamedTuple):
    """One metric at one step of an SAE's training."""

    step: int
    metric: str
    value: float
