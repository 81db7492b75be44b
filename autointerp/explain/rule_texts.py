"""The texts that rules are fitted to and chosen by: those of all features, read once for a run, and those of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autointerp.ask.job import Job
from autointerp.explain.rule_select import SelectText, SelectTexts
from autointerp.records import FeatureEvidence
from autointerp.rules.language.conditions import Clause
from autointerp.rules.language.matching import holds
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule
from autointerp.rules.reference import Reference


@dataclass(frozen=True)
class StudiedFeature:
    """What is read of one feature: its evidence, of the explain part, and its text of the select part."""

    evidence: FeatureEvidence
    select: SelectText


class RuleTexts:
    """The known tiles of the explain part, and the select part."""

    def __init__(self, job: Job) -> None:
        self.reference = Reference(job)
        self.select = SelectTexts(job)

    def read(self, evidence: Sequence[FeatureEvidence]) -> list[StudiedFeature]:
        """Reads what is needed of some features at once."""
        select = self.select.read([one.feature for one in evidence])
        return [StudiedFeature(one, of) for one, of in zip(evidence, select, strict=True)]

    @cached_property
    def explain(self) -> ManyTexts:
        return ManyTexts.of(self.reference.tiles)


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
