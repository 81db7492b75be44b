"""The main file's schema: its migrations and its views, brought up to date when a store is opened for writing."""

from __future__ import annotations

import hashlib
import re
import uuid
from contextlib import suppress
from importlib import resources
from pathlib import Path

import duckdb

from autointerp.errors import DamagedError, InputError
from autointerp.store.connection import StoreConnection, sql_file
from autointerp.store.finding_tables import NOTED, from_note
from autointerp.store.safety.faults import translated

Migration = tuple[int, str, str]
"""Version, name, SQL."""
SEQUENCE_VERSION = 4
"""The migration after which the rows of an older store get their numbers."""


def migrations() -> list[Migration]:
    """Every migration, oldest first."""
    found = []
    for entry in (resources.files("autointerp.store") / "migrations").iterdir():
        match = re.fullmatch(r"(\d{3})_(\w+)\.sql", entry.name)
        if match:
            found.append((int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    return sorted(found)


def is_ours(con: duckdb.DuckDBPyConnection, path: Path) -> bool:
    """Whether the file at `path`, open as `con`, is a store; False where it is empty. Raises InputError where it holds
    something else."""
    names = {row[0] for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if names and "schema_migrations" not in names:
        raise InputError(f"{path} is a DuckDB file, but not a store of this program; name another file")
    return "store_state" in names


def pending_migrations(con: duckdb.DuckDBPyConnection, path: Path) -> list[Migration]:
    """The migrations that the store at `path`, open as `con`, still lacks. Raises DamagedError where a newer version of
    this program has written it."""
    known = migrations()
    exists = con.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'schema_migrations'").fetchone()
    applied: set[int] = set()
    if exists and exists[0]:
        applied = {row[0] for row in con.execute("SELECT version FROM schema_migrations").fetchall()}
    newer = applied - {version for version, _, _ in known}
    if newer:
        raise DamagedError(
            f"{path} was written by a newer version of autointerp (its schema is {max(newer)}, this version "
            f"knows {max(v for v, _, _ in known)}); update autointerp"
        )
    return [m for m in known if m[0] not in applied]


def migrate(store: StoreConnection, migration: Migration) -> None:
    """One migration and its record in one transaction. The caller writes a checkpoint after the last."""
    version, name, sql = migration
    con = store.con
    con.begin()
    try:
        con.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations "
            "(version INTEGER NOT NULL, name VARCHAR NOT NULL, applied_at TIMESTAMP NOT NULL)"
        )
        con.execute(sql)
        if version == SEQUENCE_VERSION:
            con.execute(sql_file("number_rows.sql"))
        if version == 1:
            store.insert_row("store_state", {"store_id": uuid.uuid4().hex, "commit_number": 0})
        store.insert_row("schema_migrations", {"version": version, "name": name, "applied_at": store.now()})
        con.commit()
    except BaseException:
        with suppress(duckdb.Error):
            con.rollback()
        raise


_DUCKDB_FUNCTIONS: set[str] = set()
"""The names of DuckDB's own functions, once they were asked for in this process."""
_VIEWS_MADE: dict[str, dict[str, str]] = {}
"""By the digest of views.sql, the views as DuckDB writes them, once a store of this process was found to have them."""


def refuse_disguised(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Raises InputError where the store at `path` holds what changes the meaning of our own SQL: a view under the name
    of one of our tables, those of evidence methods included, a macro under that of a function of DuckDB, or a trigger.
    Such a store came from elsewhere, and could read this machine's files into prompts."""
    with translated(path, opening=True):
        # `system.main`: a macro of the store cannot stand in for these.
        named = "FROM system.main.duckdb_{0}() WHERE database_name = system.main.current_database() AND NOT internal"
        views = {row[0] for row in con.execute(f"SELECT view_name {named.format('views')}").fetchall()}
        if not _DUCKDB_FUNCTIONS:  # listing them takes some 20 ms, as much as the rest of opening a store
            own = con.execute("SELECT function_name FROM system.main.duckdb_functions() WHERE internal").fetchall()
            _DUCKDB_FUNCTIONS.update(row[0] for row in own)
        made = con.execute(f"SELECT function_name {named.format('functions')}").fetchall()
        macros = [row for row in made if row[0] in _DUCKDB_FUNCTIONS]
        triggers = con.execute(
            "SELECT trigger_name FROM system.main.duckdb_triggers() "
            "WHERE database_name = system.main.current_database()"
        ).fetchall()
    tables = {name for _, _, sql in migrations() for name in re.findall(r"CREATE TABLE (\w+)", sql)}
    found = [("macro", row[0]) for row in macros] + [("trigger", row[0]) for row in triggers]
    if not found and not views & tables:  # so that the table `settings` is what it seems to be
        tables |= _noted_tables(con, path)
    for kind, name in [("view", name) for name in sorted(views & tables)] + found:
        raise InputError(
            f"{path} holds a {kind} {name!r}, which this program did not make and which would change what its own SQL "
            "does; drop it, if the store is to be trusted"
        )


def _noted_tables(con: duckdb.DuckDBPyConnection, path: Path) -> set[str]:
    """The names of the tables that evidence methods of other packages brought to the store."""
    with translated(path, opening=True):
        exists = con.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'settings'").fetchall()[0][0]
        if not exists:  # the first migration is to come
            return set()
        notes = con.execute("SELECT value FROM settings WHERE starts_with(name, ?)", [NOTED]).fetchall()
    return {from_note(note).name for (note,) in notes}


def _has_views_of(con: duckdb.DuckDBPyConnection, sql: str) -> bool:
    """Whether the store's views are those that `sql` makes: it is run and rolled back. Other views may be there too."""
    held = _views(con)
    con.begin()
    try:
        con.execute(sql)
        return _views(con) == held
    finally:
        con.rollback()


def _views(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """The text of each view. DuckDB gives the names after EXCLUDE in no order; here they are sorted."""
    found = con.execute(
        "SELECT view_name, sql FROM duckdb_views() WHERE database_name = current_database() AND NOT internal"
    ).fetchall()
    return {
        name: re.sub(r"EXCLUDE \(([^()]*)\)", lambda names: str(sorted(names[1].split(", "))), text)
        for name, text in found
    }


def refresh_views(store: StoreConnection) -> None:
    """Makes the views anew where they are not what views.sql makes. The digest in `settings` is of the text that they
    were made from; it cannot be trusted alone, as a store may come from elsewhere, with views that read files here."""
    sql = sql_file("views.sql")
    digest = hashlib.sha256(sql.encode()).hexdigest()
    with translated(store.path):
        found = store.con.execute(
            "SELECT value FROM settings WHERE dictionary_id IS NULL AND name = 'views_sha256'"
        ).fetchone()
        if found and found[0] == digest:
            made, held = _VIEWS_MADE.get(digest), _views(store.con)
            if made is not None and made.items() <= held.items():
                return
            if _has_views_of(store.con, sql):
                _keep_views(digest, sql, held)
                return
        with store.transaction() as con:
            con.execute(sql)
            con.execute("DELETE FROM settings WHERE dictionary_id IS NULL AND name = 'views_sha256'")
            store.insert_row("settings", {"dictionary_id": None, "name": "views_sha256", "value": digest})
        store.con.execute("CHECKPOINT")
        _keep_views(digest, sql, _views(store.con))


def _keep_views(digest: str, sql: str, held: dict[str, str]) -> None:
    names = re.findall(r"^CREATE OR REPLACE VIEW (\w+)", sql, re.MULTILINE)
    _VIEWS_MADE[digest] = {name: held[name] for name in names}
