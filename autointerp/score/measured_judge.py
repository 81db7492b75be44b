"""From one label and what the model answered about it to its score rows; an LLM is asked where the scorer wants one.

A judge is called as `await judge(identity, item)`; None means that the label waits for the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from autointerp.ask.chat import ReplyError
from autointerp.ask.job import BLOCK, Job
from autointerp.llm.client import LlmClient
from autointerp.llm.requests import Reply, Request
from autointerp.records import MeasureTask, Score
from autointerp.score import generation, intervention, output
from autointerp.score.auroc import auroc_rows, number_answer
from autointerp.score.generation import Author, Texts
from autointerp.score.local_embedding import similarity_answers
from autointerp.score.measured_load import Item
from autointerp.score.measured_tasks import measure_task
from autointerp.score.output import Choice, Chooser, Question, ShownText
from autointerp.score.score_rows import Identity
from autointerp.score.surprisal import SURPRISAL, surprisal_answers

Read = TypeVar("Read")
Judge = Callable[[Identity, Item], Coroutine[Any, Any, list[Score] | None]]


@dataclass(frozen=True)
class ContextJudge:
    """surprisal and embedding: the model gave every context a number."""

    scorer: str
    n_boot: int

    async def __call__(self, identity: Identity, item: Item) -> list[Score] | None:
        measured = item.measurement
        if measured is None:
            return None
        if measured.status != "ok":
            answers = [number_answer(e, None, measured.status, measured.error) for e in item.examples]
        elif self.scorer == SURPRISAL:
            answers = surprisal_answers(item.examples, measured.result or {})
        else:
            answers = similarity_answers(item.examples, measured.result or {})
        return auroc_rows(identity, self.scorer, answers, self.n_boot)


async def judge_intervention(identity: Identity, item: Item) -> list[Score] | None:
    """The language model's numbers, as they are."""
    measured = item.measurement
    if measured is None:
        return None
    if measured.status != "ok":
        return intervention.failed_rows(identity, measured.status, measured.error)
    return intervention.intervention_rows(identity, len(item.prompts), measured.result or {})


@dataclass(frozen=True)
class OutputJudge:
    """output: the questions about the feature's texts, and the same ones about random features' texts, in turn."""

    job: Job
    client: LlmClient
    chooser: Chooser

    async def __call__(self, identity: Identity, item: Item) -> list[Score] | None:
        measured = item.measurement
        if measured is None:
            return None
        if measured.status != "ok":
            return output.failed_rows(identity, measured.status, measured.error)
        own, floor = output.asked_about(item.questions, *output.shown_texts(item.prompts, measured.result or {}))
        feature = item.explanation.feature
        tasks = [asyncio.create_task(self._ask(question, texts, feature)) for question, texts in (*own, *floor)]
        # Where one of them ends the run the others end by themselves: what is in flight is paid for, and written down.
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        choices = [task.result() for task in tasks]
        options = len(item.questions[0].labels)
        return output.output_rows(identity, options, choices[: len(own)], choices[len(own) :])

    async def _ask(self, question: Question, texts: Sequence[ShownText], feature: int) -> Choice:
        request = self.chooser.request(question, texts, self.job.dictionary_id, feature)
        found = await _ask(
            self.client, request, lambda reply, problem: self.chooser.again(request, reply, problem, question),
            lambda reply: self.chooser.read(reply, question),
        )  # fmt: skip
        return found if isinstance(found, Choice) else Choice(None, found.status, found.error)


@dataclass
class GenerationJudge:
    """generation: an LLM writes the texts, which then are the task; the model's numbers are taken as they are."""

    job: Job
    client: LlmClient
    author: Author
    waiting: list[MeasureTask] = field(default_factory=list)
    """Tasks not written yet: a commit for each would cost more than all else about it."""

    async def __call__(self, identity: Identity, item: Item) -> list[Score] | None:
        feature = item.explanation.feature
        request = self.author.request(item.label, item.excerpts, self.job.dictionary_id, feature)
        texts = await _ask(
            self.client, request, lambda reply, problem: self.author.again(request, reply, problem), self.author.read
        )
        if not isinstance(texts, Texts):
            n = 2 * self.author.config.sentences
            return generation.failed_rows(identity, texts.status, n, n, texts.error)
        task = measure_task(item.explanation, "activations", texts.payload)
        measured = self.job.store.measurements_of([task.task_id]).get(task.task_id)
        if measured is None:
            self.waiting.append(task)
            if len(self.waiting) >= BLOCK:
                self.flush()
            return None
        n = len(texts.active) + len(texts.silent)
        if measured.status != "ok":
            return generation.failed_rows(identity, measured.status, n, n, measured.error)
        return generation.generation_rows(identity, texts, measured.result or {})

    def flush(self) -> None:
        """Writes down what was asked. A store that failed (full disk) has said so to whoever wrote to it first."""
        if self.job.store.failed is None:
            self.job.store.insert_tasks(self.waiting)
        self.waiting = []


@dataclass(frozen=True)
class Unanswered:
    """Why an LLM's reply holds nothing to go on."""

    status: str
    error: str | None


async def _ask(
    client: LlmClient, request: Request, again: Callable[[str, str], Request], read: Callable[[Reply], Read]
) -> Read | Unanswered:
    """One request and, after an unusable reply, a second one: `again(reply, problem)`."""
    reply = await client.ask(request)
    for last in (False, True):
        if not reply.ok:
            # An envelope that could not be read is the endpoint's state, so asked for again by the next run.
            return Unanswered("gave_up" if reply.status == "bad_reply" else reply.status, reply.error)
        try:
            return read(reply)
        except ReplyError as problem:
            if last:
                return Unanswered(problem.status, str(problem))
            reply = await client.ask(again(reply.text, str(problem)))
    raise AssertionError("the second reading returns")
