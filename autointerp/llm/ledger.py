"""Where every call is written down before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from autointerp.records import BatchedRequest, BatchRecord, CallRecord


class CallLedger(Protocol):
    """The store's side of the client. One row per (request_sha256, sample)."""

    def find(self, request_sha256: str, sample: int) -> CallRecord | None:
        """The recorded call, or None. Asked once per request, on the event loop: it must be quick."""
        ...

    async def record(self, record: CallRecord) -> None:
        """Returns once the record is committed.

        A record whose key exists already replaces a row that is not final (`gave_up`, `bad_reply`) and leaves any
        other row alone.
        """
        ...


class BatchBook(Protocol):
    """The store's side of the batch client: which requests are in which batch. Every method commits before it
    returns."""

    async def begin(self, batch: BatchRecord, requests: Sequence[BatchedRequest]) -> None:
        """Before the upload."""
        ...

    async def update(
        self, batch_key: str, status: str, batch_id: str | None = None, input_file_id: str | None = None
    ) -> None: ...

    async def finish(self, batch_key: str, status: str, error: str | None = None) -> None:
        """Once all its results are recorded."""
        ...

    async def unfinished(self, base_url: str, model: str) -> list[tuple[BatchRecord, list[BatchedRequest]]]:
        """Batches whose results are still to be fetched, this process's own or an earlier one's."""
        ...
