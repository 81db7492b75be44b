"""The known tiles of the corpus (see store/known_tiles.py), as scorers need them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autointerp.ask.job import Job
from autointerp.records import Split, source_of
from autointerp.rules.many_texts import ManyTexts
from autointerp.store.known_tiles import KnownTile


class OrdinaryTiles:
    """The known tiles of one split, read when they are first needed; none where the evidence was merged without."""

    def __init__(self, job: Job, split: Split) -> None:
        self._job, self._split = job, split
        self._firing: dict[int, NDArray[np.int64]] = {}
        """Of the features that were last read together."""

    @cached_property
    def tiles(self) -> list[KnownTile]:
        return self._job.store.known_tiles(self._job.harvest_id, self._split)

    @cached_property
    def texts(self) -> ManyTexts:
        """Their text, for rules to be applied to."""
        return ManyTexts.of(self.tiles)

    @cached_property
    def sources(self) -> NDArray[np.object_]:
        """What each tile's document was cut from."""
        return np.array([source_of(tile.document) for tile in self.tiles], dtype=np.object_)

    def read(self, features: Sequence[int]) -> None:
        """Reads in one query where these features fire, for `fires` to be asked about them next."""
        self._firing = self._job.store.firing_tiles(self._job.harvest_id, self._split, features)

    def fires(self, feature: int) -> NDArray[np.bool_]:
        """In which of them the feature fires."""
        firing = self._firing  # one dictionary at a time: another thread may read the next features
        if feature not in firing:
            firing = self._job.store.firing_tiles(self._job.harvest_id, self._split, [feature])
        found = np.zeros(len(self.tiles), dtype=np.bool_)
        found[firing[feature]] = True
        return found
