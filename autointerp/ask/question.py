"""Asking one question: a request, and a second one where the reply to the first is of no use.

A question is without I/O: it builds its requests and reads their replies. `ask` is the only part that sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from autointerp.ask.chat import ReplyError
from autointerp.llm.client import LlmClient
from autointerp.llm.requests import Reply, Request

T = TypeVar("T")
Read = TypeVar("Read", covariant=True)


class Question(Protocol[Read]):
    """What can be asked of an endpoint, and how its answer is read."""

    @property
    def request(self) -> Request: ...

    def read(self, reply: Reply) -> Read:
        """The answer in a reply whose status is 'ok'. Raises ReplyError."""

    def again(self, reply: str, problem: str) -> Request | None:
        """The request that asks once more after an unusable reply; None where that would bring the same."""


@dataclass(frozen=True)
class Asked(Generic[T]):
    """What came of a question: a value where status is 'ok', none otherwise."""

    value: T | None
    status: str
    """'ok'; 'gave_up' where the endpoint did (asked again by the next run); what the endpoint said of the request
    (refused, filtered, truncated, ctx_too_long); or the ReplyError's, where both replies were unusable."""
    error: str | None = None


async def ask(client: LlmClient, question: Question[T]) -> Asked[T]:
    """The answer to `question`, after two requests at most. Raises what ends a run of the client."""
    reply = await client.ask(question.request)
    for last in (False, True):
        if not reply.ok:
            return Asked(None, "gave_up" if reply.status in ("gave_up", "bad_reply") else reply.status, reply.error)
        try:
            return Asked(question.read(reply), "ok")
        except ReplyError as problem:
            second = None if last else question.again(reply.text, str(problem))
            if second is None:
                return Asked(None, problem.status, str(problem))
        reply = await client.ask(second)
    raise AssertionError("the second reading returns")


async def side_by_side(askings: Iterable[Awaitable[T]]) -> list[T]:
    """All results, in order. Where one of them ends the run, the others end by themselves before that is raised: what
    is in flight is paid for, and written down."""
    results = await asyncio.gather(*askings, return_exceptions=True)
    found: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        found.append(result)
    return found
