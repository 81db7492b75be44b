"""Explainers without an LLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from autointerp.ask.forecast import Estimate
from autointerp.ask.job import RULE_BLOCK
from autointerp.config import ExplainConfig
from autointerp.explain.evidence_sections import Section
from autointerp.explain.explainer import EVERY_CONTEXT, ExplainRun, OpenRun
from autointerp.records import FeatureEvidence, Side
from autointerp.rules.labels import RuleLabel, by_patterns, patterns_sha256, rule_row, settings_sha256
from autointerp.rules.reference import Reference


@dataclass(frozen=True)
class RuleExplainer:
    """An explainer that is a function of the evidence."""

    name: str
    reads: tuple[Section, ...]
    label: Callable[[FeatureEvidence], RuleLabel]
    settings: tuple[object, ...] = ()
    """What the labels depend on besides the evidence; features labelled with others are labelled again."""

    @property
    def side(self) -> Side | None:
        return None

    @property
    def is_free(self) -> bool:
        return True

    def made_of(self, config: ExplainConfig) -> tuple[str, ...]:
        return ()

    def check(self, run: ExplainRun) -> None:
        """Any settings fit."""

    def digest(self, run: ExplainRun) -> str:
        return settings_sha256(self.name, *self.settings)

    def labeller(self, run: ExplainRun) -> Callable[[FeatureEvidence], RuleLabel]:
        """What makes the labels of one run."""
        return self.label

    async def explain(self, work: OpenRun, features: Sequence[int]) -> None:
        run, digest, label = work.run, self.digest(work.run), self.labeller(work.run)
        for start in range(0, len(features), RULE_BLOCK):
            known = run.evidence(features[start : start + RULE_BLOCK], EVERY_CONTEXT)
            await work.write_all([rule_row(label(e), e, run.job, run.config, digest) for e in known])

    def estimate(self, run: ExplainRun, features: Sequence[int]) -> list[tuple[str, Estimate]]:
        return []


class Patterns(RuleExplainer):
    """`patterns`: it learns its rules beside ordinary text and near words, which are read once for a run."""

    def digest(self, run: ExplainRun) -> str:
        return patterns_sha256(Reference(run.job))

    def labeller(self, run: ExplainRun) -> Callable[[FeatureEvidence], RuleLabel]:
        return partial(by_patterns, reference=Reference(run.job))
