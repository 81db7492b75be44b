"""The loop that runs every configured scorer over the labels and features that it has not scored yet.

Scorers of labels come first, in the configured order, except that scorers that ask no LLM or probe the endpoint precede
the others. Scorers of features follow, then scorers with their own endpoint, and last those that need the language
model. Their tasks are written into the store, `autointerp measure` answers them, and the next run judges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from autointerp.ask.forecast import Estimate, Forecast
from autointerp.ask.job import Blocks, Job, Outcome, run_pool
from autointerp.ask.question import Asker, side_by_side
from autointerp.config import EndpointConfig, ScoreConfig
from autointerp.dictionary_controls import DICTIONARY_CONTROLS
from autointerp.errors import InputError, nearest
from autointerp.records import Explanation, Score
from autointerp.score.controls import AUTO, CONTROLS, NEIGHBOUR, free_controls, without_neighbour
from autointerp.score.scorer import Needs, Run, Scorer, Work, pending
from autointerp.score.scorers import configured
from autointerp.store.group_writer import GroupWriter
from autointerp.store.labels_left import keys_of


async def score(job: Job, explainer: str, config: ScoreConfig, control: str | None = None) -> Outcome:
    """Scores the chosen features' labels by `explainer`, by every configured scorer that has not scored them yet.

    Scorers that read no label score the chosen features, labelled or not, and no control of them is run. Under a
    `control` something else is scored under the same label's name (see controls.py). Raises InputError (unknown scorer
    or control; no model named; an endpoint that cannot do what is asked) and whatever ends a run of a client. What was
    done until then is kept.
    """
    run = Run(job, explainer, config, control)
    chosen = _chosen(run)
    left = [(one, pending(one.scorer, run)) for one in chosen if one.applies(run)]
    outcome = Outcome(pending=sum(len(targets) for _, targets in left))
    skipped = [one.scorer.name for one in chosen if not one.applies(run)]
    outcome.notes = tuple(f"{name} needs no label, so no control of it is run" for name in skipped)
    if control == NEIGHBOUR and left:
        outcome.notes += without_neighbour(job, explainer)
    methods = []
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(GroupWriter(job.store))
        clients = _Clients(job, writer, stack)
        for one, targets in left:
            if not targets:
                continue
            asker = await clients.asker(one.needs.endpoint)
            work = await one.scorer.start(run, targets, asker)
            methods.append(work.by.method)
            outcome.notes += work.notes
            if asker is None:
                await _score_in_blocks(job, work, len(targets), outcome)
            else:
                await score_through(asker, job, work, range(len(targets)), writer, outcome)
    outcome.method = ", ".join(dict.fromkeys(methods)) or None
    return outcome


@dataclass(frozen=True)
class _Chosen:
    """A configured scorer and what it needs."""

    scorer: Scorer[Any]
    needs: Needs

    def applies(self, run: Run) -> bool:
        return run.control is None or self.scorer.reads_label

    def turn(self, run: Run) -> tuple[bool, bool, bool, bool]:
        """The smaller, the earlier it works."""
        own_endpoint = self.needs.endpoint is not None and self.needs.endpoint != run.config
        comes_first = self.needs.endpoint is None or self.needs.probes
        is_later = not self.needs.measured and not comes_first
        return self.needs.measured, own_endpoint, not self.scorer.reads_label, is_later


def _chosen(run: Run) -> list[_Chosen]:
    """The configured scorers in the order of work. Raises InputError where one of them cannot work."""
    scorers = configured(run.config.scorers)
    for name in run.config.controls:
        known = (AUTO, *(known for known in CONTROLS if known not in DICTIONARY_CONTROLS))
        if name not in known:
            raise InputError(
                f"score.controls names {name!r}, which is none of {', '.join(known)}.{nearest(name, known)}"
            )
    if run.control is not None and run.control not in CONTROLS:
        raise InputError(f"no control {run.control!r}; there are {', '.join(CONTROLS)}")
    if run.control in DICTIONARY_CONTROLS:
        raise InputError(
            f"the control {run.control!r} scores the features of another dictionary, which is trained, harvested and "
            f"labelled first: it needs `autointerp run --control {run.control}`"
        )
    chosen = [_Chosen(s, s.needs(run) if run.control is None or s.reads_label else Needs()) for s in scorers]
    return sorted(chosen, key=lambda one: one.turn(run))


def controls_beside(job: Job, explainer: str, config: ScoreConfig) -> list[tuple[str, ScoreConfig]]:
    """The controls that `config` names to be scored after the labels, each with the configuration of its scorers. Those
    of `auto` were mostly scored along with the labels (see FreeControls)."""
    found = {name: config for name in config.controls if name != AUTO}
    chosen = _chosen(Run(job, explainer, config))
    free = tuple(one.scorer.name for one in chosen if one.scorer.reads_label and one.needs == Needs())
    for name in free_controls(job, explainer, config.controls) if free else ():
        found.setdefault(name, replace(config, scorers=free))
    return list(found.items())


def check_settings(job: Job, explainer: str, config: ScoreConfig) -> tuple[list[str], list[EndpointConfig]]:
    """The configured scorers, and the endpoints that they ask; a control asks no others. Raises InputError where
    `score` would refuse the settings, or where a template cannot be read. Nothing is read of the store."""
    run = Run(job, explainer, config)
    chosen = _chosen(run)
    for one in chosen:
        one.scorer.made_by(run)
    endpoints = [one.needs.endpoint for one in chosen if one.needs.endpoint is not None]
    return [one.scorer.name for one in chosen], [e for i, e in enumerate(endpoints) if e not in endpoints[:i]]


class _Clients:
    """One client for every endpoint that is asked, opened when it is first needed."""

    def __init__(self, job: Job, writer: GroupWriter, stack: AsyncExitStack) -> None:
        self._job, self._writer, self._stack = job, writer, stack
        self._askers: list[tuple[EndpointConfig, Asker]] = []

    async def asker(self, endpoint: EndpointConfig | None) -> Asker | None:
        if endpoint is None:
            return None
        for known, asker in self._askers:
            if known == endpoint:
                return asker
        client = await self._stack.enter_async_context(self._job.client(endpoint, self._writer))
        self._askers.append((endpoint, Asker(client)))
        return self._askers[-1][1]


async def score_through(
    asker: Asker, job: Job, work: Work[Any], places: Sequence[int], writer: GroupWriter, outcome: Outcome
) -> None:
    """Scores the targets at `places` in a pool of workers that ask an endpoint; `outcome` is added to."""

    async def one(item: Any) -> None:
        rows = await work.score(item)
        if rows is not None:
            # The writer keeps the order, so the row that marks a target as scored is never committed before the others.
            await side_by_side(writer.score(row) for row in rows)
        _count(job, rows, outcome)

    # Twice as many as fill the connections: a target waits for commits too, and the client bounds the calls.
    workers = 2 + 2 * job.in_flight // max(1, work.calls)
    try:
        await run_pool(Blocks(places, work.load, size=work.block), min(workers, len(places)), one, asker.stop)
    finally:
        work.finish()


async def _score_in_blocks(job: Job, work: Work[Any], n: int, outcome: Outcome) -> None:
    """Scores `n` targets without an endpoint: nothing is waited for but the store, which takes a block at a time."""
    try:
        for start in range(0, n, work.block):
            block = list(range(start, min(start + work.block, n)))
            rows: list[Score] = []
            for item in await asyncio.to_thread(work.load, block):
                found = await work.score(item)
                rows += found or ()
                _count(None, found, outcome)
            job.store.insert_scores(rows)
            job.report(outcome.done + outcome.waiting, outcome.pending)
    finally:
        work.finish()


def _count(job: Job | None, rows: Sequence[Score] | None, outcome: Outcome) -> None:
    if rows is None:
        outcome.waiting += 1
    else:
        outcome.statuses[rows[-1].status] += 1
    if job is not None:
        job.report(outcome.done + outcome.waiting, outcome.pending)


def forecast_score(
    job: Job, explainer: str, config: ScoreConfig, control: str | None = None, planned: Sequence[Explanation] = ()
) -> Forecast:
    """Calls and tokens that `score` would need now, without second tries.

    A label that waits for several scorers counts as one feature, and so do a feature and its labels. `planned`: labels
    that do not exist yet and will wait too.
    """
    run = Run(job, explainer, config, control)
    labels: dict[str, int] = {}
    """The feature of every label that waits."""
    features: set[int] = set()
    """Features that wait for a scorer that reads no label."""
    parts: list[tuple[str, Estimate]] = []
    for one in _chosen(run):
        if not one.applies(run):
            continue
        targets: Sequence[Any] = pending(one.scorer, run)
        if not one.scorer.reads_label:
            features.update(targets)
        else:
            if planned:  # else they are a million maybe, of which eight are looked at
                targets = [*targets, *planned]
            labels.update(keys_of(targets))
        if targets and one.needs.endpoint is not None:
            # A control asks as much as the labels do, but nothing twice. What stands in for labels to come is unknown.
            asked = config if control is None else replace(config, repeat_share=0.0)
            estimate = one.scorer.estimate(replace(run, control=None, config=asked), targets)
            parts.append((one.needs.endpoint.model, estimate))
    waiting = len(labels) + len(features - set(labels.values()))
    return Forecast.of(job.llm.prices, waiting, parts)
