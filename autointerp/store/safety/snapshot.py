"""Publishes the store for readers while a run writes, as a copy of the main file that is renewed every few seconds.

While a process writes to a DuckDB file, no other process can open it. `X.snapshot.duckdb` is a whole store file that
the writer itself makes: one read transaction copies every table while commits go on, so it shows one commit and never
half of one. It leaves out the replies of LLM calls (large, and needed only by the ledger), the indexes, and the
evidence, which does not change and is shared; the snapshot notes which evidence it belongs to. It is finished under
another name, synced and renamed into place. Its modification time says up to when it equals the store.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import duckdb

from autointerp.errors import DiskFullError, StoreBusyError
from autointerp.store.connection import connect, identifier, quoted, sql_file
from autointerp.store.evidence_file import evidence_of, run_inside
from autointerp.store.safety.faults import OpenHereError, translated
from autointerp.store.safety.paths import real_path, snapshot_path_of, unfinished_snapshot_of
from autointerp.store.safety.row_ledger import fsync_folder
from autointerp.store.store import Store

_LEFT_OUT = {"llm_calls": "* REPLACE (NULL::VARCHAR AS reply)"}
_COPY = '"/snapshot"'
"""The name of the attached copy in SQL. No store has it: its name is that of a file, without a slash."""
_SPARE_BYTES = 64 * 2**20
READERS_WAIT_S = 30.0
"""Seconds that a run waits for readers to let go of the store; the time limit of `query` by default."""
_READERS_PAUSE_S = 0.1
_LET_GO_S = 10.0
"""Seconds that a finished copy is waited for while a statement of another thread, which looks through the catalogs of
all attached files, still holds on to it after it was detached."""
_LARGEST_SHARE = 3
"""At most one of this many seconds is spent on copying, so a large store is published less often than asked for."""


@contextmanager
def open_for_writing(
    path: Path, *, create: bool = False, snapshot_seconds: float = 0.0, say: Callable[[str], None] | None = None
) -> Iterator[Store]:
    """Opens the store for a run. Readers that hold it are waited for, READERS_WAIT_S at most; another writer is not.
    While the block lasts, readers find a snapshot that is at most `snapshot_seconds` old
    (0: none). It is removed when the store is closed, since then the store itself can be read."""
    store = _opened_once_unread(path, create, say)
    publisher = SnapshotPublisher(store, snapshot_seconds, say) if snapshot_seconds > 0 else None
    try:
        with store, publisher or nullcontext():
            yield store
    finally:
        if publisher:
            publisher.remove()


def _opened_once_unread(path: Path, create: bool, say: Callable[[str], None] | None) -> Store:
    until, has_told = time.monotonic() + READERS_WAIT_S, False
    while True:
        try:
            return Store.open(path, create=create)
        except StoreBusyError as error:
            is_over = isinstance(error, OpenHereError) or time.monotonic() >= until
            if is_over or not _is_only_read(path):
                raise
            if say is not None and not has_told:
                say(f"waiting for those who read {path}, {READERS_WAIT_S:g} s at most")
                has_told = True
        time.sleep(_READERS_PAUSE_S)


def _is_only_read(path: Path) -> bool:
    """Whether those who hold the store's file let others read it."""
    try:
        with translated(path):
            connect(real_path(path), read_only=True).close()
    except StoreBusyError:
        return False
    return True


