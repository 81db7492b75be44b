"""Scores by `embedding` for many labels: the label in one request, its contexts a few at a time in others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from autointerp.ask.chat import ReplyError
from autointerp.ask.forecast import Estimate
from autointerp.ask.job import Blocks, Job, Outcome, run_pool
from autointerp.ask.question import Asked, ask, side_by_side
from autointerp.config import EndpointConfig, ScoreConfig
from autointerp.llm.client import LlmClient
from autointerp.records import Explanation
from autointerp.score.auroc import auroc_rows, number_answer
from autointerp.score.choice_run import ChoiceLoader, Questioned
from autointerp.score.choices import DETECTION, Example
from autointerp.score.controls import stand_ins
from autointerp.score.embedding import COSINE, EMBEDDING, Embedder, cosine, in_batches, template_of
from autointerp.score.score_rows import Answer, Identity
from autointerp.store.group_writer import GroupWriter

Embedded = tuple[Example, Asked[list[float]]]


def endpoint_of(config: ScoreConfig) -> EndpointConfig:
    """Where embeddings are asked for: the scorer's endpoint, with another model."""
    return replace(config, model=config.embedding_model)


def pending_embeddings(job: Job, explainer: str, config: ScoreConfig, control: str | None) -> Sequence[Explanation]:
    """Labels that this scorer has not scored yet."""
    return job.store.explanations_to_score(
        job.dictionary_id, explainer, EMBEDDING, COSINE, config.embedding_model, template_of(job.prompts).sha256,
        "report", job.selection, control=control, seed=config.seed,
    )  # fmt: skip


async def score_embeddings(
    job: Job, explainer: str, config: ScoreConfig, control: str | None, pending: Sequence[Explanation],
    writer: GroupWriter, client: LlmClient, outcome: Outcome,
) -> None:  # fmt: skip
    """Scores the pending labels; `client` is for `endpoint_of(config)`, `outcome` is added to. Raises what ends a
    run."""
    embedder = Embedder.of(endpoint_of(config), job.prompts)

    async def work(item: Questioned) -> None:
        answers = await _answers(job, embedder, client, item) if item.examples else []
        identity = Identity(
            item.explanation, job.harvest_id, COSINE, control, config.embedding_model, embedder.template.sha256,
            config.seed,
        )  # fmt: skip
        rows = auroc_rows(identity, EMBEDDING, answers, config.bootstrap)
        await asyncio.gather(*(writer.score(row) for row in rows))
        outcome.statuses[rows[-1].status] += 1
        job.report(outcome.done, outcome.pending)

    workers = 2 + job.in_flight // 3
    load = ChoiceLoader(job, DETECTION, config, pending, stand_ins(job, explainer, config.seed, control, pending))
    await run_pool(Blocks(range(len(pending)), load, size=16), min(workers, len(pending)), work, client.stop)


async def _answers(job: Job, embedder: Embedder, client: LlmClient, item: Questioned) -> list[Answer]:
    question = embedder.label_question(item.label, job.dictionary_id, item.explanation.feature)
    label = await ask(client, question)
    if label.value is None:  # without it, its contexts' vectors are of no use
        return [number_answer(e, None, label.status, label.error) for e in item.examples]
    found = await side_by_side(_ask(job, embedder, client, batch) for batch in in_batches(item.examples))
    return [_compared(label.value[0], e, context) for batch in found for e, context in batch]


async def _ask(job: Job, embedder: Embedder, client: LlmClient, examples: Sequence[Example]) -> list[Embedded]:
    """The contexts' vectors. Texts that are too long together are parted into two."""
    asked = await ask(client, embedder.context_question(examples, job.dictionary_id))
    if asked.status == "ctx_too_long" and len(examples) > 1:
        half = len(examples) // 2
        return [
            *await _ask(job, embedder, client, examples[:half]),
            *await _ask(job, embedder, client, examples[half:]),
        ]
    vectors: Sequence[list[float] | None] = [None] * len(examples) if asked.value is None else asked.value
    return [(e, Asked(v, asked.status, asked.error)) for e, v in zip(examples, vectors, strict=True)]


def _compared(label: list[float], example: Example, context: Asked[list[float]]) -> Answer:
    if context.value is None:
        return number_answer(example, None, context.status, context.error)
    try:
        return number_answer(example, cosine(label, context.value), "ok")
    except ReplyError as problem:
        return number_answer(example, None, problem.status, str(problem))


def forecast_embeddings(job: Job, config: ScoreConfig, pending: Sequence[Explanation]) -> Estimate:
    """For the pending labels, estimated from a few of them. The contexts of a feature are
    counted once for all its labels."""
    if not pending:
        return Estimate()
    embedder = Embedder.of(endpoint_of(config), job.prompts)
    load = ChoiceLoader(job, DETECTION, config, pending, pending)
    drawn = load(list(range(0, len(pending), max(1, len(pending) // 8))))
    some = [item for item in drawn if item.examples]
    labels, features = (n / len(drawn) for n in (len(pending), len({e.feature for e in pending})))
    calls = labels * len(some) + features * sum(len(in_batches(item.examples)) for item in some)
    read = labels * sum(len(embedder.query(item.explanation.text or "")) for item in some)
    read += features * sum(len(embedder.text(e)) for item in some for e in item.examples)
    return Estimate(calls, read)
