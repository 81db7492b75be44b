"""Opening a store: nothing committed may be missing, the schema is brought up to date, the evidence is attached."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import duckdb

from autointerp.errors import DamagedError, InputError
from autointerp.store.connection import StoreConnection, connect, restrict
from autointerp.store.evidence_file import attach_evidence
from autointerp.store.safety.faults import translated
from autointerp.store.safety.open_files import OpenFiles
from autointerp.store.safety.paths import real_path, saved_files_of, snapshot_path_of, unfinished_snapshot_of
from autointerp.store.safety.row_ledger import RowLedger
from autointerp.store.schema import is_ours, migrate, pending_migrations, refresh_views, refuse_disguised


class StoreOpening(StoreConnection):
    """The ways to open a store."""

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False, create: bool = False) -> Self:
        """Opens the store at `path`. With `create`, makes a store if there is no file.

        Raises InputError (no such store, not one of ours), StoreBusyError (another process has it), DamagedError
        (unreadable, written by a newer version, fewer rows than committed, evidence missing), DiskFullError,
        MismatchError (the evidence file belongs to another store). A damaged file is never changed or deleted.
        """
        path = real_path(path)
        ledger = RowLedger(path.with_name(path.name + ".ledger"))
        wal = path.with_name(path.name + ".wal")
        is_new = not path.exists()
        if is_new:
            for left in (wal, ledger.path):
                if left.exists():
                    saved = saved_files_of(path)
                    way = f"Move {saved[-1]}, where a run saved what it held, to its place" if saved else "Restore it"
                    raise DamagedError(
                        f"{path} is missing, but {left.name} beside it shows that it held a store. {way}, or let "
                        "`autointerp recover` set aside what is left, to start a new one"
                    )
            if not create or read_only:
                raise InputError(f"no store at {path}; `autointerp run` or `autointerp demo` makes one")
            with translated(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        elif not read_only and wal.exists():
            # A writing connection folds the WAL into the file when it closes. A WAL that was cut short must be found
            # before that, by a connection that changes nothing.
            with translated(path, opening=True), restrict(connect(path, read_only=True), path) as con:
                cls(path, con, True)._check_ledger()
        with translated(path, opening=True):
            con = connect(path, read_only=read_only)
            if read_only:
                restrict(con, path)
            else:  # a store that is refused below, because of its evidence say, stays as it is as well
                con.execute("PRAGMA disable_checkpoint_on_shutdown")
        store = cls(path, con, read_only)
        try:
            if not read_only and not is_new:  # a reader is cut off from what such a store could do
                refuse_disguised(con, path)
            store._prepare()
            if not read_only:  # leftovers of a run that was killed; readers must not take them for ours
                new = unfinished_snapshot_of(path)
                with translated(path):
                    for leftover in (snapshot_path_of(path), new, new.with_name(new.name + ".wal")):
                        leftover.unlink(missing_ok=True)
                    con.execute("PRAGMA enable_checkpoint_on_shutdown")
                    store._files = OpenFiles(path)
                store._note_evidence()
        except BaseException:
            con.close()
            raise
        return store

    @classmethod
    def on_snapshot(cls, path: Path, con: duckdb.DuckDBPyConnection, age_s: float) -> Self:
        """The store at `path` as its snapshot shows it. `con` is a connection to the snapshot, with evidence; `age_s`
        is the snapshot's age in seconds (safety/reading.py)."""
        store = cls(path, con, True)
        store.snapshot_age_s = age_s
        with translated(path, opening=True):
            if pending_migrations(con, path):
                raise InputError(f"the process that writes {path} is of an older version; wait until it has ended")
            store._read_state()
        return store

    def _check_ledger(self) -> None:
        if is_ours(self.con, self.path):
            self.check_rows()

    def _prepare(self) -> None:
        with translated(self.path, opening=True):
            self._check_ledger()
            pending = pending_migrations(self.con, self.path)
        if pending and self.read_only:
            raise InputError(
                f"{self.path} was written by an older version and has to be brought up to date; `autointerp recover` "
                "does that and nothing else"
            )
        with translated(self.path):
            for migration in pending:
                migrate(self, migration)
            if pending:  # DDL must not stay in a long-lived WAL
                self.con.execute("CHECKPOINT")
            self._counted = ()
            self._read_state()
        attach_evidence(self.con, self.path, self.evidence_path, self.store_id)
        if not self.read_only:
            refresh_views(self)
            self.ledger.compact(self._ledger_line())
