"""What rules of one feature are worth on the select part: their natural correlation there (score/natural.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.ask.scale import scaled
from autointerp.explain.rule_texts import RuleTexts, StudiedFeature, TableColumns, holding
from autointerp.records import Prediction
from autointerp.rules.fitting import Fit
from autointerp.rules.language.conditions import Clause
from autointerp.rules.many_texts import ManyTexts
from autointerp.score.natural import SilentTiles, natural_result
from autointerp.score.score_rows import Answer


class SelectPart:
    """The sampled contexts of one feature in the select part, and the known tiles in which it is silent. In older
    evidence, which has no known tiles, the silent contexts of the random tier stand for the corpus."""

    def __init__(self, of: StudiedFeature, texts: RuleTexts) -> None:
        self._prevalence, self._has_tiles = of.prevalence, texts.has_select_tiles
        self._contexts = [
            c for c in of.select if c.kind == "sampled" or (not self._has_tiles and c.tier == "random")
        ]  # fmt: skip
        self._truths = [scaled(c.activations, of.evidence.max_activation) for c in self._contexts]
        self._own = ManyTexts.of(self._contexts)
        self._tiles = texts.select
        sizes = np.diff(self._tiles.starts)
        self._silent = np.flatnonzero(np.repeat(of.silent_in_select, sizes))
        self._sizes = sizes[of.silent_in_select]
        self._documents = texts.select_sources[of.silent_in_select].tolist()

    def value_of(self, clauses: Sequence[Clause], tables: TableColumns) -> Callable[[Fit], stats.Estimate]:
        """A function from fits of these clauses and tables to their natural correlations."""
        own = tables.on(self._own), holding(self._own, clauses)
        silent = tables.on(self._tiles)[self._silent], holding(self._tiles, clauses)[self._silent]
        starts = self._own.starts

        def value(fit: Fit) -> stats.Estimate:
            predicted = fit.predict(*own)
            answers = [
                Answer(c, Prediction(c.context_id, truth, predicted[a:b].tolist(), "ok"))
                for c, truth, a, b in zip(self._contexts, self._truths, starts[:-1], starts[1:], strict=True)
            ]
            active = [answer for answer in answers if answer.context.kind == "sampled"]
            tiles = self._silent_tiles(fit.predict(*silent)) if self._has_tiles else None
            if tiles is None:
                tiles = SilentTiles.of([answer for answer in answers if answer.context.tier == "random"])
            return natural_result(active, tiles, self._prevalence).estimate

        return value

    def _silent_tiles(self, predicted: NDArray[np.float64]) -> SilentTiles:
        """What was predicted of the silent tiles, from what was predicted of their tokens."""
        starts, filled = np.cumsum(self._sizes) - self._sizes, self._sizes > 0
        n = len(self._sizes)
        total, squares, peak = np.zeros(n), np.zeros(n), np.zeros(n)
        if filled.any():
            at = starts[filled]
            total[filled] = np.add.reduceat(predicted, at)
            squares[filled] = np.add.reduceat(predicted * predicted, at)
            peak[filled] = np.maximum.reduceat(predicted, at)
        return SilentTiles(self._documents, self._sizes.astype(np.float64), total, squares, peak)
