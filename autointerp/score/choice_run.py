"""Scores by `detection` and `fuzzing` for many labels: a few contexts per request, the requests of a label side by
side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from autointerp.ask.forecast import Estimate
from autointerp.ask.job import Blocks, Job, Outcome, run_pool
from autointerp.ask.question import ask
from autointerp.config import ScoreConfig
from autointerp.llm.client import LlmClient
from autointerp.records import Explanation
from autointerp.score.choices import (
    Batch,
    Example,
    Judge,
    answer_of,
    batches,
    choice_rows,
    choose_examples,
    template_of,
)
from autointerp.score.controls import stand_ins
from autointerp.score.score_rows import Answer, Identity, Part
from autointerp.score.stopping import ROUND, decide, interval_z, likely_share, method_of, plan, stops_early
from autointerp.store.group_writer import GroupWriter
from autointerp.store.pace import earlier_scores


@dataclass(frozen=True)
class Questioned:
    """One label and the contexts that it is scored on, in the order in which they are asked about."""

    explanation: Explanation
    told: Explanation | None
    """Whose label the judge is told: its own, or a control's; None: the empty label."""
    examples: list[Example]

    @property
    def label(self) -> str:
        return "" if self.told is None else self.told.text or ""


def pending_choices(
    job: Job, scorer: str, explainer: str, config: ScoreConfig, control: str | None, part: Part = "report"
) -> Sequence[Explanation]:
    """Labels that this scorer has not scored yet."""
    return job.store.explanations_to_score(
        job.dictionary_id, explainer, scorer, method_of(config), config.model, template_of(scorer, job.prompts).sha256,
        part, job.selection, control=control, seed=config.seed,
    )  # fmt: skip


async def score_choices(
    job: Job, scorer: str, explainer: str, config: ScoreConfig, control: str | None, pending: Sequence[Explanation],
    writer: GroupWriter, client: LlmClient, outcome: Outcome, part: Part = "report",
) -> None:  # fmt: skip
    """Scores the pending labels by one of CHOICE_SCORERS; `outcome` is added to. Raises what ends a run."""
    judge = Judge.of(scorer, config, config.seed, job.prompts)

    async def work(item: Questioned) -> None:
        planned = plan(scorer, item.examples, config, job.dictionary_id)
        rounds: list[list[Answer]] = []
        for asked in planned:
            tasks = [asyncio.create_task(_ask(job, judge, client, item.label, batch)) for batch in asked]
            # Where one of them ends the run the others end by themselves: what is in flight is paid for, and kept.
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
            rounds.append([answer for task in tasks for answer in task.result()])
            if decide(rounds, len(planned), config):
                break
        identity = Identity(
            item.explanation, job.harvest_id, method_of(config), control, config.model, judge.template.sha256,
            config.seed,
        )  # fmt: skip
        answers = [answer for one in rounds for answer in one]
        rows = choice_rows(identity, scorer, answers, part, interval_z(config, len(planned)))
        await asyncio.gather(*(writer.score(row) for row in rows))
        outcome.statuses[rows[-1].status] += 1
        job.report(outcome.done, outcome.pending)

    calls = ROUND if stops_early(config) else -(-4 * config.contexts // config.examples_per_call)
    workers = 2 + 2 * job.in_flight // max(1, calls)
    load = ChoiceLoader(job, scorer, config, pending, stand_ins(job, explainer, config.seed, control, pending), part)
    await run_pool(Blocks(range(len(pending)), load, size=16), min(workers, len(pending)), work, client.stop)


class ChoiceLoader:
    """Reads the contexts of a block of labels and draws the questions; called in a worker thread."""

    def __init__(
        self,
        job: Job,
        scorer: str,
        config: ScoreConfig,
        pending: Sequence[Explanation],
        told: Sequence[Explanation | None],
        part: Part = "report",
    ) -> None:
        self._part: Part = part
        self._job, self._scorer, self._config, self._pending, self._told = job, scorer, config, pending, told

    def __call__(self, places: list[int]) -> list[Questioned]:
        job, n, seed = self._job, self._config.contexts, self._config.seed
        features = list(dict.fromkeys(self._pending[i].feature for i in places))
        limits = {"top": 2 * n, "sampled": None, "negative": None}
        contexts = job.store.contexts_of(job.dictionary_id, job.harvest_id, features, self._part, limits)
        examples = {f: choose_examples(self._scorer, contexts[f], n, seed, job.dictionary_id) for f in features}
        return [Questioned(self._pending[i], self._told[i], examples[self._pending[i].feature]) for i in places]


async def _ask(job: Job, judge: Judge, client: LlmClient, label: str, examples: Sequence[Example]) -> list[Answer]:
    """One request and, after an unusable reply, a second one. A prompt that is too long is parted into two."""
    asked = await ask(client, Batch(judge, label, examples, job.dictionary_id))
    if asked.status == "ctx_too_long" and len(examples) > 1:
        half = len(examples) // 2
        return [
            *await _ask(job, judge, client, label, examples[:half]),
            *await _ask(job, judge, client, label, examples[half:]),
        ]
    said: Sequence[bool | None] = [None] * len(examples) if asked.value is None else asked.value
    return [answer_of(e, s, asked.status, asked.error) for e, s in zip(examples, said, strict=True)]


def forecast_choices(
    job: Job, scorer: str, config: ScoreConfig, pending: Sequence[Explanation], part: Part = "report"
) -> Estimate:
    """For the pending labels, from a few of them. With a stop rule the most that it can come to, and what is likely if
    judges do as well as in earlier scores."""
    if not pending:
        return Estimate()
    judge = Judge.of(scorer, config, config.seed, job.prompts)
    load = ChoiceLoader(job, scorer, config, pending, pending, part)
    some = load(list(range(0, len(pending), max(1, len(pending) // 8))))
    asked = [(item, batch) for item in some for batch in batches(item.examples, config.examples_per_call)]
    requests = [judge.request(item.explanation.text or "", batch, job.dictionary_id) for item, batch in asked]
    written = sum(3 * len(batch) for _, batch in asked)  # "[1, 0, 1]"
    likely = 1.0
    if stops_early(config):
        before = earlier_scores(job.store, job.dictionary_id, scorer, config.model, part)
        likely = likely_share([plan(scorer, item.examples, config, job.dictionary_id) for item in some], config, before)
    return Estimate.of(requests, len(pending) / len(some), written, likely)
