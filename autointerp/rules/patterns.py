"""A rule that predicts where a feature fires, learned from its evidence without an LLM.

The rule is a short sum of tables: predicted activation = base + table_1[facts] + table_2[facts] + ..., not below 0.
Each table maps a few facts of a token (itself, the token before, the first word of its line, ... see token_facts.py)
to a number, so a rule is data: it is stored as JSON in `Explanation.rule`, and anyone can check it against any text.
With one table of tokens it is the token-lookup baseline of Bills et al. (2023); with tables of preceding tokens it does
what Neuron-to-Graph (Foote et al. 2023) does. sentences.py says a rule in English.

Tables are chosen one at a time. Each is fitted to what the tables before it leave unexplained, and weighted by how well
it does on documents that it was not fitted on (stagewise regression with cross-fitting). Its means are shrunken towards
no correction, that is towards the shorter context: sum / (count + k). Negatives count as zeros.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from operator import add, itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.ask.scale import scaled
from autointerp.records import Context, FeatureEvidence
from autointerp.rules.token_facts import Facts, facts_of

TABLES: tuple[tuple[str, ...], ...] = (
    ("token",),
    ("folded",),
    ("token", "before"),
    ("token", "before", "before2"),
    ("before",),
    ("kind", "before"),
    ("before2",),
    ("kind", "line"),
    ("kind", "indent"),
    ("kind",),
    ("kind", "before_kind"),
    ("kind", "before_kind", "before2_kind"),
    ("kind", "bracket"),
    ("word",),
    ("kind", "last_word"),
    ("kind", "quoted"),
    ("kind", "mark"),
)
"""Tables a `patterns` rule may use."""
TOKEN_LOOKUP: tuple[tuple[str, ...], ...] = (("token",),)
MAX_TABLES = 8
MIN_GAIN = 0.003
"""Share of the variance that a further table must explain on documents it was not fitted on."""
SHRINKAGE = (1.0, 4.0)
"""Candidates for k."""
FOLDS = 10
MIN_WEIGHT = 0.1
"""Corrections smaller than this, on the 0..10 scale, are not stored."""
MAX_ROWS = 150
"""Rows kept of one table: those with the largest corrections."""
RULE_VERSION = 1

Key = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Adds `weights[the values of the facts named in `of`]` to the prediction, or nothing where that key is missing."""

    of: tuple[str, ...]
    weights: dict[Key, float]
    gain: float = 0.0
    """Share of the variance that it explains beyond the tables before it, on documents it was not fitted on."""


