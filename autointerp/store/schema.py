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
from autointerp.store.safety.faults import translated

Migration = tuple[int, str, str]
"""Version, name, SQL."""


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
    """One migration and its record in one transaction, then a checkpoint: DDL must not stay in a long-lived WAL."""
    version, name, sql = migration
    con = store.con
    con.begin()
    try:
        con.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations "
            "(version INTEGER NOT NULL, name VARCHAR NOT NULL, applied_at TIMESTAMP NOT NULL)"
        )
        con.execute(sql)
        if version == 1:
            store.insert_row("store_state", {"store_id": uuid.uuid4().hex, "commit_number": 0})
        store.insert_row("schema_migrations", {"version": version, "name": name, "applied_at": store.now()})
        con.commit()
    except BaseException:
        with suppress(duckdb.Error):
            con.rollback()
        raise
    con.execute("CHECKPOINT")


def refresh_views(store: StoreConnection) -> None:
    """Makes the views anew where views.sql is not the text that they were made from."""
    sql = sql_file("views.sql")
    digest = hashlib.sha256(sql.encode()).hexdigest()
    with translated(store.path):
        found = store.con.execute(
            "SELECT value FROM settings WHERE dictionary_id IS NULL AND name = 'views_sha256'"
        ).fetchone()
        if found and found[0] == digest:
            return
        with store.transaction() as con:
            con.execute(sql)
            con.execute("DELETE FROM settings WHERE dictionary_id IS NULL AND name = 'views_sha256'")
            store.insert_row("settings", {"dictionary_id": None, "name": "views_sha256", "value": digest})
        store.con.execute("CHECKPOINT")
