"""Checks a rule against text as it comes: it costs nothing, so thousands of tiles are tried."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autointerp.ask.job import Job
from autointerp.records import Split
from autointerp.rules.patterns import Rule
from autointerp.score.natural import SilentTiles
from autointerp.score.ordinary_tiles import OrdinaryTiles


class OrdinaryText:
    """The silent tiles on which rules are checked: the known tiles of one split, read once for all rules."""

    def __init__(self, job: Job, split: Split) -> None:
        self._known = OrdinaryTiles(job, split)
        self._feature: int | None = None
        self._is_silent = np.zeros(0, dtype=np.bool_)
        """Of each known tile, for the feature that was last asked about."""
        self._documents: list[str] = []
        """Of the silent ones."""

    def read(self, features: Sequence[int]) -> None:
        """Reads in one query where these features fire, for `silent` to be asked about them next."""
        self._known.read(features)

    def silent(self, feature: int, rule: Rule) -> SilentTiles | None:
        """What `rule` predicts of the known tiles in which the feature is silent; None without known tiles."""
        if not self._known.tiles:
            return None
        if feature != self._feature:  # its label and the controls of that are asked about in turn
            self._is_silent = ~self._known.fires(feature)
            self._documents = self._known.sources[self._is_silent].tolist()
            self._feature = feature
        texts, silent = self._known.texts, self._is_silent
        predicted = texts.predict(rule)
        sizes, total, squares = texts.sums(predicted)
        return SilentTiles(
            self._documents, sizes[silent], total[silent], squares[silent], texts.peaks(predicted)[silent]
        )
