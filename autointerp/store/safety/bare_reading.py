"""A bare connection to a store, for reading: to the main file or, while a run writes to it, to its snapshot. It is all
that the process of a query needs of the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import duckdb

from autointerp.errors import InputError, MismatchError, StoreBusyError
from autointerp.store.connection import StoreConnection, connect, quoted, restrict
from autointerp.store.evidence_file import attach_evidence, evidence_of
from autointerp.store.safety.faults import translated
from autointerp.store.safety.paths import evidence_path_of, snapshot_path_of
from autointerp.store.safety.row_ledger import RowLedger

_Opened = TypeVar("_Opened")
WRITER_WAIT_S, _PAUSE_S = 2.0, 0.1
"""Seconds that a reader waits for a writer: one that has just begun publishes its first snapshot in a moment, and any
may end, or publish, after we looked for one file and before we look for the other."""


def connect_for_reading(
    path: Path, say: Callable[[str], None] | None = None, *, may_reach: Sequence[Path] | None = (),
    spill: str | None = None,
) -> duckdb.DuckDBPyConnection:  # fmt: skip
    """A connection to the store at `path`, an absolute one, with the evidence attached. Where another process writes
    to it, it is one to the newest snapshot, and `say` is told how old that is. `may_reach`: the files beside
    the store's own that its statements can read or write; None for all. `spill`: the folder for what memory does not
    hold, none where it is empty, by default one beside the store. Raises InputError if there is no store."""

    def opened(file: Path) -> duckdb.DuckDBPyConnection:
        con = connect(file, read_only=True)
        try:
            if spill is not None:
                con.execute(f"SET temp_directory = {quoted(spill)}")
            if may_reach is not None:
                restrict(con, path, may_reach)
            return con
        except BaseException:
            con.close()
            raise

    return either(path, lambda: _connect_main(path, opened), lambda: snapshot_connection(path, say, opened)[0])


def either(path: Path, main: Callable[[], _Opened], snapshot: Callable[[], _Opened]) -> _Opened:
    """What `main` opens or, while the main file of the store at `path` is being written, `snapshot`. Raises
    StoreBusyError where neither can be had within WRITER_WAIT_S."""
    until = time.monotonic() + WRITER_WAIT_S
    while True:
        try:
            return main()
        except StoreBusyError as error:
            busy = error
        try:
            return snapshot()
        except FileNotFoundError:
            reason = StoreBusyError(
                f"{busy}. While a run works it publishes {snapshot_path_of(path).name} for readers, unless [store] "
                "snapshot_seconds is 0; there is none yet"
            )
        except StoreBusyError as error:
            reason = error
        if time.monotonic() >= until:
            raise reason
        time.sleep(_PAUSE_S)


def _connect_main(path: Path, opened: Callable[[Path], duckdb.DuckDBPyConnection]) -> duckdb.DuckDBPyConnection:
    if not path.exists():
        raise InputError(f"no store at {path}; name one with --store")
    with translated(path, opening=True):
        con = opened(path)
    try:
        with translated(path, opening=True):
            try:
                row = con.execute("SELECT store_id FROM store_state").fetchone()
            except duckdb.CatalogException:
                raise InputError(f"{path} is a DuckDB file, but not a store of this program") from None
        with translated(path, opening=True):
            StoreConnection(path, con, True).check_rows()
        attach_evidence(con, path, evidence_path_of(path), row[0] if row else "")
        return con
    except BaseException:
        con.close()
        raise


def snapshot_connection(
    path: Path, say: Callable[[str], None] | None, opened: Callable[[Path], duckdb.DuckDBPyConnection]
) -> tuple[duckdb.DuckDBPyConnection, float]:
    """A connection to the snapshot of the store at `path`, and the snapshot's age in seconds.

    Raises FileNotFoundError (no snapshot), StoreBusyError (it cannot be read, or the evidence was replaced since),
    MismatchError (it belongs to another store).
    """
    file = snapshot_path_of(path)
    # Before opening: should a newer snapshot replace this one meanwhile, we name too high an age, never too low a one.
    current_until = file.stat().st_mtime
    try:
        con = opened(file)
    except duckdb.Error as error:
        file.stat()
        raise StoreBusyError(f"{path} is being written and its snapshot cannot be read ({error})") from error
    try:
        with translated(file, opening=True):
            ((store_id,),) = con.execute("SELECT store_id FROM store_state").fetchall()
            ((seconds, pid, evidence),) = con.execute("SELECT seconds, pid, evidence FROM snapshot_info").fetchall()
        promised = RowLedger(path.with_name(path.name + ".ledger")).last()
        if promised is not None and promised.store_id != store_id:
            raise MismatchError(
                f"{file} is a snapshot of another store than {path}; delete it, the run that writes makes a new one"
            )
        attach_evidence(con, path, evidence_path_of(path), store_id)
        if evidence_of(con) != evidence:
            raise StoreBusyError(
                f"process {pid} has just put new evidence beside {path}; a snapshot that goes with it follows as soon "
                "as the merge is done. Try again in a few seconds"
            )
        age_s = max(0.0, time.time() - current_until)
        if say:
            late = f" It should be {seconds:g} s old at most: the writer is held up." if age_s > 2 * seconds + 5 else ""
            say(f"reading a snapshot from {age_s:.0f} s ago: process {pid} is writing the store.{late}")
        return con, age_s
    except BaseException:
        con.close()
        raise
