"""Which requests are in which batch at an endpoint: written before a batch is created, forgotten once its results are
in the call ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from autointerp.records import BatchedRequest, BatchRecord
from autointerp.store.writes import StoreWrites, clean

_REQUEST: dict[str, str] = {
    "custom_id": "VARCHAR", "request_sha256": "VARCHAR", "sample": "INTEGER", "dictionary_id": "INTEGER",
    "feature": "INTEGER", "stage": "VARCHAR", "length_is_expected": "BOOLEAN", "n_inputs": "INTEGER",
}  # fmt: skip


class StoreBatches(StoreWrites):
    def begin_batch(self, batch: BatchRecord, requests: Sequence[BatchedRequest]) -> None:
        """Writes down a batch that is about to be uploaded, with its requests."""
        with self.transaction() as con:
            con.execute(
                "INSERT INTO batches (batch_key, run_id, model, base_url, kind, status, n_requests, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [batch.batch_key, batch.run_id, batch.model, batch.base_url, batch.kind, batch.status, len(requests),
                 self.now()],
            )  # fmt: skip
            columns = {name: [clean(getattr(r, name)) for r in requests] for name in _REQUEST}
            types = {"batch_key": "VARCHAR", **_REQUEST}
            self._insert("batch_requests", types, {"batch_key": [batch.batch_key] * len(requests), **columns})

    def update_batch(
        self, batch_key: str, status: str, batch_id: str | None = None, input_file_id: str | None = None
    ) -> None:
        """Sets the status, and of the two ids those that are given."""
        with self.transaction() as con:
            con.execute(
                "UPDATE batches SET status = ?, batch_id = coalesce(?, batch_id), "
                "input_file_id = coalesce(?, input_file_id) WHERE batch_key = ?",
                [status, clean(batch_id), clean(input_file_id), batch_key],
            )

    def finish_batch(self, batch_key: str, status: str, error: str | None = None) -> None:
        """Its results, if any, are in the call ledger: it is not looked at again."""
        with self.transaction() as con:
            con.execute(
                "UPDATE batches SET status = ?, error = ?, finished_at = ? WHERE batch_key = ?",
                [status, clean(error), self.now(), batch_key],
            )
            con.execute("DELETE FROM batch_requests WHERE batch_key = ?", [batch_key])

    def unfinished_batches(self, base_url: str, model: str) -> list[tuple[BatchRecord, list[BatchedRequest]]]:
        """Batches of this model at this address whose results were not fetched yet, oldest first."""
        names = [field.name for field in fields(BatchRecord)]
        columns = ", ".join("epoch(created_at)" if name == "created_at" else name for name in names)
        found = self.rows(
            f"SELECT {columns} FROM batches WHERE base_url = ? AND model = ? AND finished_at IS NULL "
            "ORDER BY created_at",
            [base_url, model],
        )
        batches = [BatchRecord(**dict(zip(names, row, strict=True))) for row in found]
        return [(batch, self._requests_of(batch.batch_key)) for batch in batches]

    def _requests_of(self, batch_key: str) -> list[BatchedRequest]:
        rows = self.rows(f"SELECT {', '.join(_REQUEST)} FROM batch_requests WHERE batch_key = ?", [batch_key])
        return [BatchedRequest(**dict(zip(_REQUEST, row, strict=True))) for row in rows]
