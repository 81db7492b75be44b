"""Scores by `intruder` for many features: one request per question, the questions of a feature side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from autointerp.ask.forecast import CHARACTERS_PER_TOKEN, Estimate
from autointerp.ask.job import Blocks, Job, Outcome, run_pool
from autointerp.ask.question import ask, side_by_side
from autointerp.config import ScoreConfig
from autointerp.llm.client import LlmClient
from autointerp.score.intruder import (
    CHOICE,
    INTRUDER,
    IntruderJudge,
    IntruderQuestion,
    Lineup,
    answer_of,
    draw_lineups,
    intruder_rows,
    template_of,
)
from autointerp.score.score_rows import Answer, Identity
from autointerp.store.group_writer import GroupWriter


@dataclass(frozen=True)
class Paraded:
    """One feature and the questions that are asked about it; none where its contexts are too few."""

    feature: int
    lineups: list[Lineup]


def pending_intruders(job: Job, config: ScoreConfig) -> list[int]:
    """Features that this scorer has not scored yet."""
    return job.store.features_to_score(
        job.dictionary_id, INTRUDER, CHOICE, config.model, template_of(job.prompts).sha256, "report", job.selection,
        config.seed,
    )  # fmt: skip


async def score_intruders(
    job: Job, config: ScoreConfig, pending: Sequence[int], writer: GroupWriter, client: LlmClient, outcome: Outcome
) -> None:
    """Scores the pending features; `outcome` is added to. Raises what ends a run."""
    judge = IntruderJudge.of(config, config.seed, job.prompts)

    async def one(lineup: Lineup) -> Answer:
        return answer_of(lineup, await ask(client, IntruderQuestion(judge, lineup, job.dictionary_id)))

    async def work(item: Paraded) -> None:
        answers = await side_by_side(one(lineup) for lineup in item.lineups)
        identity = Identity(
            None, job.harvest_id, CHOICE, None, config.model, judge.template.sha256, config.seed,
            (job.dictionary_id, item.feature),
        )  # fmt: skip
        rows = intruder_rows(identity, answers, config.intruder_shown)
        await asyncio.gather(*(writer.score(row) for row in rows))
        outcome.statuses[rows[-1].status] += 1
        job.report(outcome.done, outcome.pending)

    workers = 2 + 2 * job.in_flight // max(1, 2 * config.contexts)
    load = LineupLoader(job, config, pending)
    await run_pool(Blocks(range(len(pending)), load, size=16), min(workers, len(pending)), work, client.stop)


class LineupLoader:
    """Reads the contexts of a block of features and draws the questions; called in a worker thread."""

    def __init__(self, job: Job, config: ScoreConfig, pending: Sequence[int]) -> None:
        self._job, self._config, self._pending = job, config, pending

    def __call__(self, places: list[int]) -> list[Paraded]:
        job, config = self._job, self._config
        most = 2 * config.contexts
        features = [self._pending[i] for i in places]
        limits = {"top": most, "sampled": None, "negative": None}
        contexts = job.store.contexts_of(job.dictionary_id, job.harvest_id, features, "report", limits)
        return [
            Paraded(f, draw_lineups(contexts[f], config.intruder_shown, most, config.seed, job.dictionary_id))
            for f in features
        ]


def forecast_intruders(job: Job, config: ScoreConfig, pending: Sequence[int]) -> Estimate:
    """For the pending features, from a few of them."""
    if not pending:
        return Estimate()
    judge = IntruderJudge.of(config, config.seed, job.prompts)
    some = LineupLoader(job, config, pending)(list(range(0, len(pending), max(1, len(pending) // 8))))
    asked = [judge.request(lineup, job.dictionary_id) for item in some for lineup in item.lineups]
    return Estimate.of(asked, len(pending) / len(some), CHARACTERS_PER_TOKEN * len(asked))
