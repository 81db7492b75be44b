"""How often a feature fires in text as it comes: in how many known tiles of the corpus (see store/known_tiles.py).

Tiles of one document go together, which the interval allows for (clustered_shares.py). Of texts of another length than
a tile's the feature is taken to fire in 1 - (1 - share)^(length / a tile's), which is right where it fires here and
there. Where it fires in bursts this is a little too low for shorter texts.
"""

from __future__ import annotations

from dataclasses import dataclass

from autointerp import stats
from autointerp.clustered_shares import share_of
from autointerp.score.ordinary_tiles import OrdinaryTiles


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


def firing_of(feature: int, known: OrdinaryTiles) -> OrdinaryFiring | None:
    """How often the feature fires; None where the evidence was merged without known tiles."""
    tokens = sum(len(tile.tokens) for tile in known.tiles)
    if not tokens:
        return None
    return OrdinaryFiring(share_of(known.fires(feature), known.sources.tolist()), tokens / len(known.tiles))
