"""Commands that were run on the store, and whether the store holds together."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from autointerp.errors import InputError
from autointerp.store.connection import APPEND_ONLY, StoreConnection
from autointerp.store.values import as_json, clean

_BROKEN = {
    "documents that lie in more than one split": """
        SELECT count(*) FROM (SELECT 1 FROM evidence.windows GROUP BY corpus_id, document
                              HAVING count(DISTINCT split) > 1)""",
    "contexts whose window is missing or of another split": """
        SELECT count(*) FROM evidence.context_rows AS c LEFT JOIN evidence.windows AS w USING (window_id)
        WHERE w.split IS DISTINCT FROM c.split""",
    "snippets that stand in more than one split of a feature": """
        SELECT count(*) FROM (SELECT 1 FROM evidence.context_rows WHERE text_hash IS NOT NULL
                              GROUP BY dictionary_id, harvest_id, feature, text_hash
                              HAVING count(DISTINCT split) > 1)""",
    "features of no dictionary": """
        SELECT count(*) FROM features ANTI JOIN dictionaries USING (dictionary_id)""",
    "feature rows that stand twice": """
        SELECT count(*) FROM (SELECT 1 FROM features GROUP BY dictionary_id, feature HAVING count(*) > 1)""",
    "explanations of no feature": """
        SELECT count(*) FROM explanations ANTI JOIN features USING (dictionary_id, feature)""",
    "scores of no explanation": """
        SELECT count(*) FROM scores ANTI JOIN explanations USING (explanation_id)
        WHERE explanation_id IS NOT NULL""",
    "predictions of no score": "SELECT count(*) FROM predictions ANTI JOIN scores USING (score_id)",
}
"""Queries that count what must not be there."""


class StoreRuns(StoreConnection):
    """Table runs, and checks over all tables."""

    def begin_run(self, command: str, config: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
        """Records that a command starts; returns the run_id that its calls carry. Only one process writes at a time, so
        a row that still says "running" belongs to a run that was killed."""
        run_id = uuid.uuid4().hex
        with self.transaction() as con:
            con.execute("UPDATE runs SET status = 'killed' WHERE status = 'running'")
            row = {"run_id": run_id, "command": clean(command), "started_at": self.now(), "status": "running"}
            row["sequence"] = self.next_sequence()
            self.insert_row("runs", {**row, "config": as_json(config), "versions": as_json(versions)})
        return run_id

    def finish_run(self, run_id: str, status: str, exit_code: int) -> None:
        """Records how the run ended. Raises InputError if there is no such run."""
        with self.transaction() as con:
            found = con.execute(
                "UPDATE runs SET finished_at = ?, status = ?, exit_code = ? WHERE run_id = ?",
                [self.now(), status, exit_code, run_id],
            ).fetchone()
            if not found or not found[0]:
                raise InputError(f"no run {run_id!r} in {self.path}")

    def run_status(self, written: str) -> str:
        """The status of a run whose row says `written`. If this process could open the store itself for reading, no
        other process writes to it, so a run that is "running" by its row was killed."""
        is_alone = self.read_only and self.snapshot_age_s is None
        return "killed" if is_alone and written == "running" else written

    def row_counts(self) -> dict[str, int]:
        """Rows of each append-only table."""
        return {table: self.rows(f"SELECT count(*) FROM {table}")[0][0] for table in APPEND_ONLY}

    def check(self) -> list[str]:
        """What does not hold in the store, one line each; empty where all is well. For `autointerp verify`."""
        return [f"{n:,} {what}" for what, sql in _BROKEN.items() if (n := self.rows(sql)[0][0])]
