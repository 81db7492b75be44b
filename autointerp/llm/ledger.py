"""What the client needs of the store: a place where every call is written before its reply is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from autointerp.records import BatchedRequest, BatchRecord, CallRecord


class CallLedger(Protocol):
    """The record of all calls: one row per (request_sha256, sample)."""

    def find(self, request_sha256: str, sample: int) -> CallRecord | None:
        """The recorded call, or None. It runs on the event loop, once per request, so it must be quick."""
        ...

    async def record(self, record: CallRecord) -> None:
        """Commit the record, then return.

        If a row with its key exists, a row that is not final (`gave_up`, `bad_reply`) is replaced, and any other row
        stays as it is.
        """
        ...


class BatchBook(Protocol):
    """The record of batches: which requests are in which batch. Every method commits before it returns."""

    async def begin(self, batch: BatchRecord, requests: Sequence[BatchedRequest]) -> None:
        """Write down a batch before its upload."""
        ...

    async def update(
        self, batch_key: str, status: str, batch_id: str | None = None, input_file_id: str | None = None
    ) -> None: ...

    async def finish(self, batch_key: str, status: str, error: str | None = None) -> None:
        """Mark a batch as finished, once all its results are recorded."""
        ...

    async def unfinished(self, base_url: str, model: str) -> list[tuple[BatchRecord, list[BatchedRequest]]]:
        """Batches whose results are not fetched yet, whichever process sent them."""
        ...
