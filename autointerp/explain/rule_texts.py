"""The texts that rules are fitted to and chosen by: those of all features, read once for a run, and those of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autointerp.ask.job import Job
from autointerp.records import Context, FeatureEvidence
from autointerp.rules.language.conditions import Clause
from autointerp.rules.language.matching import holds
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule
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
        return ManyTexts.of(self.reference.tiles)

    @property
    def select(self) -> ManyTexts:
        return self._select.texts

    @property
    def select_sources(self) -> NDArray[np.object_]:
        """What the document of each tile of the select part was cut from."""
        return self._select.sources

    @property
    def has_select_tiles(self) -> bool:
        return bool(self._select.tiles)


class TableColumns:
    """The tables of a rule, as what they add to tokens."""

    def __init__(self, rule: Rule, steps: Sequence[NDArray[np.float64]], n_contexts: int) -> None:
        """`steps`: for each table, what it adds to the tokens that it was learned from, of which the first `n_contexts`
        are those of the contexts."""
        self.rule = rule
        self.steps = _columns([step[:n_contexts] for step in steps], n_contexts)
        """[tokens of the contexts, tables]"""
        self._on: dict[int, NDArray[np.float64]] = {}

    def on(self, texts: ManyTexts) -> NDArray[np.float64]:
        """[tokens, tables]: what each table adds to the tokens of other texts."""
        if id(texts) not in self._on:
            self._on[id(texts)] = _columns([texts.added(table) for table in self.rule.tables], texts.n_tokens)
        return self._on[id(texts)]


def holding(texts: ManyTexts, clauses: Sequence[Clause]) -> NDArray[np.bool_]:
    """[tokens, clauses]: where each clause holds."""
    found = np.zeros((texts.n_tokens, len(clauses)), dtype=np.bool_)
    for i, clause in enumerate(clauses):
        found[:, i] = holds(clause, texts)
    return found


def _columns(columns: Sequence[NDArray[np.float64]], tokens: int) -> NDArray[np.float64]:
    return np.stack(columns, axis=1) if columns else np.zeros((tokens, 0))
