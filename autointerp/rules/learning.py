"""Learns the rule of a feature from a sample of its tokens.

Tables are chosen one at a time. Each is fitted to what the tables before it leave unexplained, and weighted by how well
it does on documents that it was not fitted on (stagewise regression with cross-fitting). Its means are shrunken towards
no correction, that is towards the shorter context: sum / (count + k). Tokens count by the weights of the sample, so
that a rule is as good as possible on text as it comes.

A table of words may also be smoothed over near words: the sum and the count of a word then take in those of its
neighbours in the model's input embedding, each times its cosine to some power. What is stored is again a table of
words. It holds neighbours that the evidence lacks, since those of a word on which the feature fires get its weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.rules.near import NO_NEAR_WORDS, NearWords, Smoother
from autointerp.rules.patterns import TABLES, TOKEN_LOOKUP, Key, Rule, Table
from autointerp.rules.samples import Sample

MAX_TABLES = 8
MIN_GAIN = 0.003
"""Share of the variance that a further table must explain on documents it was not fitted on."""
SHRINKAGE = (1.0, 4.0)
"""Candidates for k."""
FOLDS = 10
MIN_WEIGHT = 0.1
"""Corrections smaller than this, on the 0..10 scale, are not stored."""
MAX_ROWS = 200
"""Rows kept of one table: those with the largest corrections."""
SMOOTHED: Key = ("folded",)
"""The table that may be smoothed over near words."""
POWERS = (1.0, 2.0)
"""Candidates for the power of the cosine."""
SPREAD_FROM = 100
"""The words with the largest corrections, this many, hand theirs on to neighbours that the evidence lacks."""


@dataclass(frozen=True, eq=False)
class _Column:
    """The keys of one candidate table over the sample."""

    of: Key
    values: list[list[str]]
    """Of each fact of the table, its value on every token."""
    first: NDArray[np.int64]
    """[keys]: the first token with each key."""
    ids: NDArray[np.int64]
    """The index of each token's key."""
    cells: NDArray[np.int64]
    """The key and the fold of each token, as one number."""
    folds: int
    counts: NDArray[np.float64]
    """[keys, folds]: the weight of each key's tokens."""
    smoother: Smoother | None = None

    def key(self, i: int) -> Key:
        at = self.first[i]
        return tuple(values[at] for values in self.values)

    @cached_property
    def n_elsewhere(self) -> NDArray[np.float64]:
        return np.maximum(self.elsewhere(self.counts), 0.0)

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[keys, folds]: the sum of `values` [tokens] over each key's tokens."""
        summed = _by_cell(self.cells, values, len(self.first), self.folds)
        return summed if self.smoother is None else self.smoother.spread(summed)

    def elsewhere(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """For each token, the sum of its key without the token's own fold."""
        found: NDArray[np.float64] = sums.sum(axis=1)[self.ids] - sums.ravel()[self.cells]
        return found


def _columns(
    sample: Sample, tables: Sequence[Key], fold: NDArray[np.int64], folds: int, near: NearWords
) -> Iterator[_Column]:
    size = len(sample.activations)
    values = {name: list(sample.values(name)) for name in {name for of in tables for name in of}}
    codes = {name: stats.numbered(of)[0] for name, of in values.items()}
    for of in tables:
        joint = codes[of[0]]
        for name in of[1:]:
            joint = joint * size + codes[name]
        _, first, ids = np.unique(joint, return_index=True, return_inverse=True)
        cells = ids * folds + fold
        counts = _by_cell(cells, sample.weights, len(first), folds)
        own = [values[name] for name in of]
        yield _Column(of, own, first, ids, cells, folds, counts)
        if of == SMOOTHED and near:
            for smoother in near.smoothers([own[0][i] for i in first.tolist()], POWERS):
                yield _Column(of, own, first, ids, cells, folds, smoother.spread(counts), smoother)


def _by_cell(cells: NDArray[np.int64], values: NDArray[np.float64], keys: int, folds: int) -> NDArray[np.float64]:
    """[keys, folds]: the sums of `values` over the tokens of each cell."""
    return np.bincount(cells, weights=values, minlength=keys * folds).astype(np.float64).reshape(keys, folds)


@dataclass(frozen=True)
class Learned:
    """A rule, and what it says of the tokens that it was learned from without having seen them."""

    rule: Rule
    steps: list[NDArray[np.float64]]
    """For each table of the rule, what it adds to each token of the sample, fitted without the token's fold (where all
    tokens are of one document, with it)."""


def learn(
    sample: Sample, tables: Sequence[Key] = TABLES, max_tables: int = MAX_TABLES, near: NearWords = NO_NEAR_WORDS
) -> Rule:
    """The rule that best predicts the sample's activations. It has no tables where nothing beats the mean."""
    return learned(sample, tables, max_tables, near).rule


def learned(
    sample: Sample, tables: Sequence[Key] = TABLES, max_tables: int = MAX_TABLES, near: NearWords = NO_NEAR_WORDS,
    truth: NDArray[np.float64] | None = None,
) -> Learned:  # fmt: skip
    """The rule of `learn`, with what its tables add to the sample. `truth` [tokens] is what it predicts, if that is not
    the activations but what something else leaves of them."""
    y, weights = sample.activations if truth is None else truth, sample.weights
    if y.size == 0 or float(y.max()) <= 0.0:
        return Learned(Rule(0.0), [])
    folds = min(FOLDS, int(sample.documents.max()) + 1)
    if folds < 2:
        rule = _without_crossfit(sample, tables, y)
        (table,) = rule.tables
        keys = zip(*(sample.values(name) for name in table.of), strict=True)
        return Learned(rule, [np.array([table.weights.get(key, 0.0) for key in keys])])
    fold = sample.documents % folds
    total, mean = float(weights.sum()), float(np.average(y, weights=weights))
    by_fold = np.bincount(fold, weights=weights * y, minlength=folds)
    n_fold = np.bincount(fold, weights=weights, minlength=folds)
    unseen = ((mean * total - by_fold) / np.maximum(total - n_fold, 1e-9))[fold]
    columns = list(_columns(sample, tables, fold, folds, near))
    variance = float(weights @ (y - mean) ** 2)
    chosen: list[Table] = []
    steps: list[NDArray[np.float64]] = []
    uses: Counter[_Column] = Counter()
    gains = dict.fromkeys(columns, np.inf)
    while len(chosen) < max_tables:
        best = _best_table(y - unseen, weights, gains)
        if best is None or best.gain < MIN_GAIN * variance:
            break
        unseen = unseen + best.step
        chosen.append(Table(best.column.of, _kept(best, near), best.gain / variance))
        steps.append(best.step)
        uses[best.column] += 1
        if uses[best.column] == 2:
            del gains[best.column]
    return Learned(Rule(round(mean, 4), chosen, weighted_correlation(y, np.maximum(unseen, 0.0), weights)), steps)


def weighted_correlation(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]) -> float | None:
    """The weighted correlation; None where one of the two is constant."""
    root = np.sqrt(weights)
    x, y = (root * (of - np.average(of, weights=weights)) for of in (x, y))
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 1e-12 else None


