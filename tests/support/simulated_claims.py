"""Labels whose claims are known by construction: which places of a feature, by their strength, they claim."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.score.holding import Claims

Floats = NDArray[np.float64]
_CELLS = 20_000
_NORMAL = np.sort(np.random.default_rng(0).normal(size=_CELLS))
GRID = (np.arange(4000) + 0.5) / 4000
SPREAD = 0.6


def activation(quantile: Floats | float) -> Floats:
    """Activations are log-logistic: many weak ones, a long tail of strong ones."""
    u = np.clip(np.asarray(quantile, dtype=np.float64), 1e-9, 1 - 1e-9)
    return np.asarray(20 * (u / (1 - u)) ** (SPREAD / 1.7))


@dataclass(frozen=True)
class Judged:
    """A label that claims the share `best` of the strongest places and `least` of the weakest; in between it rises
    around the quantile `middle`, the more sharply the larger `steep`."""

    middle: float
    steep: float
    best: float
    least: float
    alarms: float
    """Share of the silent tiles that it claims."""
    density: float

    @classmethod
    def drawn(cls, rng: np.random.Generator, density: float) -> Judged:
        return cls(
            rng.uniform(0.2, 0.9), rng.choice([12.0, 32.0, 120.0]), rng.uniform(0.7, 1.0), rng.uniform(0.0, 0.2),
            rng.uniform(0.02, 0.8) * density, density,
        )  # fmt: skip

    def chance(self, quantile: Floats) -> Floats:
        """The probability that a place is claimed."""
        rise = (1 + np.tanh(self.steep * (quantile - self.middle) / 2)) / 2
        return self.least + (self.best - self.least) * rise

    def truth(self, threshold: float) -> tuple[float, float]:
        """Precision and recall at a threshold."""
        claimed, reach = self.chance(GRID), activation(GRID) >= threshold
        hits = float((claimed * reach).mean())
        every = self.density * float(claimed.mean()) + (1 - self.density) * self.alarms
        return self.density * hits / every, hits / max(float(reach.mean()), 1e-9)

    def draw(self, rng: np.random.Generator, active: int, silent: int, per_document: int = 1) -> Claims:
        """A sample; the silent tiles' documents hold `per_document` of them each."""
        u = rng.random(active)
        peaks = activation(u)
        return Claims(
            peaks, 2 * peaks, rng.random(active) < self.chance(u), [f"d{i}" for i in range(active)],
            rng.random(silent) < self.alarms, [f"s{i // per_document}" for i in range(silent)], self.density,
        )  # fmt: skip

    def draw_clustered(
        self, rng: np.random.Generator, active: int, silent: int, alike: float, documents: int, of_silent: int = 300
    ) -> Claims:
        """A sample whose tiles are from so many documents, some long, most short. `alike`: which share of the variance
        of how strongly a tile fires, and of how readily it is claimed, is between documents."""
        of, silent_of = of_documents(rng, active, documents), of_documents(rng, silent, of_silent)
        u = clustered(rng, of, alike)
        peaks = activation(u)
        return Claims(
            peaks, 2 * peaks, clustered(rng, of, alike) < self.chance(u), [f"d{i}" for i in of],
            clustered(rng, silent_of, alike) < self.alarms, [f"s{i}" for i in silent_of], self.density,
        )  # fmt: skip


def of_documents(rng: np.random.Generator, tiles: int, documents: int) -> NDArray[np.int64]:
    """The document of each tile. Sizes vary as in real evidence: 60 tiles drawn from 30 documents are of 23 of them,
    and weigh as much as 13 where all tiles of a document are alike."""
    size = np.exp(rng.normal(0.0, 0.8, documents))
    return rng.choice(documents, tiles, p=size / size.sum())


def clustered(rng: np.random.Generator, of: NDArray[np.int64], alike: float) -> Floats:
    """A number for each tile, uniform over all of them; those of one document go together."""
    shared = rng.normal(size=int(of.max(initial=0)) + 1)[of]
    mixed = math.sqrt(alike) * shared + math.sqrt(1 - alike) * rng.normal(size=of.size)
    return np.asarray(np.searchsorted(_NORMAL, mixed) / _CELLS)


def sharp(quantile: float, density: float, alarms: float = 0.0) -> Judged:
    """A label that is right above the quantile and says nothing of weaker places."""
    return Judged(quantile, 1e6, 1.0, 0.0, alarms, density)
