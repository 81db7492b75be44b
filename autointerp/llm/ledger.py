"""Where every call is written down before anything is made of it."""

from __future__ import annotations

from typing import Protocol

from autointerp.records import CallRecord


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
