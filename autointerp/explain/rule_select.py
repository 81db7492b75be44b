"""What rules of one feature are worth on the select part: their natural correlation there (score/natural.py).

Rules are chosen by it, never by the report part, so that what is reported of a label is not what it was chosen by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.ask.job import Job
from autointerp.ask.scale import scaled
from autointerp.records import Context, Prediction
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule
from autointerp.score.natural import Prevalence, SilentTiles, is_ordinary, natural_result
from autointerp.score.ordinary_text import SilentText
from autointerp.score.ordinary_tiles import OrdinaryTiles
from autointerp.score.prevalences import prevalences
from autointerp.score.score_rows import Answer


@dataclass(frozen=True)
class SelectText:
    """What is read of one feature in the select part."""

    contexts: list[Context]
    """Those that stand for text as it comes."""
    prevalence: Prevalence
    is_silent: NDArray[np.bool_]
    """[known tiles]: in which of them it is silent."""


class SelectTexts:
    """Reads the select part of one harvest."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.tiles = OrdinaryTiles(job, "select")

    @property
    def is_counted(self) -> bool:
        """Whether the harvest counted the tiles that a natural correlation is over."""
        return self._job.store.n_tiles(self._job.harvest_id, "select") is not None

    def read(self, features: Sequence[int]) -> list[SelectText]:
        """What is needed of these features, read at once."""
        job = self._job
        kinds: dict[str, int | None] = {"sampled": None}
        if not self.tiles.tiles:  # older evidence: the silent contexts of the random tier stand for the corpus
            kinds["negative"] = None
        contexts = job.store.contexts_of(job.dictionary_id, job.harvest_id, features, "select", kinds)
        firing = prevalences(job, "select", features)
        self.tiles.read(features)
        return [
            SelectText([c for c in contexts[f] if is_ordinary(c)], firing[f], ~self.tiles.fires(f)) for f in features
        ]


class SelectPart:
    """One feature's select part, for rules to be tried on: on its own contexts, and on the known tiles."""

    def __init__(self, of: SelectText, max_activation: float, tiles: OrdinaryTiles) -> None:
        self._of = of
        self._truths = [scaled(c.activations, max_activation) for c in of.contexts]
        self._silent = SilentText(tiles, of.is_silent) if tiles.tiles else None
        self.own, self.tiles = ManyTexts.of(of.contexts), tiles.texts

    def natural_of(self, rule: Rule) -> stats.Estimate:
        return self.natural(self.own.predict(rule), self.tiles.predict(rule))

    def natural(self, own: NDArray[np.float64], tiles: NDArray[np.float64]) -> stats.Estimate:
        """The natural correlation, of what is predicted of the tokens of `self.own` and of `self.tiles`."""
        starts = self.own.starts
        answers = [
            Answer(c, Prediction(c.context_id, truth, own[a:b].tolist(), "ok"))
            for c, truth, a, b in zip(self._of.contexts, self._truths, starts[:-1], starts[1:], strict=True)
        ]
        active = [answer for answer in answers if answer.context.kind == "sampled"]
        if self._silent is not None:
            silent = self._silent.told(tiles)
        else:
            silent = SilentTiles.of([answer for answer in answers if answer.context.tier == "random"])
        return natural_result(active, silent, self._of.prevalence).estimate
