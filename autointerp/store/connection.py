"""The one connection to an open store: transactions with their ledger line, queries, and rows read and written by name.

Each group of tables has a file of its own (dictionaries, features, contexts, explanations, scores, calls ...) with a
class over this one; store.py puts them side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import duckdb

from autointerp.errors import AutointerpError, DamagedError, DiskFullError
from autointerp.store.named_rows import Record, field_names, read_keyed_records, read_records
from autointerp.store.safety.faults import from_duckdb, translated
from autointerp.store.safety.open_files import OpenFiles
from autointerp.store.safety.paths import DATABASE_LOGS, evidence_path_of
from autointerp.store.safety.row_ledger import LedgerLine, RowLedger
from autointerp.store.values import clean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

APPEND_ONLY = (
    "corpora", "dictionaries", "harvests", "explanations", "scores", "predictions", "llm_calls", "runs",
    "measure_tasks", "measurements", "judge_repeats",
)  # fmt: skip
"""Tables from which nothing is ever deleted. The row ledger counts their rows."""

SEQUENCED = ("explanations", "scores", "llm_calls", "runs", "batches")
"""Tables whose column `sequence` says in which order their rows were written: one counter for all of them."""

GIVE_BACK_EVERY = 16
"""Commits after which memory that DuckDB no longer uses goes back to the system."""


def connect(path: Path | str = ":memory:", *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection that never reaches for the network and prints nothing.

    DuckDB 2.0 prints a progress bar to standard output after two seconds, even into a pipe. The setting belongs to the
    connection; cursors inherit it.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    con = duckdb.connect(str(path), read_only=read_only, config=config)
    con.execute("SET enable_progress_bar = false")
    return con


def restrict(con: duckdb.DuckDBPyConnection, path: Path, more: Sequence[Path] = ()) -> duckdb.DuckDBPyConnection:
    """Cuts `con`, a connection to the store at `path`, off from all files but the store's evidence, so that a view or
    macro of a store that came from elsewhere reads nothing on this machine. `more`: other files that it may reach."""
    evidence = evidence_path_of(path)
    logs = [evidence.with_name(evidence.name + end) for end in DATABASE_LOGS]
    allowed = ", ".join(quoted(str(file)) for file in (evidence, *logs, *more))
    try:
        con.execute(f"SET allowed_paths = [{allowed}]")
        con.execute("SET enable_external_access = false")
    except duckdb.InvalidInputException as error:
        # Two readers in one process share a database, which the first of them has cut off already.
        if more or "when enable_external_access is disabled" not in str(error):
            raise
    return con


def sql_file(name: str) -> str:
    """The text of an SQL file of this package: views.sql, evidence_schema.sql, merge/contexts.sql."""
    return (resources.files("autointerp.store") / name).read_text(encoding="utf-8")


def quoted(text: str) -> str:
    """`text` as an SQL string literal, for the few statements (ATTACH) that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """`name` as an SQL identifier: of a database, which is called after its file, a table or a column."""
    return '"' + name.replace('"', '""') + '"'