@dataclass(frozen=True)
class _Candidate:
    column: _Column
    gain: float
    step: NDArray[np.float64]
    """What the table adds to each token's prediction, fitted without that token's fold."""
    factor: float
    k: float
    sums: NDArray[np.float64]
    """[keys]: the sum of what is left unexplained, over all folds."""


def _best_table(
    residual: NDArray[np.float64], weights: NDArray[np.float64], gains: dict[_Column, float]
) -> _Candidate | None:
    """The column with the largest gain. `gains` has what each was worth when it was last tried, and is brought up to
    date. Other tables seldom make a column worth more, so columns that were worth less than the best one is now are
    not tried again."""
    best: _Candidate | None = None
    weighted = weights * residual
    for column in sorted(gains, key=lambda of: -gains[of]):
        if best is not None and gains[column] <= best.gain:
            break
        sums = column.sums(weighted)
        left = column.elsewhere(sums)
        gains[column] = 0.0
        for k in SHRINKAGE:
            step = left / (column.n_elsewhere + k)
            size, agreement = float(weights @ (step * step)), float(weighted @ step)
            if size <= 0.0 or agreement <= 0.0:
                continue
            factor = min(1.0, agreement / size)
            gain = 2.0 * factor * agreement - factor * factor * size
            gains[column] = max(gains[column], gain)
            if best is None or gain > best.gain:
                best = _Candidate(column, gain, factor * step, factor, k, sums.sum(axis=1))
    return best


def _without_crossfit(sample: Sample, tables: Sequence[Key], y: NDArray[np.float64]) -> Rule:
    """The rule where all evidence is from one document: shrunken means of the first table, without an estimate of the
    fit."""
    weights = sample.weights
    column = next(_columns(sample, tables[:1], np.zeros(y.size, dtype=np.int64), 1, NO_NEAR_WORDS))
    mean = float(np.average(y, weights=weights))
    sums = column.sums(weights * (y - mean))[:, 0]
    found = sums / (column.counts[:, 0] + SHRINKAGE[0])
    return Rule(
        round(mean, 4), [Table(tables[0], _largest({column.key(i): weight for i, weight in enumerate(found.tolist())}))]
    )


def _kept(best: _Candidate, near: NearWords) -> dict[Key, float]:
    column = best.column
    found = best.factor * best.sums / (column.counts.sum(axis=1) + best.k)
    strongest = np.argsort(-np.abs(found), kind="stable")[:MAX_ROWS].tolist()
    weights = {column.key(i): float(found[i]) for i in strongest}
    if column.smoother is not None:
        held = set(column.values[0])
        corrections = {word: weight for (word,), weight in list(weights.items())[:SPREAD_FROM]}
        weights |= {(word,): weight for word, weight in near.handed_on(corrections).items() if word not in held}
    return _largest(weights)


def _largest(weights: Mapping[Key, float]) -> dict[Key, float]:
    ordered = sorted(weights.items(), key=lambda item: -abs(item[1]))[:MAX_ROWS]
    return {key: round(weight, 3) for key, weight in ordered if abs(weight) >= MIN_WEIGHT}


def token_lookup(sample: Sample) -> Rule:
    """The baseline of Bills et al. (2023): the shrunken mean activation of each token, whatever stands around it."""
    y = sample.activations
    if y.size == 0 or float(y.max()) <= 0.0:
        return Rule(0.0)
    return _without_crossfit(sample, TOKEN_LOOKUP, y)
