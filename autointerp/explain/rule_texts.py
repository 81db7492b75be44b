"""The texts that rules are fitted to and chosen by: those of all features, read once for a run, and those of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autointerp.ask.job import Job
from autointerp.records import Context, FeatureEvidence
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.reference import Reference
from autointerp.score.natural import Prevalence
from autointerp.score.ordinary_tiles import OrdinaryTiles
from autointerp.score.prevalences import prevalences


@dataclass(frozen=True)
class StudiedFeature:
    """What is read of one feature: its evidence, of the explain part, and its text of the select part."""

    evidence: FeatureEvidence
    select: list[Context]
    prevalence: Prevalence
    """In the select part."""
    silent_in_select: NDArray[np.bool_]
    """In which of the known tiles of the select part it is silent, [tiles]."""


class RuleTexts:
    """The known tiles of the explain part and of the select part."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.reference = Reference(job)
        self._select = OrdinaryTiles(job, "select")

    def read(self, evidence: Sequence[FeatureEvidence]) -> list[StudiedFeature]:
        """Reads what is needed of some features at once."""
        job, features = self._job, [one.feature for one in evidence]
        contexts = job.store.contexts_of(
            job.dictionary_id, job.harvest_id, features, "select", {"sampled": None, "negative": None}
        )
        firing = prevalences(job, "select", features)
        self._select.read(features)
        return [
            StudiedFeature(one, contexts[one.feature], firing[one.feature], ~self._select.fires(one.feature))
            for one in evidence
        ]

    @cached_property
    def explain(self) -> ManyTexts:
        tiles = self.reference.tiles
        return ManyTexts([tile.tokens for tile in tiles], [tile.begins for tile in tiles])

    @cached_property
    def select(self) -> ManyTexts:
        tiles = self._select.tiles
        return ManyTexts([tile.tokens for tile in tiles], [tile.begins for tile in tiles])

    @property
    def select_sources(self) -> NDArray[np.object_]:
        """What the document of each tile of the select part was cut from."""
        return self._select.sources

    @property
    def has_select_tiles(self) -> bool:
        return bool(self._select.tiles)