class StoreConnection:
    """One open main file with its evidence attached. `Store.open` makes it; close it, or use it in a `with` block.

    Everything is written inside `transaction()`, on the one connection `con`. Reading methods use a cursor of their
    own, so they may run in one thread while another commits.
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
        """The thread that is inside a transaction."""
        self._commit_number = 0
        self._counted: tuple[str, ...] = ()
        """The tables of APPEND_ONLY that the store has."""
        self._types: dict[str, dict[str, str]] = {}
        self._last_time = datetime.min
        self._last_sequence: int | None = None
        """The highest number in SEQUENCED; None until a row is written."""
        self._failed: AutointerpError | None = None
        self._files: OpenFiles | None = None
        """Set while the store is open for writing."""
        self._displaced_files: dict[Path, str] = {}
        """Those of our files that were deleted or replaced, and what became of each."""
        self._displaced: DamagedError | None = None
        self._saved_as: Path | None = None
        self._saved_number = -1
        """The last commit that was saved elsewhere."""
        self._memory_limit: str | None = None
        self.evidence_replaced = threading.Event()
        """Set when new evidence was put in place. The publisher of snapshots waits for it and clears it."""
        self.snapshot_age_s: float | None = None
        """Seconds since this snapshot was last known to be the newest; None if this is the store itself."""

    def close(self) -> None:
        """Folds the WAL into the file and lets go of it. Safe to call twice."""
        with self._lock:
            files, self._files = self._look_for_files(), None
            if files is not None and self._displaced_files:
                self._save()
                with suppress(duckdb.Error):  # a WAL beside another main file would stand in that one's way
                    self.con.execute("PRAGMA disable_checkpoint_on_shutdown")
            with suppress(duckdb.Error):
                self.con.close()
            if files is not None and self.path in self._displaced_files:
                files.remove_wal()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None and self._displaced is not None:
            raise self._displaced

    # --- writing ---------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction on `con`: it is made whole or not at all, and is on the disk once the block is left.

        A block inside another one joins it. DuckDB's errors become this project's. After a full disk the connection can
        no longer be used, and every later transaction raises DiskFullError again.

        Where the store's file, or its evidence, was deleted or replaced meanwhile, all that the store holds is saved
        elsewhere, and this transaction and every later one raise DamagedError once they are made; `close` saves what
        was added since.
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
                self._look_for_files()
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
                self._look_for_files(wrote=True)
                if self._displaced_files:
                    self._raise_displaced()
                if self._files is not None:
                    self._files.written()
                self.ledger.append(self._ledger_line())
                if self._commit_number % GIVE_BACK_EVERY == 0:
                    self._give_back_memory()
            except duckdb.Error as error:
                if self._displaced_files:
                    self._raise_displaced()
                fault = from_duckdb(error, self.path)
                if isinstance(fault, (DiskFullError, DamagedError)) or isinstance(error, duckdb.FatalException):
                    self._failed = fault
                raise fault from error
            except DiskFullError as error:
                self._failed = error
                raise
            finally:
                self._owner = None

    def _look_for_files(self, wrote: bool = False) -> OpenFiles | None:
        """Finds out whether the files that are open are still at their paths. Where they are not, what is committed
        from here on goes to the open file as before. `wrote`: see OpenFiles.displaced."""
        if self._files is not None and not self._displaced_files:
            self._displaced_files = self._files.displaced(wrote)
            if self._displaced_files:
                with suppress(OSError):  # DuckDB makes its WAL by path
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(duckdb.Error):
                    self.con.execute("SET wal_autocheckpoint = '1TB'")
        return self._files

    def _save(self) -> None:
        """Saves elsewhere what the store holds, unless all of it was saved already."""
        if self._saved_number != self._commit_number:
            told = DamagedError(self._keep())
            self._displaced = self._displaced or told
            self._saved_number = self._commit_number

    def _raise_displaced(self) -> NoReturn:
        if self._displaced is None:
            self._save()
        assert self._displaced is not None
        raise self._displaced

    def _note_evidence(self) -> None:
        """Call it when other evidence was attached."""
        if self._files is not None:
            self._files.evidence_is(self.evidence_path if self.evidence_path.exists() else None)

    def _keep(self) -> str:
        """Saves what the store holds under other names, and says so in a sentence (safety/keeping.py)."""
        raise NotImplementedError

    def _give_back_memory(self) -> None:
        """DuckDB's allocator keeps freed memory (some 60 MB after 200,000 calls) until a limit is set, even to the
        value that it has already."""
        with suppress(duckdb.Error):  # a query in another thread may be at the limit; the commit stands either way
            if self._memory_limit is None:  # asked once, since DuckDB gives the value rounded
                self._memory_limit = self.con.execute("SELECT current_setting('memory_limit')").fetchall()[0][0]
            self.con.execute(f"SET memory_limit = {quoted(self._memory_limit)}")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within the block no other thread commits, replaces the evidence or begins a snapshot. This thread may run
        transactions inside it."""
        with self._lock:
            yield

    @property
    def commit_number(self) -> int:
        """Transactions committed to the store so far."""
        return self._commit_number

    @property
    def displaced(self) -> DamagedError | None:
        """The error that every transaction raises after it is made, once the store's files were taken away; None while
        all is well."""
        return self._displaced

    @property
    def failed(self) -> AutointerpError | None:
        """The error after which this object can no longer write (full disk, damage); None while all is well."""
        return self._failed

    def now(self) -> datetime:
        """The time in UTC, without zone, later than every time this object gave before. It does not say which of two
        rows is the later: the clock may have been set back since an earlier run (see `next_sequence`)."""
        with self._lock:
            now = datetime.now(UTC).replace(tzinfo=None)
            self._last_time = max(now, self._last_time + timedelta(microseconds=1))
            return self._last_time

    def insert_columns(self, table: str, columns: Mapping[str, Sequence[Any]], conflict: str = "") -> None:
        """One INSERT of whole columns, given by name and equally long; rows come in their order. `conflict`: an
        ON CONFLICT clause. Call it inside a transaction."""
        types = self._types_of(table)
        names = ", ".join(identifier(name) for name in columns)
        values = ", ".join(f"unnest(?::{types[name]}[])" for name in columns)
        self.con.execute(f"INSERT INTO {table} ({names}) SELECT {values} {conflict}", list(columns.values()))

    def insert_row(self, table: str, row: Mapping[str, Any]) -> None:
        """One INSERT of one row, by column name. Call it inside a transaction."""
        names = ", ".join(identifier(name) for name in row)
        self.con.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", list(row.values()))

    def insert_records(
        self, table: str, records: Sequence[DataclassInstance], conflict: str = "", *, without: Sequence[str] = ()
    ) -> None:
        """One INSERT into a table of SEQUENCED, of records of one type, whose fields are columns except those in
        `without`; created_at is the time of each, sequence its number. Call it inside a transaction."""
        names = field_names(type(records[0]), without)
        columns: dict[str, list[Any]] = {name: [clean(getattr(r, name)) for r in records] for name in names}
        columns["created_at"] = [self.now() for _ in records]
        columns["sequence"] = [self.next_sequence() for _ in records]
        self.insert_columns(table, columns, conflict)

    def next_id(self, table: str, column: str) -> int:
        """The number for a new row of `table`. Call it inside a transaction."""
        return int(self.con.execute(f"SELECT coalesce(max({column}), 0) + 1 FROM {table}").fetchall()[0][0])

    def next_sequence(self) -> int:
        """The number for a new row of a table in SEQUENCED, higher than all that the store has given, whatever the
        clock says. Call it inside a transaction."""
        if self._last_sequence is None:
            newest = " UNION ALL ".join(f"SELECT max(sequence) AS number FROM {table}" for table in SEQUENCED)
            found = self.con.execute(f"SELECT coalesce(max(number), 0) FROM ({newest})").fetchall()
            self._last_sequence = int(found[0][0])
        self._last_sequence += 1
        return self._last_sequence

    def _types_of(self, table: str) -> dict[str, str]:
        """The SQL type of each column, read once."""
        if table not in self._types:
            found = self.con.execute(
                "SELECT column_name, data_type FROM duckdb_columns() "
                "WHERE database_name = current_database() AND table_name = ?",
                [table],
            ).fetchall()
            self._types[table] = dict(found)
        return self._types[table]

    # --- reading ---------------------------------------------------------------------------------------------------

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query. Inside a transaction of this thread it sees that transaction's own writes."""
        with self._reading() as con:
            return con.execute(sql, list(parameters)).fetchall()

    def dicts(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """All rows of a query as dicts by column name."""
        with self._reading() as con:
            con.execute(sql, list(parameters))
            names = [column[0] for column in con.description or []]
            return [dict(zip(names, row, strict=True)) for row in con.fetchall()]

    def records(
        self, record: type[Record], sql: str, parameters: Sequence[Any] = (), *, without: Sequence[str] = ()
    ) -> list[Record]:
        """All rows of a query as records, made by column name (see named_rows.py; `select_list` writes the columns).

        Raises AutointerpError unless the columns are the record's fields, except its last fields in `without`.
        """
        with self._reading() as con:
            return read_records(con.execute(sql, list(parameters)), record, without=without)

    def keyed_records(
        self, key: str, record: type[Record], sql: str, parameters: Sequence[Any] = ()
    ) -> list[tuple[Any, Record]]:
        """Like `records`, for a query with one more column `key`, whose value is paired with each record."""
        with self._reading() as con:
            return read_keyed_records(con.execute(sql, list(parameters)), key, record)

    def gives_the_same(self, one: str, of_one: Sequence[Any], other: str, of_other: Sequence[Any]) -> bool:
        """Whether two queries, each with its parameters, give the same rows, in any order and however often."""
        sql = f"SELECT 1 FROM (({one} EXCEPT {other}) UNION ALL ({other} EXCEPT {one})) LIMIT 1"
        return not self.rows(sql, [*of_one, *of_other, *of_other, *of_one])

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor of its own, for queries that share temporary tables: those end with it."""
        with translated(self.path):
            cursor = self.con.cursor()
            try:
                yield cursor
            finally:
                cursor.close()

    @contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        if self._owner == threading.get_ident():
            with translated(self.path):
                yield self.con
        else:
            with self.cursor() as cursor:
                yield cursor

    # --- what the row ledger remembers -----------------------------------------------------------------------------

    def _read_state(self) -> None:
        rows = self.con.execute("SELECT store_id, commit_number FROM store_state").fetchall()
        if len(rows) != 1:
            raise DamagedError(f"{self.path}: table store_state holds {len(rows)} rows instead of one")
        self.store_id, self._commit_number = rows[0]

    def check_rows(self) -> None:
        """Raises DamagedError where the store holds less than was committed to it."""
        self._read_state()
        self.ledger.check(self._ledger_line(), self.path)

    def _ledger_line(self) -> LedgerLine:
        if not self._counted:  # before its migrations an older store lacks some tables; a lost table is found out
            held = {row[0] for row in self.con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
            self._counted = tuple(table for table in APPEND_ONLY if table in held)
        counts = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table}" for table in self._counted)
        found = dict(self.con.execute(counts).fetchall())
        return LedgerLine(self.store_id, self._commit_number, {table: found[table] for table in self._counted})
