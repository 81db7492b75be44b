"""Asking one question: a request, and a second one where the reply to the first is of no use.

A question does no I/O: it builds its requests and reads their replies. `ask` is the only function that sends them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

from autointerp.ask.chat import ReplyError
from autointerp.errors import AutointerpError
from autointerp.llm.capabilities import Capabilities, probe
from autointerp.llm.client import LlmClient
from autointerp.llm.requests import Reply, Request

T = TypeVar("T")
Read = TypeVar("Read", covariant=True)
D = TypeVar("D", bound="Divides[Any]")


class Question(Protocol[Read]):
    """What an endpoint can be asked, and how its answer is read."""

    @property
    def request(self) -> Request: ...

    def read(self, reply: Reply) -> Read:
        """The answer in a reply whose status is 'ok'. Raises ReplyError."""

    def again(self, reply: str, problem: str) -> Request | None:
        """The request that asks once more after an unusable reply; None where it would bring the same reply."""


@runtime_checkable
class Shortens(Protocol):
    """A question that can be asked with a shorter prompt."""

    def shorter(self) -> Self | None:
        """This question with a shorter prompt; None if it cannot be shortened."""


class Divides(Question[Read], Protocol):
    """A question about several things, which can be asked as two questions about half of them each."""

    def halves(self) -> tuple[Self, Self] | None:
        """Two questions that together ask this one; None if it is about one thing only."""


@dataclass(frozen=True)
class Asked(Generic[T]):
    """The outcome of a question. `value` is None unless status is 'ok'."""

    value: T | None
    status: str
    """'ok'; 'gave_up' where the endpoint did (the next run asks again); what the endpoint said of the request (refused,
    filtered, truncated, ctx_too_long); or the ReplyError's status, where both replies were unusable."""
    error: str | None = None
    replies: tuple[Reply, ...] = ()
    """All that came, in order: what the answer has cost."""


async def ask(client: LlmClient, question: Question[T]) -> Asked[T]:
    """The answer to `question`: after two requests at most, and those refused for their length, of which a question
    that can be asked in fewer words may have several. Raises what ends a run of the client."""
    replies = [await client.ask(question.request)]
    while replies[-1].status == "ctx_too_long" and isinstance(question, Shortens):
        shorter = question.shorter()
        if shorter is None:
            break
        question = shorter
        replies.append(await client.ask(question.request))
    for last in (False, True):
        reply = replies[-1]
        if not reply.ok:
            status = "gave_up" if reply.status in ("gave_up", "bad_reply") else reply.status
            return Asked(None, status, reply.error, tuple(replies))
        try:
            return Asked(question.read(reply), "ok", None, tuple(replies))
        except ReplyError as problem:
            second = None if last or problem.is_final else question.again(reply.text, str(problem))
            if second is None:
                return Asked(None, problem.status, str(problem), tuple(replies))
        replies.append(await client.ask(second))
    raise AssertionError("the second reading returns")


async def side_by_side(askings: Iterable[Awaitable[T]]) -> list[T]:
    """All results, in order. Where one of them ends the run, the others end by themselves before the error is raised:
    what is in flight is paid for, and written down."""
    results = await asyncio.gather(*askings, return_exceptions=True)
    found: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        found.append(result)
    return found


class Asker:
    """One endpoint, and the ways to put questions to it. Every method raises what ends a run of the client."""

    def __init__(self, client: LlmClient) -> None:
        self.client = client
        self._capabilities: Capabilities | None = None

    async def ask(self, question: Question[T]) -> Asked[T]:
        """The answer to one question."""
        return await ask(self.client, question)

    async def ask_all(self, questions: Iterable[Question[T]]) -> list[Asked[T]]:
        """The answers to several questions, asked side by side, in their order."""
        return await side_by_side(ask(self.client, question) for question in questions)

    async def ask_divided(self, questions: Iterable[D]) -> list[tuple[D, Asked[Any]]]:
        """Several questions, asked side by side; one that is too long for the endpoint is asked as its two halves. The
        questions as they were asked, each with its answer, in order."""
        found = await side_by_side(self._divided(question) for question in questions)
        return [one for parts in found for one in parts]

    async def _divided(self, question: D) -> list[tuple[D, Asked[Any]]]:
        asked = await ask(self.client, question)
        halves = question.halves() if asked.status == "ctx_too_long" else None
        if halves is None:
            return [(question, asked)]
        return [*await self._divided(halves[0]), *await self._divided(halves[1])]

    async def capabilities(self) -> Capabilities:
        """What the endpoint supports; it is probed once."""
        if self._capabilities is None:
            self._capabilities = await probe(self.client)
        return self._capabilities

    def stop(self, error: AutointerpError) -> None:
        """Nothing is sent after this."""
        self.client.stop(error)
