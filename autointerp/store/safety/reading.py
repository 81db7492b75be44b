"""Opening a store for reading: the main file or, while a run writes to it, the snapshot that the run publishes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import duckdb

from autointerp.errors import InputError, MismatchError, StoreBusyError
from autointerp.store.connection import connect, quoted, restrict
from autointerp.store.evidence_file import attach_evidence, evidence_of
from autointerp.store.safety.faults import translated
from autointerp.store.safety.paths import evidence_path_of, real_path, snapshot_path_of
from autointerp.store.safety.row_ledger import RowLedger
from autointerp.store.store import Store

_Opened = TypeVar("_Opened")
_ATTEMPTS, _PAUSE_S = 3, 0.1
"""A writer may end, or publish, after we looked for one file and before we look for the other."""


def open_for_reading(path: Path | str, say: Callable[[str], None] | None = None) -> Store:
    """The store at `path`, for reading. Where another process writes to it, this is its newest snapshot, and `say` is
    told how old that is (Store.snapshot_age_s). A snapshot has no replies (llm_calls.reply).

    Raises what Store.open raises; StoreBusyError only where the writer has published nothing.
    """
    path = real_path(path)

    def of_snapshot() -> Store:
        con, age_s = _connect_snapshot(path, say, _restricted(path))
        try:
            return Store.on_snapshot(path, con, age_s)
        except BaseException:
            con.close()
            raise

    return _either(path, lambda: Store.open(path, read_only=True), of_snapshot)


def connect_for_reading(
    path: Path, say: Callable[[str], None] | None = None, *, may_reach: Sequence[Path] | None = (),
    spill: str | None = None,
) -> duckdb.DuckDBPyConnection:  # fmt: skip
    """Like `open_for_reading`, but gives a bare connection with the evidence attached. `may_reach`: the files beside
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

    return _either(path, lambda: _connect_main(path, opened), lambda: _connect_snapshot(path, say, opened)[0])


def _restricted(path: Path) -> Callable[[Path], duckdb.DuckDBPyConnection]:
    return lambda file: restrict(connect(file, read_only=True), path)


def _either(path: Path, main: Callable[[], _Opened], snapshot: Callable[[], _Opened]) -> _Opened:
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            return main()
        except StoreBusyError as error:
            busy = error
        try:
            return snapshot()
        except FileNotFoundError:
            reason: Exception = StoreBusyError(
                f"{busy}. While a run works it publishes {snapshot_path_of(path).name} for readers, unless [store] "
                "snapshot_seconds is 0; there is none yet"
            )
        except StoreBusyError as error:
            reason = error
    raise reason


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
        Store.check_rows(path, con)
        attach_evidence(con, path, evidence_path_of(path), row[0] if row else "")
        return con
    except BaseException:
        con.close()
        raise


def _connect_snapshot(
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
