"""Explainers without an LLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autointerp.ask.forecast import Estimate
from autointerp.ask.job import RULE_BLOCK
from autointerp.config import ExplainConfig
from autointerp.explain.evidence_sections import Section
from autointerp.explain.explainer import EVERY_CONTEXT, ExplainRun, OpenRun
from autointerp.records import FeatureEvidence, Side
from autointerp.rules.labels import RuleLabel, rule_row, settings_sha256


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

    async def explain(self, work: OpenRun, features: Sequence[int]) -> None:
        run, digest = work.run, self.digest(work.run)
        for start in range(0, len(features), RULE_BLOCK):
            known = run.evidence(features[start : start + RULE_BLOCK], EVERY_CONTEXT)
            await work.write_all([rule_row(self.label(e), e, run.job, run.config, digest) for e in known])

    def estimate(self, run: ExplainRun, features: Sequence[int]) -> list[tuple[str, Estimate]]:
        return []
