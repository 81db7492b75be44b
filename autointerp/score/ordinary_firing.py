"""How often a feature fires in text as it comes: in how many known tiles of the corpus (see store/known_tiles.py).

Tiles of one document go together, which the interval allows for (clustered_shares.py). A text of another length than a
tile's is taken for as many tokens of a corpus in which the feature fires here and there: in
1 - (1 - share)^(length / a tile's) of them. Where it fires in bursts this is a little too low for shorter texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autointerp import stats
from autointerp.clustered_shares import share_of
from autointerp.records import source_of
from autointerp.score.scorer import Run


@dataclass(frozen=True)
class OrdinaryFiring:
    """One feature in the known tiles."""

    share: stats.Estimate
    """The share of the tiles in which it fires; n counts tiles."""
    tokens: float
    """Tokens of a tile, on average."""

    def in_texts_of(self, tokens: float) -> stats.Estimate:
        """The share of ordinary texts of so many tokens in which it fires."""
        s = self.share

        def longer(share: float | None) -> float | None:
            return None if share is None else 1 - (1 - share) ** (tokens / self.tokens)

        return stats.Estimate(longer(s.value), longer(s.low), longer(s.high), s.n)


class OrdinaryTiles:
    """The known tiles of the run's part, read when they are first needed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._read = False
        self._documents: list[str] = []
        self._tokens = 0.0

    def firing(self, feature: int) -> OrdinaryFiring | None:
        """How often the feature fires; None where the evidence was merged without known tiles."""
        job, part = self._run.job, self._run.part
        if not self._read:
            tiles = job.store.known_tiles(job.harvest_id, part)
            self._documents = [source_of(tile.document) for tile in tiles]
            self._tokens = sum(len(tile.tokens) for tile in tiles) / max(1, len(tiles))
            self._read = True
        if not self._documents or not self._tokens:
            return None
        found = job.store.firing_tiles(job.harvest_id, part, [feature])[feature]
        fires = np.zeros(len(self._documents))
        fires[found] = 1.0
        return OrdinaryFiring(share_of(fires, self._documents), self._tokens)
