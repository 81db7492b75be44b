"""Copying out of a damaged database file what can still be read of it, into a new store file beside it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb

from autointerp.errors import DamagedError
from autointerp.store.connection import identifier, quoted, restrict, sql_file
from autointerp.store.finding_tables import NOTED, from_note
from autointerp.store.safety.paths import DATABASE_LOGS
from autointerp.store.store import Store

_FEWEST_ROWS = 2048
"""DuckDB reads this many rows at once; one unreadable block costs all of them."""
_DAMAGED = '"/damaged"'
"""The name of the attached source in SQL. No store has it: its name is that of a file, without a slash."""
_NOT_COPIED = ("schema_migrations", "store_state", "snapshot_info")


@dataclass(frozen=True, slots=True)
class SavedTable:
    name: str
    saved: int
    """Rows copied."""
    lost: int | None
    """Rows that could not be read; None where not even their number could."""


def salvage(source: Path, target: Path, store_id: str | None, commit_number: int) -> list[SavedTable]:
    """Makes a store at `target` from every row of `source`, a store or a snapshot, that can be read: table by table
    and, in a table with a damaged block, by ever smaller ranges of rows.

    A snapshot leaves out replies; its calls without a reply are not copied, since they would count as answered. The new
    store has the id that the source's evidence names. Raises duckdb.Error where `source` cannot be opened at all.
    """
    saved = []
    with Store.open(target, create=True) as store:
        # A view in the place of one of our tables could bring this machine's files into the new store.
        logs = [source.with_name(source.name + end) for end in DATABASE_LOGS]
        con = restrict(store.con, target, [source, *logs])
        con.execute(f"ATTACH {quoted(str(source))} AS {_DAMAGED} (READ_ONLY)")
        held = {
            row[0]
            for row in con.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = '/damaged'").fetchall()
        }
        con.execute("DELETE FROM settings")
        _make_finding_tables(con)
        for table in sorted(held - set(_NOT_COPIED)):
            columns = _common_columns(con, table)
            if not columns:
                saved.append(SavedTable(table, 0, None))
                continue
            wanted = "true"
            if "snapshot_info" in held and table == "llm_calls":
                wanted = "(reply IS NOT NULL OR status <> 'ok')"
            if table == "settings":  # the new file has its own views
                wanted = "name <> 'views_sha256'"
            saved.append(_copy_table(con, table, columns, wanted))
        con.execute(sql_file("number_rows.sql"))  # an older version's rows have no number
        try:
            state = con.execute(f"SELECT store_id, commit_number FROM {_DAMAGED}.store_state").fetchall()
        except duckdb.Error:
            state = []
        if state:
            store_id, commit_number = state[0][0], max(commit_number, state[0][1])
        if store_id is not None:
            con.execute("UPDATE store_state SET store_id = ?", [store_id])
        con.execute("UPDATE store_state SET commit_number = greatest(commit_number, ?)", [commit_number])
        con.execute(f"DETACH {_DAMAGED}")
        con.execute("CHECKPOINT")
    # The ledger is named after the file as it was made; the first run on the finished store starts a new one.
    store.ledger.path.unlink(missing_ok=True)
    return saved


def _make_finding_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Makes the tables that evidence methods of other packages brought to the damaged store, as far as its settings can
    be read: the schema does not know them."""
    try:
        notes = con.execute(f"SELECT value FROM {_DAMAGED}.settings WHERE starts_with(name, ?)", [NOTED]).fetchall()
    except duckdb.Error:
        return
    for (note,) in notes:
        with suppress(DamagedError, duckdb.Error):  # its rows are then counted as lost
            con.execute(from_note(note).create_sql())


def _common_columns(con: duckdb.DuckDBPyConnection, table: str) -> str:
    """The columns that the table has in both files, quoted; empty where the new schema has no such table."""
    rows = con.execute(
        "SELECT column_name FROM duckdb_columns() WHERE table_name = $1 AND database_name = '/damaged' "
        "AND column_name IN (SELECT column_name FROM duckdb_columns() "
        "                    WHERE table_name = $1 AND database_name = current_database()) ORDER BY column_index",
        [table],
    ).fetchall()
    return ", ".join(identifier(row[0]) for row in rows)


def _copy_table(con: duckdb.DuckDBPyConnection, table: str, columns: str, wanted: str) -> SavedTable:
    try:
        n, last = con.execute(f"SELECT count(*), max(rowid) FROM {_DAMAGED}.{identifier(table)}").fetchall()[0]
    except duckdb.Error:
        return SavedTable(table, 0, None)
    if not n:
        return SavedTable(table, 0, 0)
    unreadable = _copy_range(con, table, columns, wanted, 0, last + 1)
    (saved,) = con.execute(f"SELECT count(*) FROM {identifier(table)}").fetchall()[0]
    return SavedTable(table, saved, n - saved if unreadable or wanted == "true" else 0)


def _copy_range(
    con: duckdb.DuckDBPyConnection, table: str, columns: str, wanted: str, low: int, high: int
) -> bool:  # fmt: skip
    """Copies the rows low .. high-1. Returns whether some could not be read."""
    try:
        con.execute(
            f"INSERT INTO {identifier(table)} ({columns}) SELECT {columns} FROM {_DAMAGED}.{identifier(table)} "
            f"WHERE rowid >= ? AND rowid < ? AND {wanted}",
            [low, high],
        )
        return False
    except duckdb.Error as error:
        if (
            isinstance(error, (duckdb.FatalException, duckdb.OutOfMemoryException))
            or "no space left" in str(error).lower()
        ):
            raise
        if high - low <= _FEWEST_ROWS:
            return True
    middle = (low // _FEWEST_ROWS + max(1, (high - low) // _FEWEST_ROWS // 2)) * _FEWEST_ROWS
    parts = [_copy_range(con, table, columns, wanted, *part) for part in ((low, middle), (middle, high))]
    return any(parts)
