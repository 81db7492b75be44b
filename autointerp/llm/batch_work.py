"""What the batch client keeps in mind: who waits for which reply, and what has become of a batch so far."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field

from autointerp.errors import AutointerpError
from autointerp.llm.budget import Reservation
from autointerp.llm.requests import Reply, Request
from autointerp.records import BatchedRequest, BatchRecord, CallRecord


@dataclass
class Waiting:
    """A request that somebody asks about, until it has its reply."""

    request: Request
    reply: asyncio.Future[Reply]
    failures: int = 0
    """Batches that brought no usable reply."""
    bad: list[CallRecord] = field(default_factory=list)
    """Those of them that were billed, as they are in the ledger."""

    def answer(self, reply: Reply) -> None:
        """With what the unusable replies took."""
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
            self.reply.exception()  # an asker that was cancelled will not fetch it


@dataclass
class Batch:
    """One batch that is under way, from the book or just written into it."""

    record: BatchRecord
    requests: dict[str, BatchedRequest]
    """By custom_id."""
    reserved: dict[str, Reservation] = field(default_factory=dict)
    """Of the budget; nothing where an earlier process has sent the batch: that run has paid for it."""
    lines: bytes = b""
    """The file, until it is uploaded."""
    resumed: bool = False
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set from when the endpoint has said that it has not ended until it says that it has."""
    done: set[str] = field(default_factory=set)
    """Whose outcome is in the ledger."""
    failures: dict[str, Exception] = field(default_factory=dict)
    billed: set[str] = field(default_factory=set)
    """Whose unusable reply was recorded."""
    strays: int = 0
    """Lines that belong to no request of the batch."""