class SnapshotPublisher:
    """`with SnapshotPublisher(store, 60.0):` publishes from a thread of its own: at once, then every `seconds` if
    something was committed, and right after new evidence. A fault is told to `say` once, and publishing is tried again;
    it never ends the run."""

    def __init__(self, store: Store, seconds: float, say: Callable[[str], None] | None = None) -> None:
        self._store = store
        self._seconds = seconds
        self._say = say or (lambda message: None)
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._publish_until_stopped, name="snapshot", daemon=True)
        self._stopping = False
        self._copying: duckdb.DuckDBPyConnection | None = None
        self._published: tuple[int, int] | None = None
        """Device and inode of the file last put in place."""
        self._commit_number = -1
        self.path = snapshot_path_of(store.path)
        self.took_s = 0.0
        """Seconds that the last snapshot took, from the instant it shows until it was in place."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._store.evidence_replaced.set()
        while self._thread.is_alive():
            copying = self._copying
            if copying is not None:
                with suppress(duckdb.Error):
                    copying.interrupt()
            self._thread.join(0.05)

    def remove(self) -> None:
        """Removes the snapshot, unless another process has put its own there meanwhile."""
        with suppress(OSError):
            found = self.path.stat()
            if (found.st_dev, found.st_ino) == self._published:
                self.path.unlink()

    def _publish_until_stopped(self) -> None:
        while not self._stopping and self._store.failed is None:
            self._store.evidence_replaced.clear()
            if self._stopping:  # set between the two lines above
                return
            begun = time.monotonic()
            try:
                if not self._confirm():
                    self.publish()
            except (
                Exception
            ) as error:  # whatever it is: a thread that ends says nothing, and readers see no new snapshot
                if self._stopping:
                    return
                self._tell(f"readers see an old snapshot of the store, as a new one could not be made: {error}")
            period = max(self._seconds - 1.5 * self.took_s, _LARGEST_SHARE * self.took_s)
            if period + self.took_s > self._seconds:
                self._tell(
                    f"publishing the store for readers takes {self.took_s:.1f} s: snapshots get up to "
                    f"{period + self.took_s:.0f} s old instead of {self._seconds:g} s ([store] snapshot_seconds)"
                )
            self._store.evidence_replaced.wait(max(0.0, begun + period - time.monotonic()))

    def _tell(self, message: str) -> None:
        kind = message[:30]  # up to the first number
        if kind not in self._told:
            self._told.add(kind)
            self._say(message)

    def _confirm(self) -> bool:
        """Whether the published snapshot still equals the store. If so, its time of modification becomes now."""
        now = time.time()
        if self._commit_number != self._store.commit_number:
            return False
        try:
            os.utime(self.path, (now, now))
        except FileNotFoundError:  # somebody deleted it
            return False
        return True

    def publish(self) -> None:
        """Publishes one snapshot now. Raises DiskFullError or AutointerpError, and then the one before stays."""
        store, new = self._store, unfinished_snapshot_of(self._store.path)
        with translated(self.path):
            free, needed = shutil.disk_usage(store.path.parent).free, store.path.stat().st_size + _SPARE_BYTES
            if free < needed:
                # A full disk during a checkpoint of DuckDB could break the run's own connection too.
                raise DiskFullError(f"{free:,} bytes are free beside {store.path.name}, a copy needs {needed:,}")
            _unlink(new)
            try:
                commit_number, instant = self._copy(new)
                _add_views(new)
                with open(new, "rb+") as file:
                    os.fsync(file.fileno())
                    status = os.fstat(file.fileno())
                os.utime(new, (instant, instant))
                os.replace(new, self.path)
                fsync_folder(self.path.parent)
            finally:
                _unlink(new)
        self._commit_number, self._published = commit_number, (status.st_dev, status.st_ino)
        self.took_s = time.time() - instant

    def _copy(self, new: Path) -> tuple[int, float]:
        """Copies all tables into the file `new`. Returns the commit that it shows, and when (seconds since 1970)."""
        store = self._store
        cursor = store.con.cursor()
        try:
            cursor.execute(f"ATTACH {quoted(str(new))} AS {_COPY}")
            self._copying = cursor
            with store.exclusive():  # no commit, and no change of the evidence, between these few reads
                instant = time.time()
                cursor.begin()
                commit_number = cursor.execute("SELECT commit_number FROM store_state").fetchall()[0][0]
                facts = store.con.cursor()  # a second cursor: the long transaction must not hold on to the evidence
                try:
                    evidence = evidence_of(facts)
                    (main,) = facts.execute("SELECT current_database()").fetchall()[0]
                    tables = facts.execute(
                        "SELECT table_name FROM duckdb_tables() WHERE database_name = ? AND NOT temporary", [main]
                    ).fetchall()
                finally:
                    facts.close()
            for (table,) in sorted(tables):
                columns = _LEFT_OUT.get(table, "*")
                name = identifier(table)
                cursor.execute(f"CREATE TABLE {_COPY}.{name} AS SELECT {columns} FROM {identifier(main)}.{name}")
            cursor.execute(
                f"CREATE TABLE {_COPY}.snapshot_info "
                "(commit_number BIGINT, taken_at TIMESTAMP, seconds DOUBLE, pid BIGINT, evidence VARCHAR)"
            )
            cursor.execute(
                f"INSERT INTO {_COPY}.snapshot_info VALUES (?, make_timestamp(?), ?, ?, ?)",
                [commit_number, int(instant * 1e6), self._seconds, os.getpid(), evidence],
            )
            cursor.commit()
            cursor.execute(f"CHECKPOINT {_COPY}")
        finally:
            self._copying = None
            with suppress(duckdb.Error):
                cursor.rollback()
            with suppress(duckdb.Error):
                cursor.execute(f"DETACH DATABASE IF EXISTS {_COPY}")
            cursor.close()
        return commit_number, instant


def _add_views(new: Path) -> None:
    """Adds the views, through a database instance of its own: they need an `evidence`, and the run may be replacing
    it."""
    with _connect_once_let_go(new) as con:
        con.execute("ATTACH ':memory:' AS evidence")
        run_inside(con, "evidence", sql_file("evidence_schema.sql"))
        con.execute(sql_file("views.sql"))


def _connect_once_let_go(new: Path) -> duckdb.DuckDBPyConnection:
    until = time.monotonic() + _LET_GO_S
    while True:
        try:
            return connect(new)
        except duckdb.ResourceInUseException:
            if time.monotonic() >= until:
                raise
        time.sleep(0.01)


def _unlink(file: Path) -> None:
    for leftover in (file, file.with_name(file.name + ".wal")):
        leftover.unlink(missing_ok=True)
