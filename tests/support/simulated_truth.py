"""Contexts whose truth is known by construction, drawn as often as one likes, and the share of intervals that hold
it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.means import SharedDocuments
from autointerp.prevalence import Tiles, natural_correlation
from autointerp.stats import Estimate

Floats = NDArray[np.float64]
TOKENS = 32


def coverage(once: Callable[[], tuple[float, Estimate]], times: int) -> float:
    """The share of the published intervals that hold the truth; `once` gives the truth and an estimate of it. NaN where
    fewer than a tenth of the estimates have an interval."""
    held = published = 0
    for _ in range(times):
        true, found = once()
        if found.low is not None and found.high is not None:
            published += 1
            held += found.low <= true <= found.high
    return held / published if published >= times / 10 else math.nan


@dataclass(frozen=True)
class Label:
    """How well a label predicts a feature."""

    recall: float
    """Share of active tokens that it predicts."""
    alarms: float
    """Share of silent tokens on which it predicts activity."""
    noise: float
    """Standard deviation of the logarithm of what it predicts."""
    of_documents: float = 0.0
    """Standard deviation over documents of the logit of recall."""


GOOD = Label(0.95, 0.001, 0.15)
FAIR = Label(0.8, 0.004, 0.25)
POOR = Label(0.4, 0.01, 0.5)
UNEVEN = Label(0.7, 0.004, 0.3, of_documents=2.0)
LABELS = {"good": GOOD, "fair": FAIR, "poor": POOR, "uneven": UNEVEN}


class Population:
    """Contexts of TOKENS tokens, each of a document of its own: two thirds active, one third silent."""

    def __init__(self, label: Label, seed: int = 0, size: int = 6000) -> None:
        rng = np.random.default_rng(seed)
        shift = rng.normal(0.0, label.of_documents, size)
        x = np.zeros((size, TOKENS))
        active = np.arange(size) < 2 * size // 3
        count, height = 1 + rng.poisson(0.7, size), 3 * np.exp(rng.normal(0.0, 0.6, size))
        for k in range(4):
            rows = np.flatnonzero(active & (count > k))
            x[rows, rng.integers(0, TOKENS, rows.size)] = height[rows] * np.exp(rng.normal(0.0, 0.3, rows.size))
        x = np.minimum(x, 10.0)
        odds = label.recall / (1 - label.recall) * np.exp(shift)
        hit = rng.random(x.shape) < np.where(x > 0, (odds / (1 + odds))[:, None], label.alarms)
        self.truth, self.predicted = x, hit * np.minimum(6 * np.exp(rng.normal(0.0, label.noise, x.shape)), 10.0)
        self._active, self._silent, self._rng = np.flatnonzero(active), np.flatnonzero(~active), rng

    @property
    def correlation(self) -> float:
        return float(np.corrcoef(self.truth.ravel(), self.predicted.ravel())[0, 1])

    @property
    def r_squared(self) -> float:
        """R squared of the predictions as they are."""
        left = ((self.truth - self.predicted) ** 2).sum()
        return float(1 - left / ((self.truth - self.truth.mean()) ** 2).sum())

    def draw(self, documents: int, per_document: int = 1) -> tuple[Floats, Floats, list[int]]:
        """(truth, prediction, document) of contexts. With several of a document, they are the same context anew: as
        much alike as contexts of one document can be."""
        n = 2 * documents // 3
        rows = np.concatenate([self._rng.choice(self._active, n), self._rng.choice(self._silent, documents - n)])
        rows = np.repeat(rows, per_document)
        return self.truth[rows], self.predicted[rows], np.repeat(np.arange(documents), per_document).tolist()


def crossed(
    rng: np.random.Generator, features: int, documents: int, of_documents: float
) -> tuple[list[float], SharedDocuments]:
    """Values of features, each a mean over 15 documents (mean 0), and how documents move them."""
    own, shared = rng.normal(0.0, 0.3, features), rng.normal(0.0, of_documents, documents)
    of_feature = np.argsort(rng.random((features, documents)), axis=1)[:, :15]
    x = shared[of_feature] + rng.normal(0.0, 1.0, of_feature.shape)
    left_out = (15 * x.mean(axis=1, keepdims=True) - x) / 14
    moved = math.sqrt(14 / 15) * (left_out.mean(axis=1, keepdims=True) - left_out)
    totals = np.bincount(of_feature.ravel(), moved.ravel(), documents)
    sums = SharedDocuments(
        features, documents, float((totals**2).sum()), float((totals**4).sum()), float((moved**2).sum()), documents
    )
    return (own + x.mean(axis=1)).tolist(), sums


class Corpus:
    """Every tile of a corpus: a feature that fires in some of them, in documents that differ, and a label that predicts
    it less well in some documents, with false alarms on silent tokens."""

    T = 8
    """Tokens of a tile."""

    def __init__(
        self, rng: np.random.Generator, density: float, n_documents: int = 400, per_document: int = 10
    ) -> None:
        n = n_documents * per_document
        self.document = np.repeat(np.arange(n_documents), per_document)
        self.active = rng.random(n) < density * np.repeat(rng.gamma(2, 0.5, n_documents), per_document)
        self.truth = np.zeros((n, self.T))
        self.truth[self.active, 3] = rng.gamma(2, 2, self.active.sum())
        quality = np.repeat(rng.uniform(0.3, 1.0, n_documents), per_document)
        alarms = rng.random((n, self.T)) < 0.004
        self.predicted = self.truth * quality[:, None] + alarms * rng.gamma(2, 2, (n, self.T))
        self._fires, self._silent = np.flatnonzero(self.active), np.flatnonzero(~self.active)
        self._every = Tiles.of(list(self.truth), list(self.predicted), self.document.tolist())

    @property
    def correlation(self) -> float:
        """The correlation over all tokens."""
        return float(np.corrcoef(self.truth.ravel(), self.predicted.ravel())[0, 1])

    def mixture(self, rng: np.random.Generator, n_active: int, n_silent: int) -> float:
        """The correlation over so many tiles of either kind, each counted once."""
        rows = np.concatenate([rng.choice(self._fires, n_active, False), rng.choice(self._silent, n_silent, False)])
        return float(np.corrcoef(self.truth[rows].ravel(), self.predicted[rows].ravel())[0, 1])

    def estimate(self, rng: np.random.Generator, n_active: int, n_silent: int) -> Estimate:
        """The natural correlation from a sample of so many tiles of either kind."""
        active, silent = (
            Tiles(self.document[rows].tolist(), self._every.sums[rows])
            for rows in (rng.choice(self._fires, n_active, False), rng.choice(self._silent, n_silent, False))
        )
        return natural_correlation(active, silent, self._fires.size, self._silent.size)
