"""The open store: connecting, migrating, transactions with their ledger line, and the attached evidence file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb

from autointerp.errors import AutointerpError, DamagedError, DiskFullError, InputError, MismatchError
from autointerp.store.safety.faults import from_duckdb, translated, way_out
from autointerp.store.safety.paths import evidence_path_of, real_path, snapshot_path_of, unfinished_snapshot_of
from autointerp.store.safety.row_ledger import LedgerLine, RowLedger, fsync_folder

APPEND_ONLY = (
    "corpora", "dictionaries", "harvests", "explanations", "scores", "predictions", "llm_calls", "runs",
    "measure_tasks", "measurements",
)  # fmt: skip
"""Tables from which nothing is ever deleted: the ones the row ledger counts."""

GIVE_BACK_EVERY = 16
"""Commits after which memory that DuckDB no longer uses goes back to the system."""

_EVIDENCE_TABLES = ("harvest_info", "windows", "context_rows", "contexts")


def connect(path: Path | str = ":memory:", *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection that never reaches for the network and keeps standard output clean.

    DuckDB 2.0 prints a progress bar there after two seconds, pipe or not. The setting is the connection's own; cursors
    inherit it.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    con = duckdb.connect(str(path), read_only=read_only, config=config)
    con.execute("SET enable_progress_bar = false")
    return con


def sql_file(name: str) -> str:
    """The text of an SQL file of this package: views.sql, evidence_schema.sql."""
    return (resources.files("autointerp.store") / name).read_text(encoding="utf-8")


def migrations() -> list[tuple[int, str, str]]:
    """(version, name, SQL) of every migration, oldest first."""
    found = []
    for entry in (resources.files("autointerp.store") / "migrations").iterdir():
        match = re.fullmatch(r"(\d{3})_(\w+)\.sql", entry.name)
        if match:
            found.append((int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    return sorted(found)


def quoted(text: str) -> str:
    """`text` as an SQL string literal, for the few statements (ATTACH) that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


