"""Checks a rule against text as it comes: it costs nothing, so thousands of tiles are tried."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autointerp.ask.job import Job
from autointerp.records import Split
from autointerp.rules.patterns import Rule
from autointerp.score.natural import SilentTiles
from autointerp.score.ordinary_tiles import OrdinaryTiles


class SilentText:
    """The known tiles in which one feature is silent."""

    def __init__(self, known: OrdinaryTiles, is_silent: NDArray[np.bool_]) -> None:
        self._texts, self._is_silent = known.texts, is_silent
        self._documents: list[str] = known.sources[is_silent].tolist()

    def told(self, predicted: NDArray[np.float64]) -> SilentTiles:
        """What `predicted` [tokens of all known tiles] says of the silent ones."""
        silent = self._is_silent
        sizes, total, squares = self._texts.sums(predicted)
        peaks = self._texts.peaks(predicted)
        return SilentTiles(self._documents, sizes[silent], total[silent], squares[silent], peaks[silent])


class OrdinaryText:
    """The silent tiles on which rules are checked: the known tiles of one split, read once for all rules."""

    def __init__(self, job: Job, split: Split) -> None:
        self._known = OrdinaryTiles(job, split)
        self._last: tuple[int, SilentText] | None = None
        """The feature that was last asked about."""

    def read(self, features: Sequence[int]) -> None:
        """Reads in one query where these features fire, for `silent` to be asked about them next."""
        self._known.read(features)

    def silent(self, feature: int, rule: Rule) -> SilentTiles | None:
        """What `rule` predicts of the known tiles in which the feature is silent; None without known tiles."""
        if not self._known.tiles:
            return None
        if self._last is None or self._last[0] != feature:  # its label and the controls of that are asked about in turn
            self._last = feature, SilentText(self._known, ~self._known.fires(feature))
        return self._last[1].told(self._known.texts.predict(rule))
