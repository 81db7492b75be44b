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
        self._sources = np.zeros(0, dtype=np.object_)
        """The document of each known tile, or what it was cut from."""
        self._feature: int | None = None
        self._is_silent = np.zeros(0, dtype=np.bool_)
        """Of each known tile, for the feature that was last asked about."""
        self._documents: list[str] = []
        """Of the silent ones."""

    def silent(self, feature: int, rule: Rule) -> SilentTiles | None:
        """What `rule` predicts of the known tiles in which the feature is silent; None without known tiles."""
        job, part = self._job, self._split
        if self._texts is None:
            self._tiles = job.store.known_tiles(job.harvest_id, part)
            self._texts = ManyTexts([tile.tokens for tile in self._tiles])
            self._sources = np.array([source_of(tile.document) for tile in self._tiles], dtype=np.object_)
        if not self._tiles:
            return None
        if feature != self._feature:  # its label and the controls of that are asked about in turn
            self._is_silent = np.ones(len(self._tiles), dtype=np.bool_)
            self._is_silent[job.store.firing_tiles(job.harvest_id, part, [feature])[feature]] = False
            self._documents = self._sources[self._is_silent].tolist()
            self._feature = feature
        predicted, silent = self._texts.predict(rule), self._is_silent
        sizes, total, squares = self._texts.sums(predicted)
        return SilentTiles(
            self._documents, sizes[silent], total[silent], squares[silent], self._texts.peaks(predicted)[silent]
        )
