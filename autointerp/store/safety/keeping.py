"""Saves what an open store holds under other names, once its own files were deleted or replaced."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from autointerp.errors import AutointerpError
from autointerp.store.connection import StoreConnection, quoted, sql_file
from autointerp.store.evidence_file import run_inside
from autointerp.store.safety.faults import translated
from autointerp.store.safety.paths import evidence_path_of, saved_path_of
from autointerp.store.safety.row_ledger import fsync_folder

_EVIDENCE = ("harvest_info", "windows", "context_rows")


class StoreKeeping(StoreConnection):
    """What becomes of a store whose files were taken away."""

    def _keep(self) -> str:
        saved = self._saved_as
        if saved is None:
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
            saved = self._saved_as = saved_path_of(self.path, stamp)
        gone = self._displaced_files
        told = " and ".join(f"{path} was {what}" for path, what in gone.items())
        try:
            with translated(saved):
                evidence = self._keep_evidence(evidence_path_of(saved), self.evidence_path in gone)
                if self.path in gone:
                    self._keep_main(saved)
        except AutointerpError as error:
            return f"{told} while this command had it open. It stopped, and what it held could not be saved: {error}"
        if self.path in gone:
            way = f"all that the store held is saved as {saved}. To go on, name that file with --store or [store] path"
            return f"{told} while this command had it open. It stopped, and {way}, or move it to {self.path}" + (
                f" (and {evidence.name} to {self.evidence_path.name})" if evidence else ""
            )
        return (
            f"{told} while this command had it open. It stopped; the store is whole, and the evidence is saved as "
            f"{evidence}: move it to {self.evidence_path} to go on"
        )

    def _keep_main(self, target: Path) -> None:
        """Copies every table, and makes the views, in a new file."""
        new = target.with_name(target.name + ".new")
        _remove(new)
        cursor = self.con.cursor()
        try:
            (main,) = cursor.execute("SELECT current_database()").fetchall()[0]
            cursor.execute(f"ATTACH {quoted(str(new))} AS saved_store")
            cursor.begin()
            tables = cursor.execute(
                "SELECT table_name, sql FROM duckdb_tables() WHERE database_name = ? AND NOT temporary "
                "ORDER BY table_name",
                [main],
            ).fetchall()
            for name, sql in tables:
                run_inside(cursor, "saved_store", sql)
                cursor.execute(f'INSERT INTO saved_store."{name}" SELECT * FROM "{main}"."{name}"')
            run_inside(cursor, "saved_store", sql_file("views.sql"))
            cursor.commit()
            cursor.execute("CHECKPOINT saved_store")
            cursor.execute("DETACH saved_store")
            _put(new, target)
        finally:
            cursor.close()
            _remove(new)

    def _keep_evidence(self, target: Path, is_gone: bool) -> Path | None:
        """Puts the evidence beside the saved store: another name for the same file or, where that is gone, a copy. None
        where the store has none."""
        attached = self.con.execute(
            "SELECT path IS NOT NULL FROM duckdb_databases() WHERE database_name = 'evidence'"
        ).fetchall()
        if attached != [(True,)]:
            return None
        if target.exists():
            return target
        if not is_gone:
            try:
                os.link(self.evidence_path, target)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.evidence_path, target)
            return target
        new = target.with_name(target.name + ".new")
        _remove(new)
        cursor = self.con.cursor()
        try:
            cursor.execute(f"ATTACH {quoted(str(new))} AS saved_evidence")
            cursor.begin()
            run_inside(cursor, "saved_evidence", sql_file("evidence_schema.sql"))
            for table in _EVIDENCE:
                cursor.execute(f"INSERT INTO saved_evidence.{table} SELECT * FROM evidence.{table}")
            cursor.commit()
            cursor.execute("CHECKPOINT saved_evidence")
            cursor.execute("DETACH saved_evidence")
            _put(new, target)
        finally:
            cursor.close()
            _remove(new)
        return target


def _put(new: Path, target: Path) -> None:
    with open(new, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(new, target)
    fsync_folder(target.parent)


def _remove(file: Path) -> None:
    for leftover in (file, file.with_name(file.name + ".wal")):
        with suppress(OSError):
            leftover.unlink(missing_ok=True)
