"""What an explainer is, and what it works with."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from autointerp.ask.forecast import Estimate
from autointerp.ask.job import Job, Outcome
from autointerp.config import EndpointConfig, ExplainConfig, ScoreConfig
from autointerp.errors import InputError, nearest
from autointerp.explain.evidence_sections import Section
from autointerp.llm.client import LlmClient
from autointerp.records import Explanation, FeatureEvidence, Side
from autointerp.store.group_writer import GroupWriter

EVERY_CONTEXT = 1000
"""More contexts of one kind than any harvest keeps."""


class Explainer(Protocol):
    """A way to label features. Most are entries of two small classes: OneCall (one_call.py) asks an LLM once about each
    feature, RuleExplainer (rule_explainers.py) needs none."""

    @property
    def name(self) -> str:
        """The name used in [explain] explainer and in explanations.explainer."""

    @property
    def reads(self) -> tuple[Section, ...]:
        """The sections of evidence that it shows or looks at itself; () where it is made of other labels."""

    @property
    def side(self) -> Side | None:
        """What its labels describe; None where that is found out for each label."""

    @property
    def is_free(self) -> bool:
        """Whether it asks no LLM. Free labels are made again for every harvest, while paid ones are kept; and no
        cheaper label stands in for them."""

    def made_of(self, config: ExplainConfig) -> tuple[str, ...]:
        """The explainers whose labels it chooses from, joins or rewrites; () for most."""

    def check(self, run: ExplainRun) -> None:
        """Raises InputError where the settings do not fit, before anything is read or asked."""

    def digest(self, run: ExplainRun) -> str:
        """The sha256 of its template, or of all that its labels depend on besides the evidence, the model and the
        seed. Features labelled under another digest are labelled again."""

    async def explain(self, work: OpenRun, features: Sequence[int]) -> None:
        """Hands `work` one row for every feature: its label, or the reason why it has no label. Raises whatever ends a
        run of the client; rows handed over before that are kept."""

    def estimate(self, run: ExplainRun, features: Sequence[int]) -> list[tuple[str, Estimate]]:
        """The calls that explaining the features would take, as (model, calls to it). Nothing is sent."""


@runtime_checkable
class FindsPending(Protocol):
    """An explainer that itself knows which features it has to label, since that does not depend on evidence."""

    def pending(self, run: ExplainRun) -> list[int]:
        """The chosen features that wait for a label. Raises InputError where none of them can have one."""


@dataclass(frozen=True)
class ExplainRun:
    """One dictionary's labelling: the job, its settings, and the explainers there are."""

    job: Job
    config: ExplainConfig
    score_config: ScoreConfig
    """How labels are validated by explainers that choose or correct by a score."""
    explainers: tuple[Explainer, ...]

    @property
    def explainer(self) -> Explainer:
        """The configured explainer. Raises InputError if there is none of that name."""
        return named(self.explainers, self.config.explainer)

    def of(self, config: ExplainConfig) -> ExplainRun:
        """This run with other settings, those of a label from which this run's label is made."""
        return replace(self, config=config)

    def evidence(self, features: Sequence[int], contexts: int | Mapping[str, int | None]) -> list[FeatureEvidence]:
        """The evidence of the features, in their order, with at most `contexts` contexts of each kind, or of each kind
        as many as it maps it to (None: all)."""
        job = self.job
        found = job.store.feature_evidence(job.dictionary_id, job.harvest_id, features, contexts)
        return [found[feature] for feature in features]

    def pending(self, digest: str) -> list[int]:
        """The chosen features that the configured explainer has not labelled. Paid labels are kept when the evidence
        grows (a label names its harvest); free ones follow it."""
        explainer = self.explainer
        if explainer.is_free:
            return self.without_row(explainer.name, digest, self.job.harvest_id)
        return self.without_row(self.config.model, digest)

    def without_row(self, model: str, digest: str, harvest_id: int | None = None) -> list[int]:
        """The chosen features without a row of the configured explainer under this model and digest."""
        job, config = self.job, self.config
        return job.store.features_to_explain(
            job.dictionary_id, config.explainer, model, digest, config.seed, job.selection, harvest_id=harvest_id
        )


def named(explainers: Sequence[Explainer], name: str) -> Explainer:
    """The explainer with this name. If there is no such explainer, raises InputError, which names the nearest one."""
    for one in explainers:
        if one.name == name:
            return one
    names = [one.name for one in explainers]
    raise InputError(f"no explainer {name!r}; there are {', '.join(names)}.{nearest(name, names)}")


class OpenRun:
    """An ExplainRun under way: the clients of its endpoints and the way into the store.

    `async with OpenRun(run, outcome) as work: await work.write(row)`.
    """

    def __init__(self, run: ExplainRun, outcome: Outcome) -> None:
        self.run = run
        self.writer = GroupWriter(run.job.store)
        self._outcome = outcome
        self._open = AsyncExitStack()
        self._clients: dict[tuple[str, str, str], LlmClient] = {}

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self.writer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.__aexit__(kind, error, trace)

    async def client(self, endpoint: EndpointConfig) -> LlmClient:
        """The client for an endpoint's model: one and the same for the same model at the same place, so that its rate
        limit holds."""
        where = (endpoint.base_url, endpoint.api_key_env, endpoint.model)
        if where not in self._clients:
            client = self.run.job.client(endpoint, self.writer)
            self._clients[where] = await self._open.enter_async_context(client)
        return self._clients[where]

    async def write(self, row: Explanation) -> None:
        """Writes a label that this run was asked for, and reports it; returns once it is committed."""
        await self.writer.explanation(row)
        self._count([row])

    async def write_all(self, rows: Sequence[Explanation]) -> None:
        """Writes many such labels in one transaction."""
        self.run.job.store.insert_explanations(rows)
        self._count(rows)
        await asyncio.sleep(0)  # a cancelled run ends here

    def _count(self, rows: Sequence[Explanation]) -> None:
        self._outcome.statuses.update(row.status for row in rows)
        self.run.job.report(self._outcome.done, self._outcome.pending)
