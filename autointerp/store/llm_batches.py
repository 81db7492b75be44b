"""Which requests are in which batch at an endpoint. They are written down before a batch is created, and forgotten once
its results are in the call ledger."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.records import BatchedRequest, BatchRecord
from autointerp.store.connection import StoreConnection
from autointerp.store.named_rows import field_names, select_list
from autointerp.store.values import clean


class StoreBatches(StoreConnection):
    """Tables batches and batch_requests."""

    def begin_batch(self, batch: BatchRecord, requests: Sequence[BatchedRequest]) -> None:
        """Writes down a batch that is about to be uploaded, with its requests."""
        told = ("batch_key", "run_id", "model", "base_url", "kind", "status")
        with self.transaction():
            row = {name: getattr(batch, name) for name in told}
            made = {"n_requests": len(requests), "created_at": self.now(), "sequence": self.next_sequence()}
            self.insert_row("batches", {**row, **made})
            columns = {name: [clean(getattr(r, name)) for r in requests] for name in field_names(BatchedRequest)}
            self.insert_columns("batch_requests", {"batch_key": [batch.batch_key] * len(requests), **columns})

    def update_batch(
        self, batch_key: str, status: str, batch_id: str | None = None, input_file_id: str | None = None
    ) -> None:
        """Sets the status, and either id where it is given."""
        with self.transaction() as con:
            con.execute(
                "UPDATE batches SET status = ?, batch_id = coalesce(?, batch_id), "
                "input_file_id = coalesce(?, input_file_id) WHERE batch_key = ?",
                [status, clean(batch_id), clean(input_file_id), batch_key],
            )

    def finish_batch(self, batch_key: str, status: str, error: str | None = None) -> None:
        """Closes a batch whose results, if any, are in the call ledger. Its requests are forgotten."""
        with self.transaction() as con:
            con.execute(
                "UPDATE batches SET status = ?, error = ?, finished_at = ? WHERE batch_key = ?",
                [status, clean(error), self.now(), batch_key],
            )
            con.execute("DELETE FROM batch_requests WHERE batch_key = ?", [batch_key])

    def unfinished_batches(self, base_url: str, model: str) -> list[tuple[BatchRecord, list[BatchedRequest]]]:
        """Batches of this model at this address whose results were not fetched yet, with their requests, oldest
        first."""
        columns = select_list(BatchRecord, created_at="epoch(created_at)")
        batches = self.records(
            BatchRecord,
            f"SELECT {columns} FROM batches WHERE base_url = ? AND model = ? AND finished_at IS NULL ORDER BY sequence",
            [base_url, model],
        )
        return [(batch, self._requests_of(batch.batch_key)) for batch in batches]

    def _requests_of(self, batch_key: str) -> list[BatchedRequest]:
        return self.records(
            BatchedRequest,
            f"SELECT {select_list(BatchedRequest)} FROM batch_requests WHERE batch_key = ?",
            [batch_key],
        )
