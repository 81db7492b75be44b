"""What the data say of rules that an LLM proposes for one feature.

Each proposal is fitted to the explain part (the contexts and the silent known tiles, see rules/fitting.py) beside the
tables that `patterns` has learned from it. Clauses that the select part does not support are dropped, and what is left
has a natural correlation there. The report part is never read.

On contexts the tables count as they predict text that they were not learned from: by their own text they would seem
better than any clause.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.ask.scale import scaled
from autointerp.explain.rule_mistakes import LEAST_FALSE, Mistakes, ReadText, mistakes_in
from autointerp.explain.rule_question import Proposal
from autointerp.explain.rule_texts import RuleTexts, StudiedFeature
from autointerp.records import Prediction
from autointerp.rules.fitting import Fit, Parts, supported, tables_alone
from autointerp.rules.language.conditions import Clause
from autointerp.rules.language.matching import holds
from autointerp.rules.language.parsing import clause_to_json
from autointerp.rules.learning import learned, weighted_correlation
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule, Table
from autointerp.rules.samples import distinct_contexts, sample_of
from autointerp.score.natural import SilentTiles, natural_result
from autointerp.score.score_rows import Answer

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
MOST_TILES = 100
"""Silent tiles with the largest predictions that are looked through for false alarms."""


@dataclass(frozen=True)
class Draft:
    """A proposal as the data left it."""

    proposal: Proposal
    clauses: tuple[Clause, ...]
    """All that were proposed, with the strengths that the data gave them: 0 for those that were dropped."""
    fit: Fit
    rule: Rule
    natural: stats.Estimate
    """Its natural correlation on the select part."""

    @property
    def kept(self) -> list[Clause]:
        """The clauses that are of use, strongest first."""
        return sorted((c for c in self.clauses if c.strength > 0), key=lambda c: -c.strength)


class RuleStudy:
    """One feature: the text to fit rules to, the rule of `patterns`, and the text to choose by."""

    def __init__(self, of: StudiedFeature, texts: RuleTexts) -> None:
        self.evidence, self.reference = of.evidence, texts.reference
        self._texts, self._of = texts, of
        self._contexts = distinct_contexts(of.evidence)
        self._own = ManyTexts([c.tokens for c in self._contexts], [c.begins for c in self._contexts])
        self._held = [c for c in of.select if c.kind == "sampled" or (not texts.has_select_tiles and c.tier == "random")]
        self._select = ManyTexts([c.tokens for c in self._held], [c.begins for c in self._held])
        self.sample = sample_of(of.evidence, texts.reference)
        found = learned(self.sample, near=texts.reference.near)
        self.patterns = found.rule
        n = int(self._own.starts[-1])
        self._steps = _columns([step[:n] for step in found.steps], n)
        silent = texts.reference.silent(of.evidence.feature) if self.sample.ordinary else None
        self._silent = np.zeros(len(texts.reference.tiles), dtype=np.bool_)
        if silent is not None:
            self._silent[silent.tiles] = True

    # --- proposals ----------------------------------------------------------------------------------------------------

    def draft(self, proposal: Proposal) -> Draft:
        """What is left of the proposal. In whatever order it lists its clauses, the result is the same."""
        clauses = sorted(proposal.clauses, key=_content)
        parts = self._parts(clauses)
        judged = _Judged(self, clauses)
        fit = supported(parts, lambda one: judged.natural(one).value)
        fitted = tuple(
            replace(clause, strength=float(strength)) for clause, strength in zip(clauses, fit.strengths, strict=True)
        )
        return Draft(proposal, fitted, fit, self._rule(fit, fitted, parts), judged.natural(fit))

    def patterns_alone(self) -> stats.Estimate:
        """The natural correlation of the rule of `patterns` on the select part."""
        return _Judged(self, []).natural(tables_alone(self._parts([])))

    def mistakes(self, draft: Draft, most: int) -> Mistakes:
        """What the rule gets wrong on the explain part, at most `most` texts of either kind."""
        clauses, fit = draft.clauses, draft.fit
        predicted = fit.predict(self._steps, _holds(self._own, clauses))
        texts = [
            ReadText(c.tokens, self._truth[a:b], predicted[a:b], c.begins)
            for c, a, b in zip(self._contexts, self._own.starts[:-1], self._own.starts[1:], strict=True)
        ]
        tiles, known = self._texts.explain, self._texts.reference.tiles
        over = fit.predict(self._tile_tables, _holds(tiles, clauses)) * np.repeat(self._silent, np.diff(tiles.starts))
        _, sums, _ = tiles.sums(over)
        peaks = tiles.peaks(over)
        for i in np.argsort(-sums, kind="stable")[:MOST_TILES].tolist():
            if peaks[i] >= LEAST_FALSE:
                part = over[tiles.starts[i] : tiles.starts[i + 1]]
                texts.append(ReadText(known[i].tokens, np.zeros(len(part)), part, known[i].begins))
        return mistakes_in(texts, most)

    def table_share(self, draft: Draft) -> tuple[float, dict[str, float]]:
        """(the share of what is predicted where the feature is active that the tables predict, and how much of it where
        no clause holds, by token)."""
        at = np.flatnonzero(self._truth > 0)
        holds = _holds(self._own, draft.clauses)[at]
        by_tables = np.maximum(draft.fit.base + self._steps[at] @ draft.fit.gains, 0.0) * self._weights[at]
        by_clauses = (holds @ draft.fit.strengths) * self._weights[at]
        alone = ~holds[:, draft.fit.strengths > 0].any(axis=1)
        tokens = [token for context in self._contexts for token in context.tokens]
        of_token: dict[str, float] = {}
        for i, mass in zip(at[alone].tolist(), by_tables[alone].tolist(), strict=True):
            of_token[tokens[i]] = of_token.get(tokens[i], 0.0) + mass
        whole = float(by_tables.sum() + by_clauses.sum())
        return (float(by_tables.sum()) / whole if whole > 0 else 0.0), of_token

    # --- the explain part ---------------------------------------------------------------------------------------------

    @cached_property
    def _truth(self) -> Floats:
        return self.sample.activations[: int(self._own.starts[-1])]

    @cached_property
    def _weights(self) -> Floats:
        return self.sample.weights[: int(self._own.starts[-1])]

    @cached_property
    def _tile_tables(self) -> Floats:
        return _added(self._texts.explain, self.patterns.tables)

    @cached_property
    def select_tables(self) -> Floats:
        return _added(self._select, self.patterns.tables)

    @cached_property
    def silent_select_tables(self) -> Floats:
        return _added(self._texts.select, self.patterns.tables)

    def _parts(self, clauses: Sequence[Clause]) -> Parts:
        tiles = self._texts.explain
        silent = np.repeat(self._silent, np.diff(tiles.starts))
        n = int(silent.sum())
        return Parts(
            self.patterns.base,
            np.concatenate([self._steps, self._tile_tables[silent]]),
            np.concatenate([_holds(self._own, clauses), _holds(tiles, clauses)[silent]]),
            np.concatenate([self._truth, np.zeros(n)]),
            np.concatenate([self._weights, np.full(n, self.sample.silent_weight)]),
        )

    def _rule(self, fit: Fit, clauses: Sequence[Clause], parts: Parts) -> Rule:
        """The rule of the fit; that of `patterns` itself where no clause is left."""
        if not fit.kept:
            return self.patterns
        tables = [
            Table(table.of, weights, table.gain)
            for table, gain in zip(self.patterns.tables, fit.gains.tolist(), strict=True)
            if (weights := {key: round(gain * weight, 3) for key, weight in table.weights.items() if gain * weight})
        ]
        small = parts.merged
        fitted = weighted_correlation(small.truth, fit.predict(small.tables, small.clauses), small.weights)
        return Rule(fit.base, tables, fitted, [clauses[i] for i in fit.kept], "sum")


class _Judged:
    """Values fits of some clauses on the select part."""

    def __init__(self, study: RuleStudy, clauses: Sequence[Clause]) -> None:
        texts, of = study._texts, study._of
        self._contexts, self._starts = study._held, study._select.starts
        self._prevalence = of.prevalence
        self._truths = [scaled(c.activations, of.evidence.max_activation) for c in study._held]
        self._tables = study.select_tables
        self._clauses = _holds(study._select, clauses)
        silent = np.flatnonzero(of.silent_in_select)
        tiles, sizes = texts.select, np.diff(texts.select.starts)
        at = np.flatnonzero(np.repeat(of.silent_in_select, sizes))
        self._silent_tables = study.silent_select_tables[at]
        self._silent_clauses = _holds(tiles, clauses)[at]
        self._sizes = sizes[silent]
        self._documents = texts.select_sources[silent].tolist()
        self._has_tiles = texts.has_select_tiles

    def natural(self, fit: Fit) -> stats.Estimate:
        """The natural correlation of the fit's predictions."""
        predicted = fit.predict(self._tables, self._clauses)
        answers = [
            Answer(c, Prediction(c.context_id, truth, predicted[a:b].tolist(), "ok"))
            for c, truth, a, b in zip(self._contexts, self._truths, self._starts[:-1], self._starts[1:], strict=True)
        ]
        active = [a for a in answers if a.context.kind == "sampled"]
        if not self._has_tiles:  # older evidence: the silent contexts of the random tier stand for the corpus
            silent = SilentTiles.of([a for a in answers if a.context.tier == "random"])
        else:
            over = fit.predict(self._silent_tables, self._silent_clauses)
            starts = np.cumsum(self._sizes) - self._sizes
            filled = self._sizes > 0
            sums = [np.zeros(len(self._sizes)) for _ in range(3)]
            for found, values in zip(sums[:2], (over, over * over), strict=True):
                found[filled] = np.add.reduceat(values, starts[filled])
            sums[2][filled] = np.maximum.reduceat(over, starts[filled])
            silent = SilentTiles(self._documents, self._sizes.astype(np.float64), *sums)
        return natural_result(active, silent, self._prevalence).estimate


def _content(clause: Clause) -> str:
    return json.dumps(clause_to_json(replace(clause, strength=0.0, says="")), sort_keys=True)


def _holds(texts: ManyTexts, clauses: Sequence[Clause]) -> Flags:
    """[tokens, clauses]"""
    found = np.zeros((int(texts.starts[-1]), len(clauses)), dtype=np.bool_)
    for i, clause in enumerate(clauses):
        found[:, i] = holds(clause, texts)
    return found


def _added(texts: ManyTexts, tables: Sequence[Table]) -> Floats:
    """[tokens, tables]: what each table adds to each token."""
    return _columns([texts.added(table) for table in tables], int(texts.starts[-1]))


def _columns(columns: Sequence[Floats], tokens: int) -> Floats:
    return np.stack(columns, axis=1) if columns else np.zeros((tokens, 0))
