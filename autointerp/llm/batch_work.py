"""The batch client's memory: which callers wait for which reply, and how far each batch has come."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field

from autointerp.errors import AutointerpError
from autointerp.llm.budget import Reservation
from autointerp.llm.replies import Usage
from autointerp.llm.requests import Reply, Request
from autointerp.records import BatchedRequest, BatchRecord, CallRecord


@dataclass
class Waiting:
    """A request whose caller waits for the reply."""

    request: Request
    reply: asyncio.Future[Reply]
    failures: int = 0
    """Number of batches that brought no usable reply."""
    bad: list[CallRecord] = field(default_factory=list)
    """The unusable replies that were billed, as the ledger has them."""

    def answer(self, reply: Reply) -> None:
        """Give the caller its reply, with the tokens and cost of the unusable replies added."""
        if self.reply.done():
            return
        self.reply.set_result(
            dataclasses.replace(
                reply,
                input_tokens=reply.input_tokens + sum(r.input_tokens for r in self.bad),
                cached_tokens=reply.cached_tokens + sum(r.cached_tokens for r in self.bad),
                output_tokens=reply.output_tokens + sum(r.output_tokens for r in self.bad),
                cost_usd=reply.cost_usd + sum(r.cost_usd for r in self.bad),
                attempts=reply.attempts + len(self.bad),
            )
        )

    def fail(self, error: AutointerpError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
            self.reply.exception()  # fetched here, since a cancelled caller will not, and asyncio would complain


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one request of a batch."""

    status: str
    reply: str | None
    """The reply as it is stored."""
    error: str | None
    used: Usage
    usd: float
    attempts: int = 1


@dataclass
class Batch:
    """One batch under way, new or read from the book."""

    record: BatchRecord
    requests: dict[str, BatchedRequest]
    """The batch's requests by custom_id."""
    reserved: dict[str, Reservation] = field(default_factory=dict)
    """What the budget holds for each request, by custom_id. Empty where an earlier process sent and paid the batch."""
    lines: bytes = b""
    """The file's content, until it is uploaded."""
    resumed: bool = False
    """Whether an earlier process began it."""
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the endpoint's last answer is that the batch has not ended."""
    done: set[str] = field(default_factory=set)
    """custom_ids of requests whose outcome is in the ledger."""
    failures: dict[str, Exception] = field(default_factory=dict)
    billed: set[str] = field(default_factory=set)
    """custom_ids of requests whose unusable reply was recorded."""
    strays: int = 0
    """Number of result lines that belong to no request of the batch."""