@dataclass(frozen=True)
class Rule:
    """Predicts a feature's activation on each token of a text, as 0..10 of its maximum on the explain split."""

    base: float
    tables: list[Table] = field(default_factory=list)
    fit: float | None = None
    """Correlation on the documents of the evidence, each predicted by tables fitted without it. None: undefined."""

    def predict(self, tokens: Sequence[str]) -> list[float]:
        """One number, 0..10, per token."""
        return self.predict_from(facts_of(tokens))

    def predict_from(self, facts: Sequence[Facts]) -> list[float]:
        """`predict` from the facts of the tokens, which several rules can share."""
        totals = [self.base] * len(facts)
        for table in self.tables:
            key_of = itemgetter(*(Facts._fields.index(name) for name in table.of))
            weights: dict[Any, float] = table.weights
            if len(table.of) == 1:  # of one place itemgetter gives the value, of several a tuple
                weights = {key: weight for (key,), weight in weights.items()}
            added = map(weights.get, map(key_of, facts), repeat(0.0))
            totals = list(map(add, totals, added))
        clipped: list[float] = np.clip(np.array(totals), 0.0, 10.0).tolist()
        return clipped

    def to_json(self) -> str:
        tables = [
            {"of": list(t.of), "gain": round(t.gain, 4), "rows": [[*key, weight] for key, weight in t.weights.items()]}
            for t in self.tables
        ]
        fit = None if self.fit is None else round(self.fit, 4)
        return json.dumps(
            {"version": RULE_VERSION, "base": self.base, "fit": fit, "tables": tables},
            ensure_ascii=False,
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Rule:
        """Raises ValueError on anything that `to_json` does not write."""
        try:
            data = json.loads(text)
            if data["version"] != RULE_VERSION:
                raise ValueError(f"rule version {data['version']}, this program reads {RULE_VERSION}")
            tables = []
            for t in data["tables"]:
                of = tuple(t["of"])
                unknown = set(of) - set(Facts._fields)
                if not of or unknown or any(len(row) != len(of) + 1 for row in t["rows"]):
                    raise ValueError(f"bad table over {of}")
                tables.append(Table(of, {tuple(row[:-1]): float(row[-1]) for row in t["rows"]}, float(t["gain"])))
            return cls(float(data["base"]), tables, data["fit"])
        except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
            raise ValueError(f"not a stored rule: {error!r}") from None


@dataclass(frozen=True)
class Sample:
    """The evidence as one long list of tokens. What stands around them is read when it is first asked for:
    `token_lookup` asks for nothing of it."""

    contexts: list[list[str]]
    """The tokens of each context. All that follows has one entry per token."""
    activations: NDArray[np.float64]
    """0..10."""
    documents: NDArray[np.int64]
    """Index of the document of each token."""

    @cached_property
    def facts(self) -> list[Facts]:
        return [fact for tokens in self.contexts for fact in facts_of(tokens)]

    @cached_property
    def following(self) -> list[str]:
        """The token after each one; '' at the end of a context."""
        return [token for tokens in self.contexts if tokens for token in (*tokens[1:], "")]

    @cached_property
    def words(self) -> list[str]:
        """The whole word that each token is part of, as far as the context shows it; '' outside of words."""
        return [word for tokens in self.contexts for word in whole_words(tokens)]

    def values(self, fact: str) -> Iterator[str]:
        """One of the facts, of every token."""
        if fact == "token":
            return (token for tokens in self.contexts for token in tokens)
        return map(itemgetter(Facts._fields.index(fact)), self.facts)


def sample_of(evidence: FeatureEvidence) -> Sample:
    """The tokens of all contexts of the evidence, active and silent."""
    contexts = _distinct([*evidence.top, *evidence.sampled, *evidence.negatives])
    activations: list[float] = []
    documents: list[int] = []
    index: dict[str, int] = {}
    for context in contexts:
        activations += scaled(context.activations, evidence.max_activation)
        documents += [index.setdefault(context.document, len(index))] * len(context.tokens)
    return Sample([c.tokens for c in contexts], np.array(activations), np.array(documents, dtype=np.int64))


def _distinct(contexts: Sequence[Context]) -> list[Context]:
    """The contexts, each once: a tile may be both a top and a sampled context."""
    seen: set[tuple[str, int, str]] = set()
    out = []
    for context in contexts:
        key = (context.document, context.position, context.text)
        if key not in seen:
            seen.add(key)
            out.append(context)
    return out


def whole_words(tokens: Sequence[str]) -> list[str]:
    """For each token, the word of the joined text that its first word character belongs to."""
    starts: list[int] = []
    at = 0
    for token in tokens:
        starts.append(at)
        at += len(token)
    text = "".join(tokens)
    out = []
    for start, token in zip(starts, tokens, strict=True):
        offset = next((i for i, c in enumerate(token) if c.isalnum() or c == "_"), None)
        if offset is None:
            out.append("")
            continue
        left = right = start + offset
        while left > 0 and (text[left - 1].isalnum() or text[left - 1] == "_"):
            left -= 1
        while right < len(text) and (text[right].isalnum() or text[right] == "_"):
            right += 1
        out.append(text[left:right])
    return out


@dataclass(frozen=True)
class _Column:
    """The keys of one candidate table over the sample."""

    parts: list[tuple[list[str], NDArray[np.int64]]]
    """For each fact of the table: its different values, and the index of the value that each key has."""
    ids: NDArray[np.int64]
    cells: NDArray[np.int64]
    """The key and the fold of each token, as one number."""
    counts: NDArray[np.float64]
    """How often each key occurs."""
    elsewhere: NDArray[np.float64]
    """For each token, how often its key occurs in other folds."""

    def key(self, i: int) -> Key:
        return tuple(values[codes[i]] for values, codes in self.parts)


def _columns(sample: Sample, tables: Sequence[Key], fold: NDArray[np.int64], folds: int) -> list[_Column]:
    codes: dict[str, NDArray[np.int64]] = {}
    values: dict[str, list[str]] = {}
    for name in {name for of in tables for name in of}:
        codes[name], index = stats.numbered(sample.values(name))
        values[name] = list(index)
    out = []
    for of in tables:
        joint = codes[of[0]].copy()
        for name in of[1:]:
            joint = joint * len(values[name]) + codes[name]
        _, first, ids = np.unique(joint, return_index=True, return_inverse=True)
        cells = ids * folds + fold
        by_cell = np.bincount(cells, minlength=first.size * folds).astype(np.float64)
        counts = by_cell.reshape(-1, folds).sum(axis=1)
        parts = [(values[name], codes[name][first]) for name in of]
        out.append(_Column(parts, ids, cells, counts, counts[ids] - by_cell[cells]))
    return out


def learn(sample: Sample, tables: Sequence[Key] = TABLES, max_tables: int = MAX_TABLES) -> Rule:
    """The rule that best predicts the sample's activations. It has no tables where nothing beats the mean."""
    y = sample.activations
    if y.size == 0 or float(y.max()) <= 0.0:
        return Rule(0.0)
    folds = min(FOLDS, int(sample.documents.max()) + 1)
    if folds < 2:
        return _without_crossfit(sample, tables)
    fold = sample.documents % folds
    by_fold, n_fold = np.bincount(fold, weights=y, minlength=folds), np.bincount(fold, minlength=folds)
    unseen = ((y.sum() - by_fold) / np.maximum(y.size - n_fold, 1))[fold]
    columns = _columns(sample, tables, fold, folds)
    variance = float(((y - y.mean()) ** 2).sum())
    chosen: list[Table] = []
    uses: Counter[int] = Counter()
    while len(chosen) < max_tables:
        best = _best_table(y - unseen, columns, folds, [i for i in range(len(columns)) if uses[i] < 2])
        if best is None or best.gain < MIN_GAIN * variance:
            break
        uses[best.index] += 1
        unseen = unseen + best.step
        column = columns[best.index]
        chosen.append(Table(tables[best.index], _kept(column, best.weights), best.gain / variance))
    return Rule(round(float(y.mean()), 4), chosen, stats.pearson(y, np.maximum(unseen, 0.0)))


@dataclass(frozen=True)
class _Candidate:
    index: int
    gain: float
    step: NDArray[np.float64]
    """What the table adds to each token's prediction, fitted without that token's fold."""
    weights: NDArray[np.float64]


def _best_table(
    residual: NDArray[np.float64], columns: Sequence[_Column], folds: int, allowed: Sequence[int]
) -> _Candidate | None:
    best: _Candidate | None = None
    for index in allowed:
        column = columns[index]
        cells = np.bincount(column.cells, weights=residual, minlength=column.counts.size * folds)
        totals = cells.reshape(-1, folds).sum(axis=1)
        elsewhere = totals[column.ids] - cells[column.cells]
        for k in SHRINKAGE:
            step = elsewhere / (column.elsewhere + k)
            size, agreement = float(step @ step), float(residual @ step)
            if size <= 0.0 or agreement <= 0.0:
                continue
            weight = min(1.0, agreement / size)
            gain = 2.0 * weight * agreement - weight * weight * size
            if best is None or gain > best.gain:
                best = _Candidate(index, gain, weight * step, weight * totals / (column.counts + k))
    return best


def _without_crossfit(sample: Sample, tables: Sequence[Key]) -> Rule:
    """The rule where all evidence is from one document: shrunken means of the first table, without an estimate of the
    fit."""
    y = sample.activations
    column = _columns(sample, tables[:1], np.zeros(y.size, dtype=np.int64), 1)[0]
    sums = np.bincount(column.ids, weights=y - y.mean(), minlength=column.counts.size)
    weights = sums / (column.counts + SHRINKAGE[0])
    return Rule(round(float(y.mean()), 4), [Table(tables[0], _kept(column, weights))])


def _kept(column: _Column, weights: NDArray[np.float64]) -> dict[Key, float]:
    order = np.argsort(-np.abs(weights), kind="stable")[:MAX_ROWS]
    return {column.key(int(i)): round(float(weights[i]), 3) for i in order if abs(weights[i]) >= MIN_WEIGHT}


def token_lookup(sample: Sample) -> Rule:
    """The baseline of Bills et al. (2023): the shrunken mean activation of each token, whatever stands around it."""
    y = sample.activations
    if y.size == 0 or float(y.max()) <= 0.0:
        return Rule(0.0)
    return _without_crossfit(sample, TOKEN_LOOKUP)
