"""Paid calls: what was asked, what came back and what it cost. Nothing is paid for twice (law 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autointerp.records import CallRecord
from autointerp.store.call_keys import CallKeys
from autointerp.store.connection import StoreConnection
from autointerp.store.named_rows import select_list
from autointerp.store.rows import Spent
from autointerp.store.values import check_finite

# A call that was asked again and answered: the row becomes the answer. Any other row stays, and its usage grows by what
# a second, paid reply to the same request cost. The same record written twice is told from a second reply by its
# latency (which all results of one batch share) and its status.
_MERGE_CALL = """
    ON CONFLICT (request_sha256, sample) DO UPDATE SET
        status = if(llm_calls.status IN ('gave_up', 'bad_reply'), excluded.status, llm_calls.status),
        reply = if(llm_calls.status IN ('gave_up', 'bad_reply'), excluded.reply, llm_calls.reply),
        error = if(llm_calls.status IN ('gave_up', 'bad_reply'), excluded.error, llm_calls.error),
        latency_s = if(llm_calls.status IN ('gave_up', 'bad_reply'), excluded.latency_s, llm_calls.latency_s),
        input_tokens = llm_calls.input_tokens + excluded.input_tokens,
        cached_tokens = llm_calls.cached_tokens + excluded.cached_tokens,
        output_tokens = llm_calls.output_tokens + excluded.output_tokens,
        cost_usd = llm_calls.cost_usd + excluded.cost_usd,
        attempts = llm_calls.attempts + excluded.attempts
    WHERE llm_calls.latency_s <> excluded.latency_s
       OR (llm_calls.status IN ('gave_up', 'bad_reply') AND llm_calls.status <> excluded.status)
"""


def check_call(c: CallRecord) -> None:
    """Raises AutointerpError where the record may not be stored: a number that is not finite."""
    check_finite(f"call {c.request_sha256[:12]}", cost_usd=c.cost_usd, latency_s=c.latency_s)


class StoreCalls(StoreConnection):
    """Table llm_calls."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._call_keys = CallKeys()

    def insert_calls(self, calls: Sequence[CallRecord]) -> None:
        """Adds paid calls. A call recorded before stays, unless it had given up; what a second reply cost is added."""
        for call in calls:
            check_call(call)
        with self.transaction():
            if calls:
                self._insert_calls(calls)

    def _insert_calls(self, calls: Sequence[CallRecord]) -> None:
        merged: dict[tuple[str, int], CallRecord] = {}
        for call in calls:
            key = (call.request_sha256, call.sample)
            merged[key] = _merged(merged[key], call) if key in merged else call
        old = [c for c in merged.values() if self._may_hold(c.request_sha256)]
        new = [c for c in merged.values() if not self._may_hold(c.request_sha256)]
        # ON CONFLICT costs four times as much as the rest of a commit, and more the larger the table is.
        for calls_alike, conflict in ((new, ""), (old, _MERGE_CALL)):
            if calls_alike:
                self.insert_records("llm_calls", calls_alike, conflict)
        self._call_keys.add(call.request_sha256 for call in new)

    def find_call(self, request_sha256: str, sample: int) -> CallRecord | None:
        """The recorded outcome of a request; None where it has to be sent (never sent, or given up before)."""
        if not self._may_hold(request_sha256):
            return None
        found = self.records(
            CallRecord,
            f"SELECT {select_list(CallRecord)} FROM llm_calls "
            "WHERE request_sha256 = ? AND sample = ? AND status <> 'gave_up'",
            [request_sha256, sample],
        )
        return found[0] if found else None

    def spent(self, run_id: str | None = None) -> Spent:
        """What the calls of one run cost, or of all runs."""
        return self.records(
            Spent,
            "SELECT coalesce(sum(attempts), 0)::BIGINT AS requests, "
            "coalesce(sum(input_tokens), 0)::BIGINT AS input_tokens, "
            "coalesce(sum(output_tokens), 0)::BIGINT AS output_tokens, coalesce(sum(cost_usd), 0)::DOUBLE AS usd, "
            "coalesce(sum(cached_tokens), 0)::BIGINT AS cached_tokens FROM llm_calls "
            "WHERE ?::VARCHAR IS NULL OR run_id = ?",
            [run_id, run_id],
        )[0]

    def _may_hold(self, request_sha256: str) -> bool:
        return self._call_keys.may_hold(request_sha256, self._recorded_call_keys)

    def _recorded_call_keys(self) -> np.ndarray:
        """call_key of every recorded call, ascending, as DuckDB gives it, without a Python object for each."""
        with self.cursor() as cursor:
            cursor.execute(
                "SELECT ('0x' || substr(request_sha256, 1, 16))::UBIGINT AS call_key FROM llm_calls ORDER BY ALL"
            )
            return np.asarray(cursor.fetchnumpy()["call_key"], dtype=np.uint64)


def _merged(first: CallRecord, second: CallRecord) -> CallRecord:
    """Does what _MERGE_CALL does, for two records of one key in the same group."""
    is_open = first.status in ("gave_up", "bad_reply")
    if first.latency_s == second.latency_s and not (is_open and first.status != second.status):
        return first
    told = second if is_open else first
    return replace(
        first,
        status=told.status,
        reply=told.reply,
        error=told.error,
        latency_s=told.latency_s,
        input_tokens=first.input_tokens + second.input_tokens,
        cached_tokens=first.cached_tokens + second.cached_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        cost_usd=first.cost_usd + second.cost_usd,
        attempts=first.attempts + second.attempts,
    )
