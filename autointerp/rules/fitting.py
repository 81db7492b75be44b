"""How much each part of a rule counts, fitted to text: whoever proposes a clause, the data say what it is worth.

A prediction is base + gain * table + ... + strength * [clause holds] + ..., not below 0. Base, gains and strengths are
the weighted least squares over the tokens of a sample (see samples.py), none of them below 0. The start is the rule of
the tables alone, and every step makes the error smaller, so that the result predicts the sample at least as well.
Each strength is drawn towards 0 as by one more token on which the clause holds and the feature is silent, so that a
clause that holds on one token alone cannot claim much.

Where the feature is silent a prediction below 0 is as good as 0. So each round of fitting takes for the truth there
what the last round predicted, as far as that is below 0: a squared error over these tokens is nowhere less than the
error that counts, and equal to it where the last round ended (majorisation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autointerp.ask.scale import TOP

Floats = NDArray[np.float64]
CLAUSE_PRIOR = 1.0
"""Tokens, of weight 1, by which a strength is drawn towards 0."""
TABLE_PRIOR = 1e-3
"""The same for gains, towards 1: only so that tables which say the same have one solution."""
ROUNDS, SWEEPS = 60, 25
"""Rounds of majorisation, and sweeps of coordinate descent in each, at most."""
LEAST_SUPPORT = 1e-3
"""What a clause must be worth on other text to stay, as a difference of correlations."""
TOLERANCE = 1e-7
"""Fitting ends where no part changes by more than this share of the truth's size."""


@dataclass(frozen=True)
class Parts:
    """What the parts of a rule say of the tokens of a sample, and the truth about these."""

    base: float
    """That of the rule of the tables alone."""
    tables: Floats
    """[tokens, tables]: what each table adds."""
    clauses: NDArray[np.bool_]
    """[tokens, clauses]: where each clause holds."""
    truth: Floats
    """[tokens], 0..10."""
    weights: Floats
    """[tokens]: how many tokens of ordinary text each stands for, up to a factor."""

    @cached_property
    def merged(self) -> Parts:
        """The same with silent tokens of which all parts say the same as one token of their weights together."""
        silent = np.flatnonzero(self.truth == 0)
        if len(silent) < 2:
            return self
        rows = np.concatenate(
            [
                np.ascontiguousarray(self.tables[silent] + 0.0).view(np.uint8).reshape(len(silent), -1),
                np.packbits(self.clauses[silent], axis=1),
                np.zeros((len(silent), 1), dtype=np.uint8),  # a row of no bytes has no order
            ],
            axis=1,
        )
        keys = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1]))).ravel()
        _, first, ids = np.unique(keys, return_index=True, return_inverse=True)
        alone = np.flatnonzero(self.truth != 0)
        at = np.concatenate([alone, silent[first]])
        together = np.bincount(ids.ravel(), weights=self.weights[silent])
        weights = np.concatenate([self.weights[alone], together])
        return Parts(self.base, self.tables[at], self.clauses[at], self.truth[at], weights)

    @cached_property
    def columns(self) -> Floats:
        """[tokens, 1 + tables + clauses]"""
        return np.concatenate([np.ones((len(self.truth), 1)), self.tables, self.clauses.astype(np.float64)], axis=1)

    @cached_property
    def gram(self) -> Floats:
        found: Floats = self.columns.T @ (self.weights[:, None] * self.columns)
        return found

    def error(self, fit: Fit) -> float:
        """The weighted squared error of what the fit predicts."""
        missed = self.truth - fit.predict(self.tables, self.clauses)
        return float(self.weights @ (missed * missed))


@dataclass(frozen=True)
class Fit:
    """How much each part of a rule counts."""

    base: float
    gains: Floats
    """[tables]"""
    strengths: Floats
    """[clauses], 0..10; 0 for a clause that is of no use."""

    def predict(self, tables: Floats, clauses: NDArray[np.bool_]) -> Floats:
        """The predicted activation of each token, 0..10."""
        used = np.flatnonzero(self.strengths)
        total = self.base + tables @ self.gains + clauses[:, used] @ self.strengths[used]
        return np.clip(total, 0.0, TOP)

    @property
    def kept(self) -> list[int]:
        """The clauses that are of some use."""
        return [int(i) for i in np.flatnonzero(self.strengths)]


