"""What the data say of rules that an LLM proposes for one feature.

Each proposal is fitted to the explain part (the contexts and the silent known tiles, see rules/fitting.py), alone and
with tables learned from what it leaves unexplained, as `patterns` learns its own. Clauses that the select part does not
support are dropped, and what is left has a natural correlation there. The report part is never read.

On contexts the tables count as they predict text that they were not learned from: by their own text they would seem
better than any clause.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.explain.rule_mistakes import LEAST_FALSE, Mistakes, ReadText, mistakes_in
from autointerp.explain.rule_question import Proposal
from autointerp.explain.rule_select import SelectPart
from autointerp.explain.rule_texts import RuleTexts, StudiedFeature, TableColumns, holding
from autointerp.rules.fitting import LEAST_SUPPORT, Fit, Parts, supported, tables_alone, worth
from autointerp.rules.language.conditions import Clause
from autointerp.rules.language.parsing import clause_to_json
from autointerp.rules.learning import learned, weighted_correlation
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule, Table
from autointerp.rules.samples import distinct_contexts, sample_of

Floats = NDArray[np.float64]
MOST_TILES = 100
"""Silent tiles with the largest predictions that are looked through for false alarms."""


@dataclass(frozen=True)
class Draft:
    """A proposal as the data left it."""

    proposal: Proposal
    clauses: tuple[Clause, ...]
    """All that were proposed, with the strengths that the data gave them: 0 for those that were dropped."""
    tables: TableColumns
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
        self.reference = texts.reference
        self._texts = texts
        self._contexts = distinct_contexts(of.evidence)
        self._own = ManyTexts.of(self._contexts)
        self._select = SelectPart(of.select, of.evidence.max_activation, texts.select.tiles)
        self.sample = sample_of(of.evidence, texts.reference)
        silent = texts.reference.silent(of.evidence.feature) if len(self.sample.places) else None
        is_silent = np.zeros(len(texts.reference.tiles), dtype=np.bool_)
        if silent is not None:
            is_silent[silent.tiles] = True
        self._silent = np.repeat(is_silent, np.diff(texts.explain.starts))
        """[tokens of the known tiles]"""
        n = self._own.n_tokens
        self._truth, self._weights = self.sample.activations[:n], self.sample.weights[:n]
        self._patterns = self._learned(self.sample.activations)
        self.patterns = self._patterns.rule

    def draft(self, proposal: Proposal) -> Draft:
        """What is left of the proposal. In whatever order it lists its clauses, the result is the same.

        Three rules are compared: the clauses alone; the clauses, and tables learned from what these leave unexplained;
        the rule of `patterns`. Clauses are what people read, so each is taken before the next unless that is worth
        more on both parts together, by LEAST_SUPPORT. The select part alone may hold none of a feature's few strong
        places, and then hardly tells one rule from another.
        """
        clauses = sorted(proposal.clauses, key=_content)
        bare = self._fitted(proposal, clauses, self._mean())
        rest = self._fitted(proposal, clauses, self._learned(self.sample.activations - self._predicted(bare)))
        candidates = [*(one for one in (bare, rest) if one.kept), self._alone(proposal, clauses)]
        best = candidates[0]
        for other in candidates[1:]:
            if _worth(other) > _worth(best) + LEAST_SUPPORT:
                best = other
        return best

    def mistakes(self, draft: Draft, most: int) -> Mistakes:
        """What the rule gets wrong on the explain part, at most `most` texts of either kind."""
        fit, own, tiles = draft.fit, self._own.starts, self._texts.explain
        predicted = fit.predict(draft.tables.steps, holding(self._own, draft.clauses))
        texts = [
            ReadText(c.tokens, self._truth[a:b], predicted[a:b], c.begins)
            for c, a, b in zip(self._contexts, own[:-1], own[1:], strict=True)
        ]
        over = fit.predict(draft.tables.on(tiles), holding(tiles, draft.clauses)) * self._silent
        _, sums, _ = tiles.sums(over)
        peaks, known = tiles.peaks(over), self._texts.reference.tiles
        for i in np.argsort(-sums, kind="stable")[:MOST_TILES].tolist():
            if peaks[i] >= LEAST_FALSE:
                part = over[tiles.starts[i] : tiles.starts[i + 1]]
                texts.append(ReadText(known[i].tokens, np.zeros(len(part)), part, known[i].begins))
        return mistakes_in(texts, most)

    def table_share(self, draft: Draft) -> tuple[float, dict[str, float]]:
        """(the share of what is predicted where the feature is active that the tables predict, and how much of it where
        no clause holds, by token)."""
        at = np.flatnonzero(self._truth > 0)
        holds, fit = holding(self._own, draft.clauses)[at], draft.fit
        by_tables = np.maximum(draft.tables.steps[at] @ fit.gains, 0.0) * self._weights[at]
        by_clauses = (holds @ fit.strengths) * self._weights[at]
        alone = ~holds[:, fit.strengths > 0].any(axis=1)
        tokens = [token for context in self._contexts for token in context.tokens]
        of_token: dict[str, float] = {}
        for i, mass in zip(at[alone].tolist(), by_tables[alone].tolist(), strict=True):
            of_token[tokens[i]] = of_token.get(tokens[i], 0.0) + mass
        whole = float(by_tables.sum() + by_clauses.sum())
        return (float(by_tables.sum()) / whole if whole > 0 else 0.0), of_token

    # --- fits ---------------------------------------------------------------------------------------------------------

    def _learned(self, truth: Floats) -> TableColumns:
        """Tables learned from the sample, as if `truth` [tokens] were the activations."""
        found = learned(self.sample, near=self.reference.near, truth=truth)
        return TableColumns(found.rule, found.steps, self._own.n_tokens)

    def _mean(self) -> TableColumns:
        """No tables: the mean activation everywhere."""
        return TableColumns(Rule(self.patterns.base), [], self._own.n_tokens)

    def _fitted(self, proposal: Proposal, clauses: Sequence[Clause], tables: TableColumns) -> Draft:
        parts, natural_of = self._parts(clauses, tables), self._natural_of(clauses, tables)
        fit = supported(parts, lambda one: natural_of(one).value)
        return self._as_draft(proposal, clauses, tables, fit, natural_of(fit), parts)

    def _alone(self, proposal: Proposal, clauses: Sequence[Clause]) -> Draft:
        """The rule of `patterns`, without any of the clauses."""
        parts = self._parts(clauses, self._patterns)
        fit = tables_alone(parts)
        natural = self._natural_of(clauses, self._patterns)(fit)
        return self._as_draft(proposal, clauses, self._patterns, fit, natural, parts)

    def _natural_of(self, clauses: Sequence[Clause], tables: TableColumns) -> Callable[[Fit], stats.Estimate]:
        """A function from fits of these clauses and tables to their natural correlations on the select part."""
        select = self._select
        own, tiles = ((tables.on(texts), holding(texts, clauses)) for texts in (select.own, select.tiles))
        return lambda fit: select.natural(fit.predict(*own), fit.predict(*tiles))

    def _as_draft(
        self, proposal: Proposal, clauses: Sequence[Clause], tables: TableColumns, fit: Fit, natural: stats.Estimate,
        parts: Parts,
    ) -> Draft:  # fmt: skip
        sized = tuple(
            replace(clause, strength=float(strength)) for clause, strength in zip(clauses, fit.strengths, strict=True)
        )
        rule = self.patterns
        if fit.kept:
            small = parts.merged
            agreement = weighted_correlation(small.truth, fit.predict(small.tables, small.clauses), small.weights)
            scaled = [_scaled(table, gain) for table, gain in zip(tables.rule.tables, fit.gains.tolist(), strict=True)]
            rule = Rule(fit.base, [t for t in scaled if t.weights], agreement, [sized[i] for i in fit.kept], "sum")
        return Draft(proposal, sized, tables, fit, rule, natural)

    def _parts(self, clauses: Sequence[Clause], tables: TableColumns) -> Parts:
        tiles, silent = self._texts.explain, self._silent
        n = int(silent.sum())
        return Parts(
            tables.rule.base,
            np.concatenate([tables.steps, tables.on(tiles)[silent]]),
            np.concatenate([holding(self._own, clauses), holding(tiles, clauses)[silent]]),
            np.concatenate([self._truth, np.zeros(n)]),
            np.concatenate([self._weights, np.full(n, self.sample.silent_weight)]),
        )

    def _predicted(self, bare: Draft) -> Floats:
        """What clauses predict of the tokens of the sample."""
        texts = (self._own, slice(None)), (self._texts.explain, self.sample.places)
        return np.concatenate(
            [bare.fit.predict(np.zeros((of.n_tokens, 0)), holding(of, bare.clauses))[at] for of, at in texts]
        )


def _worth(draft: Draft) -> float:
    """The mean of its correlations on the explain and the select part. On explain, tables count as they predict text
    that they were not learned from."""
    return (worth(draft.rule.fit) + worth(draft.natural.value)) / 2


def _scaled(table: Table, gain: float) -> Table:
    weights = {key: round(gain * weight, 3) for key, weight in table.weights.items()}
    return Table(table.of, {key: weight for key, weight in weights.items() if weight}, table.gain)


def _content(clause: Clause) -> str:
    return json.dumps(clause_to_json(replace(clause, strength=0.0, says="")), sort_keys=True)
