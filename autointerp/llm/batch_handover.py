"""Brings a file of requests to an ended batch: upload, creation, search for what another process began, polling.

Every call about a batch is tried again for a quarter of an hour. If it still fails, the run ends, but not the batch: it
goes on at the endpoint and stays in the book.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from autointerp.config import EndpointConfig, LlmConfig
from autointerp.errors import AutointerpError, InputError, StoppedError
from autointerp.llm.batch_files import ENDED, BatchState
from autointerp.llm.batch_transport import BatchTransport
from autointerp.llm.batch_work import Batch
from autointerp.llm.client import ClientCounts
from autointerp.llm.endpoint_errors import AttemptError, EndpointCredentialsError, RequestRefusedError
from autointerp.llm.ledger import BatchBook
from autointerp.llm.retry import Attempts, RetryPolicy, retrying_alone

T = TypeVar("T")
PATIENCE = 20
"""Attempts at one call about a batch. With waits of up to a minute they outlast an outage of a quarter of an hour."""
LONGEST_S = 48 * 3600.0
"""Twice the completion window. After this a run no longer waits for a batch, but the batch stays in the book, unless
the endpoint no longer knows it."""


class Handover:
    """The calls about batches at one endpoint. `say` gets a line about each thing that happens to a batch."""

    def __init__(
        self, endpoint: EndpointConfig, llm: LlmConfig, calls: BatchTransport, book: BatchBook, retry: RetryPolicy,
        counts: ClientCounts, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._endpoint = endpoint
        self._llm = llm
        self._calls = calls
        self._book = book
        self._retry = retry
        self._counts = counts
        self._say = say

    async def hand_over(self, batch: Batch) -> BatchState:
        """Upload the batch's file and create the batch."""
        record = batch.record
        await self._book.begin(record, list(batch.requests.values()))
        file_id = await self.persist(lambda: self._calls.upload(f"{record.batch_key}.jsonl", batch.lines))
        batch.lines = b""
        await self._book.update(record.batch_key, "uploading", input_file_id=file_id)
        metadata = {"program": "autointerp", "batch_key": record.batch_key}
        tried = False

        async def create() -> BatchState:
            nonlocal tried
            known = await self._search(record.batch_key) if tried else None  # only the reply may have been lost
            tried = True
            return known or await self._calls.create(file_id, record.kind, metadata)

        state = await self.persist(create)
        await self._book.update(record.batch_key, "created", batch_id=state.batch_id)
        self._counts.sent += len(batch.requests)
        self._say(f"batch {state.batch_id} of {len(batch.requests):,} requests was handed over; waiting for it")
        return state

    async def find_again(self, batch: Batch) -> BatchState | None:
        """The state of an earlier process's batch; None where it was never created, or where the endpoint has forgotten
        it because of its age."""
        record = batch.record
        if record.batch_id is None:
            state = await self.persist(lambda: self._search(record.batch_key))
            if state is None:
                await self._book.finish(record.batch_key, "never_created")
            else:
                await self._book.update(record.batch_key, "created", batch_id=state.batch_id)
            return state
        batch_id = record.batch_id
        try:
            return await self.persist(lambda: self._calls.state(batch_id))
        except EndpointCredentialsError as error:
            if error.http_status != 404:
                raise
        if time.time() - record.created_at > LONGEST_S:
            await self._book.finish(record.batch_key, "lost", "the endpoint no longer knows it")
            return None
        raise InputError(
            f"{self._endpoint.address} knows no batch {batch_id}, which an earlier run handed over and paid for; "
            f"use the key of the same project (it is given up {LONGEST_S / 3600:.0f} hours after its creation)"
        )

    async def _search(self, batch_key: str) -> BatchState | None:
        """The batch with our key; None if there is no such batch, or if the endpoint cannot list batches."""
        try:
            return await self._calls.with_key(batch_key)
        except (EndpointCredentialsError, RequestRefusedError) as error:
            if error.http_status not in (404, 405):
                raise
            return None

    async def until_ended(self, batch: Batch, state: BatchState) -> BatchState:
        """Poll until the batch has ended; return its last state."""
        pause = first = self._llm.batch_poll_seconds
        batch_id = state.batch_id
        while state.status not in ENDED:
            batch.looked.set()
            if time.time() - batch.record.created_at > LONGEST_S:
                raise StoppedError(
                    f"batch {batch_id} is still {state.status} after {LONGEST_S / 3600:.0f} hours; what is done is "
                    "kept, and the same command goes on waiting for it"
                )
            await asyncio.sleep(pause)
            pause = min(1.25 * pause, 10 * first)
            state = await self.persist(lambda: self._calls.state(batch_id))
        batch.looked.clear()
        return state

    def refusal(self, state: BatchState, n: int) -> AutointerpError:
        reason = state.errors or "no reason was given"
        why = f"{self._endpoint.address} did not take the batch {state.batch_id}: {reason}"
        if "token_limit" in state.errors:
            return StoppedError(
                f"{why}; wait for other batches, or lower llm.batch_in_flight, so that fewer than {n:,} requests are "
                "sent together"
            )
        if "billing" in state.errors or "quota" in state.errors:
            return StoppedError(f"{why}; what is done is kept: top up and run again")
        return InputError(why)

    async def persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make one call about a batch, with retries. Raises StoppedError when none of them succeeds."""
        attempts = Attempts(max(PATIENCE, self._llm.attempts))

        async def once() -> T:
            try:
                return await call()
            except AttemptError as failure:
                attempts.failed_alone(failure)
                self._counts.failed_attempts += 1
                raise

        try:
            return await retrying_alone(attempts, self._retry)(once)
        except AttemptError as failure:
            why = str(failure)
        raise StoppedError(
            f"the batch API at {self._endpoint.address} does not answer: {why}; what is done is kept, and batches go "
            "on there: run again later"
        )