class StoreConnection:
    """One open main file with its evidence attached. Made by `open`; close it, or use it in a `with` block.

    Writing goes through `transaction()` on the one connection `con`. Reading methods use a cursor of their own, so they
    may run in one thread while another commits.
    """

    def __init__(self, path: Path, con: duckdb.DuckDBPyConnection, read_only: bool) -> None:
        self.path = path
        self.con = con
        self.read_only = read_only
        self.evidence_path = evidence_path_of(path)
        self.store_id = ""
        self.ledger = RowLedger(path.with_name(path.name + ".ledger"))
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._commit_number = 0
        self._counted: tuple[str, ...] = ()
        """Those of APPEND_ONLY that the store has."""
        self._last_time = datetime.min
        self._failed: AutointerpError | None = None
        self._memory_limit: str | None = None
        self.evidence_replaced = threading.Event()
        """Set by replace_evidence; whoever publishes snapshots waits for it and clears it."""
        self.snapshot_age_s: float | None = None
        """Seconds for which this, a snapshot, has not been known to be the newest; None where it is the store."""

    # --- opening and closing ---------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False, create: bool = False) -> Self:
        """Opens the store at `path`; with `create`, makes one where there is none.

        Raises InputError (no such store, not one of ours), StoreBusyError (another process has it), DamagedError
        (unreadable, written by a newer version, fewer rows than committed, evidence missing), DiskFullError,
        MismatchError (the evidence file belongs to another store). A damaged file is never changed or deleted.
        """
        path = real_path(path)
        ledger = RowLedger(path.with_name(path.name + ".ledger"))
        wal = path.with_name(path.name + ".wal")
        if not path.exists():
            for left in (wal, ledger.path):
                if left.exists():
                    raise DamagedError(
                        f"{path} is missing, but {left.name} beside it shows that it held a store. Restore the file, "
                        "or let `autointerp recover` set aside what is left, to start a new one"
                    )
            if not create or read_only:
                raise InputError(f"no store at {path}; `autointerp run` or `autointerp demo` makes one")
            with translated(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        elif not read_only and wal.exists():
            # A writing connection folds the WAL into the file when it closes. A WAL that was cut short must be found
            # before that, by one that changes nothing.
            with translated(path, opening=True), connect(path, read_only=True) as con:
                cls(path, con, True)._check_ledger()
        with translated(path, opening=True):
            con = connect(path, read_only=read_only)
            if not read_only:  # nor may a store that is refused below, because of its evidence say, be folded together
                con.execute("PRAGMA disable_checkpoint_on_shutdown")
        store = cls(path, con, read_only)
        try:
            store._prepare()
            if not read_only:  # what a run that was killed has left; readers must not take it for ours
                new = unfinished_snapshot_of(path)
                with translated(path):
                    for leftover in (snapshot_path_of(path), new, new.with_name(new.name + ".wal")):
                        leftover.unlink(missing_ok=True)
                    con.execute("PRAGMA enable_checkpoint_on_shutdown")
        except BaseException:
            con.close()
            raise
        return store

    @classmethod
    def on_snapshot(cls, path: Path, con: duckdb.DuckDBPyConnection, age_s: float) -> Self:
        """The store at `path` as `con`, a connection to its snapshot with evidence, shows it (reading.py)."""
        store = cls(path, con, True)
        store.snapshot_age_s = age_s
        with translated(path, opening=True):
            if store._pending_migrations():
                raise InputError(f"the process that writes {path} is of an older version; wait until it has ended")
            store._read_state()
        return store

    @classmethod
    def check_rows(cls, path: Path, con: duckdb.DuckDBPyConnection) -> None:
        """DamagedError where `con`, a connection to the store at `path`, finds less than was committed to it."""
        with translated(path, opening=True):
            cls(path, con, True)._check_ledger()

    def _check_ledger(self) -> None:
        if self._is_ours():
            self._read_state()
            self.ledger.check(self._ledger_line(self.con), self.path)

    def _prepare(self) -> None:
        with translated(self.path, opening=True):
            self._check_ledger()
            pending = self._pending_migrations()
        if pending and self.read_only:
            raise InputError(
                f"{self.path} was written by an older version and has to be brought up to date; run a command that "
                "writes to it once, such as `autointerp run`"
            )
        with translated(self.path):
            for version, name, sql in pending:
                self._migrate(version, name, sql)
            self._counted = ()
            self._read_state()
        self.attach_evidence()
        if not self.read_only:
            self._refresh_views()
            self.ledger.compact(self._ledger_line(self.con))

    def _is_ours(self) -> bool:
        names = {row[0] for row in self.con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if names and "schema_migrations" not in names:
            raise InputError(f"{self.path} is a DuckDB file, but not a store of this program; name another file")
        return "store_state" in names

    def _pending_migrations(self) -> list[tuple[int, str, str]]:
        known = migrations()
        exists = self.con.execute(
            "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'schema_migrations'"
        ).fetchone()
        applied: set[int] = set()
        if exists and exists[0]:
            applied = {row[0] for row in self.con.execute("SELECT version FROM schema_migrations").fetchall()}
        newer = applied - {version for version, _, _ in known}
        if newer:
            raise DamagedError(
                f"{self.path} was written by a newer version of autointerp (its schema is {max(newer)}, this version "
                f"knows {max(v for v, _, _ in known)}); update autointerp"
            )
        return [m for m in known if m[0] not in applied]

    def _migrate(self, version: int, name: str, sql: str) -> None:
        """One migration and its record in one transaction, then a checkpoint: DDL is kept out of a long-lived WAL."""
        con = self.con
        con.begin()
        try:
            con.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations "
                "(version INTEGER NOT NULL, name VARCHAR NOT NULL, applied_at TIMESTAMP NOT NULL)"
            )
            con.execute(sql)
            if version == 1:
                con.execute("INSERT INTO store_state VALUES (?, 0)", [uuid.uuid4().hex])
            con.execute("INSERT INTO schema_migrations VALUES (?, ?, ?)", [version, name, self.now()])
            con.commit()
        except BaseException:
            with suppress(duckdb.Error):
                con.rollback()
            raise
        con.execute("CHECKPOINT")

    def _read_state(self) -> None:
        rows = self.con.execute("SELECT store_id, commit_number FROM store_state").fetchall()
        if len(rows) != 1:
            raise DamagedError(f"{self.path}: table store_state holds {len(rows)} rows instead of one")
        self.store_id, self._commit_number = rows[0]

    def _refresh_views(self) -> None:
        sql = sql_file("views.sql")
        digest = hashlib.sha256(sql.encode()).hexdigest()
        with translated(self.path):
            found = self.con.execute(
                "SELECT value FROM settings WHERE dictionary_id IS NULL AND name = 'views_sha256'"
            ).fetchone()
            if found and found[0] == digest:
                return
            with self.transaction() as con:
                con.execute(sql)
                con.execute("DELETE FROM settings WHERE dictionary_id IS NULL AND name = 'views_sha256'")
                con.execute("INSERT INTO settings VALUES (NULL, 'views_sha256', ?)", [digest])
            self.con.execute("CHECKPOINT")

    def close(self) -> None:
        """Folds the WAL into the file and lets go of it. Safe to call twice."""
        with self._lock, suppress(duckdb.Error):
            self.con.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- writing ---------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction on `con`: all of it or nothing, and once the block is left it is on the disk.

        A block inside another one joins it. DuckDB's errors come out as this project's; after a full disk the
        connection is of no further use, and every later transaction raises DiskFullError again.
        """
        with self._lock:
            if self._owner == threading.get_ident():
                yield self.con
                return
            if self.read_only:
                raise AutointerpError(f"{self.path} was opened for reading only")
            if self._failed is not None:
                raise self._failed
            self._owner = threading.get_ident()
            try:
                try:
                    self.con.begin()
                    yield self.con
                    self.con.execute("UPDATE store_state SET commit_number = ?", [self._commit_number + 1])
                    self.con.commit()
                except BaseException:
                    with suppress(duckdb.Error):
                        self.con.rollback()
                    raise
                self._commit_number += 1
                self.ledger.append(self._ledger_line(self.con))
                if self._commit_number % GIVE_BACK_EVERY == 0:
                    self._give_back_memory()
            except duckdb.Error as error:
                fault = from_duckdb(error, self.path)
                if isinstance(fault, (DiskFullError, DamagedError)) or isinstance(error, duckdb.FatalException):
                    self._failed = fault
                raise fault from error
            except DiskFullError as error:
                self._failed = error
                raise
            finally:
                self._owner = None

    def _give_back_memory(self) -> None:
        """DuckDB's allocator keeps what was freed (some 60 MB after 200,000 calls) until a limit is set, be it to the
        value that it has."""
        with suppress(duckdb.Error):  # a query beside us may be at the limit; the commit stands either way
            if self._memory_limit is None:  # once: the value is told rounded
                self._memory_limit = self.con.execute("SELECT current_setting('memory_limit')").fetchall()[0][0]
            self.con.execute(f"SET memory_limit = {quoted(self._memory_limit)}")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else commits, replaces the evidence or begins a snapshot while the block lasts; transactions of this
        thread may stand inside."""
        with self._lock:
            yield

    @property
    def commit_number(self) -> int:
        """Transactions committed to the store so far."""
        return self._commit_number

    @property
    def failed(self) -> AutointerpError | None:
        """The error after which this object can write no more (full disk, damage); None while all is well."""
        return self._failed

    def _ledger_line(self, con: duckdb.DuckDBPyConnection) -> LedgerLine:
        if not self._counted:  # before its migrations an older store lacks some tables; one that lost them is found out
            held = {row[0] for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
            self._counted = tuple(table for table in APPEND_ONLY if table in held)
        counts = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table}" for table in self._counted)
        found = dict(con.execute(counts).fetchall())
        return LedgerLine(self.store_id, self._commit_number, {table: found[table] for table in self._counted})

    def now(self) -> datetime:
        """The time in UTC, without zone, later than every time this store object gave before: 'latest' has no ties."""
        with self._lock:
            now = datetime.now(UTC).replace(tzinfo=None)
            self._last_time = max(now, self._last_time + timedelta(microseconds=1))
            return self._last_time

    # --- reading ---------------------------------------------------------------------------------------------------

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query. Inside a transaction of this thread it sees that transaction's own writes."""
        with translated(self.path):
            if self._owner == threading.get_ident():
                return self.con.execute(sql, list(parameters)).fetchall()
            cursor = self.con.cursor()
            try:
                return cursor.execute(sql, list(parameters)).fetchall()
            finally:
                cursor.close()

    def dicts(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """All rows of a query as dicts by column name."""
        with translated(self.path):
            cursor = self.con if self._owner == threading.get_ident() else self.con.cursor()
            try:
                cursor.execute(sql, list(parameters))
                names = [column[0] for column in cursor.description or []]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            finally:
                if cursor is not self.con:
                    cursor.close()

    # --- the evidence file -----------------------------------------------------------------------------------------

    def attach_evidence(self) -> None:
        """Attaches the evidence file as `evidence`, or an empty one in memory before the first merge.

        Raises DamagedError where features say that there must be evidence and the file is missing, unreadable or
        older than they are; MismatchError where it was made for another store.
        """
        attach_evidence(self.con, self.path, self.evidence_path, self.store_id)

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
        with self._lock:
            with translated(self.path):
                self.con.execute("DETACH DATABASE IF EXISTS evidence")
            try:
                _check_evidence_file(new_file, self.store_id)
                with translated(self.evidence_path):
                    os.replace(new_file, self.evidence_path)
                    fsync_folder(self.evidence_path.parent)
                self.evidence_replaced.set()
            finally:
                self.attach_evidence()


def _check_evidence_file(file: Path, store_id: str) -> None:
    """DamagedError unless `file` is a readable evidence file; MismatchError where it was made for another store."""
    with translated(file, opening=True):
        con = connect()
        try:
            con.execute(f"ATTACH {quoted(str(file))} AS evidence (READ_ONLY)")
            _check_attached(con, file, store_id)
        finally:
            con.close()


def _check_attached(con: duckdb.DuckDBPyConnection, file: Path, store_id: str) -> None:
    names = {
        row[0]
        for row in con.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_catalog = 'evidence'"
        ).fetchall()
    }
    missing = [name for name in _EVIDENCE_TABLES if name not in names]
    if missing:
        raise DamagedError(f"{file} is not a whole evidence file: {', '.join(missing)} missing. {way_out(file)}")
    other = con.execute(
        "SELECT harvest_id FROM evidence.harvest_info WHERE store_id IS NOT NULL AND store_id <> ?", [store_id]
    ).fetchall()
    if other:
        raise MismatchError(
            f"{file} was merged for another store (harvest {other[0][0]}); put back the evidence file that belongs to "
            "this one, or run harvest and merge again"
        )


def attach_evidence(con: duckdb.DuckDBPyConnection, path: Path, evidence_path: Path, store_id: str) -> None:
    """See StoreConnection.attach_evidence; here for connections that are not a Store (query)."""
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
            _in_schema(con, sql_file("evidence_schema.sql"))
        return
    with translated(evidence_path, opening=True):
        con.execute(f"ATTACH {quoted(str(evidence_path))} AS evidence (READ_ONLY)")
        _check_attached(con, evidence_path, store_id)
        held = dict(
            con.execute("SELECT dictionary_id, max(harvest_id) FROM evidence.harvest_info GROUP BY ALL").fetchall()
        )
    # Newer evidence than features is a merge that was cut off between the two files: run again, it goes on.
    behind = [d for d, harvest in needed.items() if held.get(d, -1) < harvest]
    if behind:
        raise DamagedError(
            f"{evidence_path} does not hold harvest {needed[behind[0]]}, which the features of dictionary "
            f"{behind[0]} in {path.name} come from (it holds {held.get(behind[0], 'none')}): an older or foreign copy. "
            "Restore the right file; without one, `autointerp recover` says how to go on"
        )


def evidence_of(con: duckdb.DuckDBPyConnection) -> str:
    """What tells the evidence attached to `con` from any other: the facts of every merge in it."""
    rows = con.execute(
        "SELECT harvest_id, dictionary_id, n_contexts, created_at::VARCHAR FROM evidence.harvest_info ORDER BY ALL"
    ).fetchall()
    return json.dumps(rows)


def _in_schema(con: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Runs DDL inside the attached `evidence` database and goes back to the main one."""
    row = con.execute("SELECT current_database()").fetchone()
    assert row is not None
    con.execute("USE evidence")
    try:
        con.execute(sql)
    finally:
        con.execute(f'USE "{row[0]}"')
