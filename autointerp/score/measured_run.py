"""Scores that need the model too, for many labels: what is asked of it is written into the store as tasks, and a label
whose task `autointerp measure` has answered is judged. The first run asks, the one after the measurement finishes.

Nothing is remembered between the two but the store: a task is named by its own content, and texts that an LLM wrote for
one come back out of the call ledger, so the second run finds the very tasks of the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

from autointerp.ask.forecast import Estimate
from autointerp.ask.job import BLOCK, Blocks, Job, Outcome, run_pool
from autointerp.ask.prompts import load_template
from autointerp.config import ScoreConfig
from autointerp.errors import AutointerpError, InputError
from autointerp.llm.client import LlmClient
from autointerp.llm.requests import Request
from autointerp.records import Explanation
from autointerp.score.controls import stand_ins
from autointerp.score.embedding import COSINE, EMBEDDING, is_local
from autointerp.score.generation import GENERATION, SENTENCES, Author
from autointerp.score.intervention import INTERVENTION, LABEL_GAIN
from autointerp.score.measured_judge import ContextJudge, GenerationJudge, Judge, OutputJudge, judge_intervention
from autointerp.score.measured_load import Item, MeasuredLoader
from autointerp.score.output import CHOOSE_LABEL, OUTPUT, QUESTIONS, Chooser, ShownText, asked_about, shown_texts
from autointerp.score.score_rows import Identity
from autointerp.score.surprisal import LANGUAGE_MODEL, SUBJECT_MODEL, SURPRISAL
from autointerp.store.group_writer import GroupWriter

METHOD_OF = {
    GENERATION: SENTENCES,
    OUTPUT: CHOOSE_LABEL,
    SURPRISAL: LANGUAGE_MODEL,
    INTERVENTION: LABEL_GAIN,
    EMBEDDING: COSINE,
}
MEASURED_SCORERS = tuple(METHOD_OF)
ASK_AN_LLM = (GENERATION, OUTPUT)
_CALLS = {GENERATION: 1, OUTPUT: 2 * QUESTIONS}
"""Requests about one label: texts once; every question about the feature's texts and about a random feature's."""
_TOKEN, _SENTENCE, _CHOICE = 4, 100, 14
"""Characters of what is not written yet, for forecasts: a steered token, a sentence, a choice."""


# --- which scorers, and which labels --------------------------------------------------------------------------------


def measured_scorers(config: ScoreConfig) -> list[str]:
    """Those that are configured and need `autointerp measure`, each once, in the order given. `embedding` is one of
    them where its model is a folder on this machine."""
    needing = [s for s in dict.fromkeys(config.scorers) if s in METHOD_OF]
    return [s for s in needing if s != EMBEDDING or is_local(config)]


def check_measured(config: ScoreConfig) -> None:
    """InputError where a configured scorer lacks the model that it asks."""
    for scorer in measured_scorers(config):
        if scorer in ASK_AN_LLM and not config.model:
            raise InputError(f"scorer {scorer!r} asks an LLM; set score.model (and score.base_url)")


def model_of(scorer: str, config: ScoreConfig) -> str:
    """Whose judgement a score is: `scores.model`."""
    if scorer in ASK_AN_LLM:
        return config.model
    return config.embedding_model if scorer == EMBEDDING else config.language_model or SUBJECT_MODEL


def pending_measured(
    job: Job, explainer: str, config: ScoreConfig, control: str | None
) -> dict[str, Sequence[Explanation]]:
    """Labels that each of the configured scorers has not scored yet, whether they were measured or not."""
    return {
        scorer: job.store.explanations_to_score(
            job.dictionary_id, explainer, scorer, METHOD_OF[scorer], model_of(scorer, config),
            load_template(f"score/{scorer}", job.prompts).sha256, "report", job.selection, control=control,
            seed=config.seed,
        )
        for scorer in measured_scorers(config)
    }  # fmt: skip


# --- the run --------------------------------------------------------------------------------------------------------


async def score_all_measured(
    job: Job, explainer: str, config: ScoreConfig, control: str | None, outcome: Outcome
) -> Outcome:
    """Asks and judges by every configured scorer that needs the model; `outcome` is added to and given back. An
    endpoint is only spoken to where a scorer asks an LLM."""
    pending = {scorer: labels for scorer, labels in pending_measured(job, explainer, config, control).items() if labels}
    outcome.pending += sum(map(len, pending.values()))
    if not pending:
        return outcome
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(GroupWriter(job.store))
        client: LlmClient | None = None
        if any(scorer in ASK_AN_LLM for scorer in pending):
            client = await stack.enter_async_context(job.client(config, writer))
        for scorer, labels in pending.items():
            await score_measured(job, scorer, explainer, config, control, labels, writer, client, outcome)
    methods = [outcome.method, *(METHOD_OF[scorer] for scorer in pending)]
    outcome.method = ", ".join(method for method in methods if method)
    return outcome


async def score_measured(
    job: Job, scorer: str, explainer: str, config: ScoreConfig, control: str | None, pending: Sequence[Explanation],
    writer: GroupWriter, client: LlmClient | None, outcome: Outcome,
) -> None:  # fmt: skip
    """Asks and judges the pending labels by one of MEASURED_SCORERS; `outcome` is added to. Raises what ends a run."""
    told = stand_ins(job, explainer, config.seed, control, pending)
    loader = MeasuredLoader(job, scorer, explainer, config, pending, told)
    judge = _judge(job, scorer, config, client)

    async def work(item: Item) -> None:
        identity = Identity(
            item.explanation, job.harvest_id, METHOD_OF[scorer], control, model_of(scorer, config),
            loader.template.sha256, config.seed,
        )  # fmt: skip
        rows = await judge(identity, item)
        if rows is None:
            outcome.waiting += 1
        else:
            # The writer keeps the order: the headline, without which a label counts as not scored, comes last.
            await asyncio.gather(*(writer.score(row) for row in rows))
            outcome.statuses[rows[-1].status] += 1
        job.report(outcome.done + outcome.waiting, outcome.pending)

    workers = 2 + 2 * job.in_flight // _CALLS.get(scorer, 1)
    try:
        blocks = Blocks(range(len(pending)), loader, size=BLOCK)
        await run_pool(blocks, min(workers, len(pending)), work, _no_client if client is None else client.stop)
    finally:
        if isinstance(judge, GenerationJudge):
            # Also where the run was stopped: what was asked by then can be measured meanwhile.
            judge.flush()


def _judge(job: Job, scorer: str, config: ScoreConfig, client: LlmClient | None) -> Judge:
    if scorer in ASK_AN_LLM:
        assert client is not None, scorer
        if scorer == GENERATION:
            return GenerationJudge(job, client, Author.of(config, job.prompts))
        return OutputJudge(job, client, Chooser.of(config, job.prompts))
    return judge_intervention if scorer == INTERVENTION else ContextJudge(scorer, config.bootstrap)


def _no_client(error: AutointerpError) -> None:
    """Nobody has to be told that the run ends."""


# --- forecasts ------------------------------------------------------------------------------------------------------


def forecast_measured(
    job: Job, scorer: str, explainer: str, config: ScoreConfig, pending: Sequence[Explanation]
) -> Estimate:
    """What the pending labels still need of the endpoint, measured or
    not, estimated from a few of them; nothing where the scorer asks no LLM."""
    if not pending or scorer not in ASK_AN_LLM:
        return Estimate()
    loader = MeasuredLoader(job, scorer, explainer, config, pending, pending)
    some = loader.with_measurements(loader.prepared(range(0, len(pending), max(1, len(pending) // 8))))
    if scorer == GENERATION:
        author = Author.of(config, job.prompts)
        asked = [author.request(i.label, i.excerpts, job.dictionary_id, i.explanation.feature) for i in some]
        written = 2 * config.sentences * _SENTENCE
    else:
        chooser = Chooser.of(config, job.prompts)
        asked = [request for item in some for request in _output_requests(job, chooser, item)]
        written = _CHOICE
    # Texts that wait for the model are paid for already.
    asked = [request for request in asked if job.store.find_call(request.sha256, request.sample) is None]
    return Estimate.of(asked, len(pending) / len(some), len(asked) * written)


def _output_requests(job: Job, chooser: Chooser, item: Item) -> list[Request]:
    """The requests about one label; with filling in place of texts that the model has not written yet."""
    measured = item.measurement
    if measured is None:
        filling = "x" * (_TOKEN * chooser.config.steered_tokens)
        own = [ShownText(prompt, filling, filling) for prompt in item.prompts]
        others = [own]
    elif measured.status == "ok":
        own, others = shown_texts(item.prompts, measured.result or {})
    else:
        return []
    first, floor = asked_about(item.questions, own, others)
    feature = item.explanation.feature
    return [chooser.request(question, texts, job.dictionary_id, feature) for question, texts in (*first, *floor)]
