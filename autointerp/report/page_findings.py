"""The findings of evidence methods on one feature, as records: the built-in methods' tables without their keys.

A method of another package keeps its findings in its own table, whose rows a page has unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar

from autointerp.errors import AutointerpError
from autointerp.records import Counterfactual

Row = Mapping[str, Any]
"""One row of a table, by column name."""
Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Shape:
    """Method `shape`: what the numbers alone say."""

    harvest_id: int
    kind: str
    """token, position, dense, rare or other."""
    unigram: str | None
    """The token on which the feature fires most."""
    unigram_purity: float | None
    """Its share of the active tokens."""
    position_dependence: float | None
    """0: it fires anywhere; 1: the place in the window, or in the document, alone says whether it fires."""
    is_dense: bool
    is_rare: bool
    text: str | None
    """The label, where the shape is enough to explain the feature."""
    rule: str | None
    """JSON of the rule that the label states."""


@dataclass(frozen=True, slots=True)
class OutputStatistic:
    """Method `output_statistic`: whether the feature's logits over the vocabulary stand out."""

    kurtosis: float
    """Excess kurtosis."""
    skew: float
    threshold: float
    """The kurtosis that 1 in 100 random directions exceeds."""
    is_output: bool
    """Whether p_value is below .05."""
    p_value: float | None
    """The share of random directions with as large a kurtosis, adjusted over the features; None in rows of earlier
    versions, where `is_output` says whether kurtosis exceeds the threshold."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Method `neighbours`: another feature of the dictionary that is near to this one."""

    relation: str
    """decoder, coactive, correlated or anticorrelated."""
    rank: int
    neighbour: int
    value: float
    """Cosine; Jaccard index of the tokens where both fire; Pearson correlation."""
    label: str | None
    """The neighbour's label."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """Method `pruning`: the shortest left context that keeps the peak of a top context."""

    harvest_id: int
    rank: int
    context_id: int
    mode: str
    """delete or mask: what was done to the text before it."""
    status: str
    """ok; not_kept where no context that was tried kept the peak."""
    tokens: list[str]
    """The last one is the peak."""
    importance: list[float]
    """For each token, the share of the activation that is lost without it."""
    activation: float
    """The activation at the peak with these tokens alone, raw units."""
    full_activation: float
    """The activation at the peak in the whole window, raw units."""
    counterfactuals: list[Counterfactual]


@dataclass(frozen=True, slots=True)
class LensToken:
    """Method `jacobian_lens`: a token that the feature promotes or suppresses by way of the blocks after it."""

    sign: int
    """1: promoted, -1: suppressed."""
    rank: int
    token_id: int
    token: str
    logit: float
    """Relative to the mean over the vocabulary."""


@dataclass(frozen=True, slots=True)
class TokenChange:
    """Method `token_change`: a token that the model says more or less when the feature is clamped."""

    sign: int
    """1: said more, -1: said less."""
    rank: int
    token_id: int
    token: str
    delta: float
    """Mean change of the logit, relative to the mean over the vocabulary."""
    z: float
    """Against random features at the same KL."""
    strength: float
    """The activation that the feature was clamped to, raw units."""
    kl: float
    """Nats per token."""


@dataclass(frozen=True, slots=True)
class DirectionWord:
    """Method `mutual_information`: a word that goes with the feature's direction."""

    mode: str
    """pmi or paper."""
    rank: int
    word: str
    score: float


@dataclass(frozen=True, slots=True)
class InputWord:
    """Method `words`: a word whose presence goes with firing."""

    harvest_id: int
    rank: int
    word: str
    pmi: float
    """log P(word, fires) / (P(word) P(fires)), nats."""
    g: float
    """G statistic of the 2 x 2 table of contexts."""
    p_value: float
    """The p-value of G, Benjamini-Hochberg adjusted over the feature's words."""
    n_with_word: int


@dataclass(frozen=True, slots=True)
class Findings:
    """Findings by method, each list in order of rank. What no method looked for, or found, is None or empty."""

    shape: Shape | None
    output_statistic: OutputStatistic | None
    neighbours: list[Neighbour]
    """The neighbours in order of relation."""
    pruned: list[Pruned]
    lens: list[LensToken]
    """Promoted, then suppressed."""
    changed: list[TokenChange]
    """Said more, then said less."""
    related_words: list[DirectionWord]
    input_words: list[InputWord]
    others: Mapping[str, Sequence[Row] | Row | None]
    """The rows of other packages' methods, by method name; a single row if the method has one for each feature."""


@dataclass(frozen=True, slots=True)
class MethodRunRow:
    """One row of `method_runs`: a method was run on the feature, and how that ended."""

    harvest_id: int
    method: str
    settings_sha256: str
    status: str
    """ok, or why nothing was found."""
    error: str | None
    n_forwards: int
    """Sequences that the model read."""
    n_tokens: int
    created_at: datetime
    """UTC."""


def findings_from(found: Mapping[str, Any]) -> Findings:
    """Makes records of the rows in `store.findings_page`, whose keys are those of Findings (without `others`) and, for
    each method of another package, its name."""
    known = {field.name for field in fields(Findings)} - {"others"}
    shape, output = found["shape"], found["output_statistic"]
    pruned = [
        {**row, "counterfactuals": [record(Counterfactual, one) for one in row["counterfactuals"]]}
        for row in found["pruned"]
    ]
    return Findings(
        shape=None if shape is None else record(Shape, shape),
        output_statistic=None if output is None else record(OutputStatistic, output),
        neighbours=records(Neighbour, found["neighbours"]),
        pruned=records(Pruned, pruned),
        lens=records(LensToken, found["lens"]),
        changed=records(TokenChange, found["changed"]),
        related_words=records(DirectionWord, found["related_words"]),
        input_words=records(InputWord, found["input_words"]),
        others={name: rows for name, rows in found.items() if name not in known},
    )


def records(kind: type[Record], rows: Sequence[Row]) -> list[Record]:
    return [record(kind, row) for row in rows]


def record(kind: type[Record], row: Row) -> Record:
    """The record whose fields are the row's columns, in any order. Raises AutointerpError where they are not."""
    wanted = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if wanted != set(row):
        raise AutointerpError(f"a {kind.__name__} has the fields {sorted(wanted)}; the store gives {sorted(row)}")
    return kind(**row)
