"""The evidence file beside the main file: attached for reading, never changed, replaced as a whole by a merge."""

from __future__ import annotations

import json
import os
from pathlib import Path

import duckdb

from autointerp.errors import AutointerpError, DamagedError, InputError, MismatchError
from autointerp.store.connection import StoreConnection, connect, identifier, quoted, sql_file
from autointerp.store.parsed_sql import parsed, tables_read
from autointerp.store.safety.faults import translated, way_out
from autointerp.store.safety.row_ledger import fsync_folder

_TABLES, _VIEW = ("harvest_info", "windows", "context_rows"), "contexts"


class StoreEvidence(StoreConnection):
    """The store's attached evidence."""

    def replace_evidence(self, new_file: Path) -> None:
        """Puts a finished evidence file in the place of the old one, in one rename, and attaches it.

        `new_file` must lie in the same folder (file system), be closed and checkpointed. Where it is refused or the
        rename fails, the old evidence stays in place and attached.
        """
        if self.read_only:
            raise AutointerpError(f"{self.path} was opened for reading only")
        leftover = new_file.with_name(new_file.name + ".wal")
        if leftover.exists():
            raise AutointerpError(f"{new_file} is not checkpointed ({leftover.name} exists); close it first")
        with translated(new_file, opening=True), open(new_file, "rb+") as file:
            os.fsync(file.fileno())
        with self.exclusive():
            with translated(self.path):
                self.con.execute("DETACH DATABASE IF EXISTS evidence")
            try:
                _check_file(new_file, self.store_id)
                with translated(self.evidence_path):
                    os.replace(new_file, self.evidence_path)
                    fsync_folder(self.evidence_path.parent)
                self.evidence_replaced.set()
            finally:
                attach_evidence(self.con, self.path, self.evidence_path, self.store_id)
                self._note_evidence()


def attach_evidence(con: duckdb.DuckDBPyConnection, path: Path, evidence_path: Path, store_id: str) -> None:
    """Attaches the evidence file to `con`, a connection to the store at `path`, as `evidence`. Before the first merge
    an empty database in memory takes its place.

    Raises DamagedError where features say that there must be evidence and the file is missing, unreadable or older
    than they are; MismatchError where it was made for another store; InputError where a view in it is not ours.
    """
    with translated(path):
        con.execute("DETACH DATABASE IF EXISTS evidence")
        needed = dict(con.execute("SELECT dictionary_id, max(harvest_id) FROM features GROUP BY ALL").fetchall())
    if not evidence_path.exists():
        if needed:
            raise DamagedError(
                f"{evidence_path} is missing, but {path.name} holds features harvested from it. Put the file back "
                "beside the store; without one, `autointerp recover` says how to go on"
            )
        with translated(path):
            con.execute("ATTACH ':memory:' AS evidence (READ_WRITE)")
            run_inside(con, "evidence", sql_file("evidence_schema.sql"))
        return
    with translated(evidence_path, opening=True):
        con.execute(f"ATTACH {quoted(str(evidence_path))} AS evidence (READ_ONLY)")
        _check_attached(con, evidence_path, store_id)
        held = dict(
            con.execute("SELECT dictionary_id, max(harvest_id) FROM evidence.harvest_info GROUP BY ALL").fetchall()
        )
    # Evidence that is newer than the features comes from a merge that was cut off between the two files. It goes on
    # when it is run again.
    behind = [d for d, harvest in needed.items() if held.get(d, -1) < harvest]
    if behind:
        raise DamagedError(
            f"{evidence_path} does not hold harvest {needed[behind[0]]}, which the features of dictionary "
            f"{behind[0]} in {path.name} come from (it holds {held.get(behind[0], 'none')}): an older or foreign copy. "
            "Restore the right file; without one, `autointerp recover` says how to go on"
        )


