"""In how many tiles of a split features fire, and in how many they are silent, as the harvest counted them."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.ask.job import Job
from autointerp.records import Split
from autointerp.score.natural import Prevalence


def prevalences(job: Job, split: Split, features: Sequence[int]) -> dict[int, Prevalence]:
    """That of each feature; none where the harvest did not count its tiles."""
    n_tiles = job.store.n_tiles(job.harvest_id, split)
    if n_tiles is None:
        return {}
    firing = job.store.active_tiles(job.dictionary_id, job.harvest_id, split, features)
    return {feature: Prevalence(n, max(0.0, n_tiles - n)) for feature, n in firing.items()}