def tables_alone(parts: Parts) -> Fit:
    """The rule of the tables as it was learned."""
    return Fit(parts.base, np.ones(parts.tables.shape[1]), np.zeros(parts.clauses.shape[1]))


def fitted(parts: Parts, among: NDArray[np.bool_] | None = None) -> Fit:
    """The best fit of the tables and the clauses `among` [clauses] (None: all), with three decimals. Where its error,
    with predictions cut at 0 and 10, is no smaller than that of the tables alone, it is those."""
    alone, small = tables_alone(parts), parts.merged
    if not len(small.truth):
        return alone
    on = small.gram.diagonal() > 0
    if among is not None:
        on[1 + len(alone.gains) :] &= among
    base, gains, strengths = np.split(_descended(small, on, alone), [1, 1 + len(alone.gains)])
    fit = Fit(round(float(base[0]), 4), np.round(gains, 3), np.round(strengths, 3))
    return fit if small.error(fit) < small.error(alone) else alone


def _descended(parts: Parts, on: NDArray[np.bool_], alone: Fit) -> Floats:
    """The base, gains and strengths, from those of the tables alone on, of the parts that are `on`; the others stay."""
    start = np.concatenate([[alone.base], alone.gains, alone.strengths])
    n_tables, n_clauses = len(alone.gains), len(alone.strengths)
    prior = np.concatenate([[0.0], np.full(n_tables, TABLE_PRIOR), np.full(n_clauses, CLAUSE_PRIOR)])
    most = [np.inf] * (1 + n_tables) + [float(TOP)] * n_clauses
    x, truth, weights = parts.columns, parts.truth, parts.weights
    gram = parts.gram + np.diag(prior)
    pulled = prior * start  # gains towards 1, strengths towards 0
    places = np.flatnonzero(on).tolist()
    curvature = gram.diagonal().tolist()
    least = TOLERANCE * float(np.sqrt(weights @ (truth * truth)))
    sizes, predicted = start.copy(), x @ start
    for _ in range(ROUNDS):
        target = np.where(truth > 0, truth, np.minimum(predicted, 0.0))
        gradient = gram @ sizes - x.T @ (weights * target) - pulled
        moved = 0.0
        for _ in range(SWEEPS):
            largest = 0.0
            for j in places:
                new = min(max(sizes[j] - gradient[j] / curvature[j], 0.0), most[j])
                step = new - sizes[j]
                if step:
                    gradient += step * gram[:, j]
                    sizes[j] = new
                    largest = max(largest, abs(step) * curvature[j] ** 0.5)
            moved = max(moved, largest)
            if largest <= least:
                break
        predicted = x @ sizes
        if moved <= least:
            break
    return sizes


def supported(
    parts: Parts, value_of: Callable[[Fit], float | None], among: NDArray[np.bool_] | None = None
) -> Fit:  # fmt: skip
    """The fit without the clauses that other text does not support.

    `value_of` is what a fit is worth on that text; None where it is not known. Clauses (those `among` [clauses]; None:
    all) are left out one at a time, the one that predicts least first, and the others are fitted anew. A clause stays
    where the fit is worth more with it than without, by LEAST_SUPPORT.
    """
    fit = fitted(parts, among)
    value = worth(value_of(fit))
    holding = parts.merged.weights @ parts.merged.clauses
    used = fit.strengths > 0
    for clause in sorted(fit.kept, key=lambda j: (float(holding[j] * fit.strengths[j]), j)):
        if not used[clause]:
            continue
        used[clause] = False
        without = fitted(parts, used)
        found = worth(value_of(without))
        if found > value - LEAST_SUPPORT:
            fit, value = without, found
            used &= fit.strengths > 0
        else:
            used[clause] = True
    return fit


def worth(value: float | None) -> float:
    """A correlation that is not known is worth less than any."""
    return -1.0 if value is None else value