def evidence_of(con: duckdb.DuckDBPyConnection) -> str:
    """What distinguishes the evidence attached to `con` from any other: the facts of every merge in it, as JSON."""
    rows = con.execute(
        "SELECT harvest_id, dictionary_id, n_contexts, created_at::VARCHAR FROM evidence.harvest_info ORDER BY ALL"
    ).fetchall()
    return json.dumps(rows)


def has_known_tiles(con: duckdb.DuckDBPyConnection) -> bool:
    """Whether the evidence attached to `con` has known_tiles, active_tiles and firing_tiles, which older ones lack. It
    is asked often, so the catalogs of all attached files are not looked through."""
    try:
        con.execute("FROM evidence.known_tiles, evidence.active_tiles, evidence.firing_tiles LIMIT 0")
    except duckdb.CatalogException:
        return False
    return True


def run_inside(con: duckdb.DuckDBPyConnection, database: str, sql: str) -> None:
    """Runs `sql` with the attached `database` as the current one, then goes back to the one before."""
    row = con.execute("SELECT current_database()").fetchone()
    assert row is not None
    con.execute(f"USE {database}")
    try:
        con.execute(sql)
    finally:
        con.execute(f"USE {identifier(row[0])}")


def _reads_only(con: duckdb.DuckDBPyConnection, view: str, tables: set[str]) -> bool:
    """Whether a view, given as the CREATE VIEW that DuckDB shows, reads nothing but `tables`. It is parsed, not run."""
    try:
        (node,) = parsed(con, view.partition(" AS ")[2])
        return {table["table_name"] for table in tables_read(node)} <= tables
    except (InputError, ValueError):  # ValueError: several statements
        return False


def _check_file(file: Path, store_id: str) -> None:
    """Raises DamagedError unless `file` is a readable evidence file, MismatchError where it was made for another
    store."""
    with translated(file, opening=True):
        con = connect()
        try:
            con.execute(f"ATTACH {quoted(str(file))} AS evidence (READ_ONLY)")
            _check_attached(con, file, store_id)
        finally:
            con.close()


LOOKED_AT: set[tuple[int, int, int, int]] = set()
"""The evidence files that this process has found to be in order: device, inode, size and time of the last change.
Looking takes some 30 ms, because DuckDB lists all of its functions for it."""


def _check_attached(con: duckdb.DuckDBPyConnection, file: Path, store_id: str) -> None:
    identity = identity_of(file)
    if identity not in LOOKED_AT:
        _check_content(con, file)
        LOOKED_AT.add(identity)
    other = con.execute(
        "SELECT harvest_id FROM evidence.harvest_info WHERE store_id IS NOT NULL AND store_id <> ?", [store_id]
    ).fetchall()
    if other:
        raise MismatchError(
            f"{file} was merged for another store (harvest {other[0][0]}); put back the evidence file that belongs to "
            "this one, or run harvest and merge again"
        )


def identity_of(file: Path) -> tuple[int, int, int, int]:
    """What changes when a file is replaced or written to."""
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_content(con: duckdb.DuckDBPyConnection, file: Path) -> None:
    of_evidence = "WHERE database_name = 'evidence' AND NOT internal"
    tables = {row[0] for row in con.execute(f"SELECT table_name FROM duckdb_tables() {of_evidence}").fetchall()}
    views = dict(con.execute(f"SELECT view_name, sql FROM duckdb_views() {of_evidence}").fetchall())
    missing = [name for name in _TABLES if name not in tables | set(views)] + [_VIEW] * (_VIEW not in views)
    if missing:
        raise DamagedError(f"{file} is not a whole evidence file: {', '.join(missing)} missing. {way_out(file)}")
    macros = con.execute(f"SELECT function_name FROM duckdb_functions() {of_evidence}").fetchall()
    disguised = [name for name in _TABLES if name in views] + [row[0] for row in macros]
    if disguised or not _reads_only(con, views[_VIEW], set(_TABLES)):
        raise InputError(
            f"{file} holds {(disguised or [_VIEW])[0]!r} in a form that this program did not make and that could read "
            "other files; put back the evidence file that was made here, or run merge or harvest again"
        )
