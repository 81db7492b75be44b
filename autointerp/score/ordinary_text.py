"""Checks a rule against text as it comes: it costs nothing, so thousands of tiles are tried."""

from __future__ import annotations

import numpy as np

from autointerp.records import Split, source_of
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule
from autointerp.score.natural import SilentTiles
from autointerp.score.scorer import Run
from autointerp.store.known_tiles import KnownTile


class OrdinaryText:
    """The silent tiles on which rules are checked: the known tiles of one split, read once for all rules."""

    def __init__(self, run: Run, split: Split) -> None:
        self._job, self._split = run.job, split
        self._tiles: list[KnownTile] = []
        self._texts: ManyTexts | None = None

    def silent(self, feature: int, rule: Rule) -> SilentTiles | None:
        """What `rule` predicts of the known tiles in which the feature is silent; None without known tiles."""
        job, part = self._job, self._split
        if self._texts is None:
            self._tiles = job.store.known_tiles(job.harvest_id, part)
            self._texts = ManyTexts([tile.tokens for tile in self._tiles])
        if not self._tiles:
            return None
        predicted = self._texts.predict(rule)
        silent = np.ones(len(self._tiles), dtype=np.bool_)
        silent[job.store.firing_tiles(job.harvest_id, part, [feature])[feature]] = False
        chosen = np.flatnonzero(silent)
        sizes, total, squares = self._texts.sums(predicted)
        return SilentTiles(
            [source_of(self._tiles[i].document) for i in chosen], sizes[silent], total[silent], squares[silent],
            self._texts.peaks(predicted)[silent],
        )  # fmt: skip
