"""`autointerp recover`: what to do with a store that refuses to open.

Nothing is deleted. A file that stands in the way is moved to another name (`X.quarantined-<UTC time>`), or copied there
before it changes. Committed rows that are gone are counted by the row ledger. A main file with unreadable blocks stays
where it is, and all that can be read of it is copied into `X.recovered.duckdb`. A sound store that an older version
wrote, which refuses readers, is brought up to date.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from autointerp.errors import AutointerpError, DamagedError, InputError, MismatchError, StoreBusyError
from autointerp.store.connection import APPEND_ONLY, connect, identifier, quoted, restrict
from autointerp.store.evidence_file import attach_evidence
from autointerp.store.safety.faults import translated
from autointerp.store.safety.paths import evidence_path_of, real_path, saved_files_of, snapshot_path_of
from autointerp.store.safety.row_ledger import LedgerLine, RowLedger, fsync_folder
from autointerp.store.safety.salvage import SavedTable, salvage
from autointerp.store.schema import pending_migrations, refuse_disguised
from autointerp.store.store import Store


@dataclass(slots=True)
class Recovery:
    """What was found and done; under dry_run, what would be done."""

    lines: list[str] = field(default_factory=list)
    """The report's lines for a person, in order."""
    lost: dict[str, int] = field(default_factory=dict)
    """Rows of each table (and 'commits') that the ledger promises and the store does not have."""
    recovered: Path | None = None
    """The new file with all that could be read of a damaged main file; None where the main file is whole."""
    saved: list[SavedTable] = field(default_factory=list)
    """What was copied into `recovered`."""
    is_sound: bool = False
    """Whether nothing was wrong; then nothing was changed, but for bringing it up to date."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one way of opening the main file shows."""

    rows: Mapping[str, int]
    unreadable: Mapping[str, str]
    """Tables that cannot be read to the end, and why."""
    state: tuple[str, int] | None
    """store_id and commit_number, where they can be read."""

    def line(self) -> LedgerLine:
        store_id, commit_number = self.state or ("", 0)
        return LedgerLine(store_id, commit_number, {t: n for t, n in self.rows.items() if t in APPEND_ONLY})


def recover(path: Path | str, *, dry_run: bool = False) -> Recovery:
    """Makes the store at `path` open again, as far as that is possible; with `dry_run` only says how.

    Raises InputError (no store, or not one of ours), StoreBusyError (another process has it), DamagedError (nothing of
    it can be read), DiskFullError.
    """
    path = real_path(path)
    with translated(path):
        return _Recoverer(path, dry_run).run()


class _Recoverer:
    def __init__(self, path: Path, dry_run: bool) -> None:
        self.path, self.dry_run = path, dry_run
        self.wal = path.with_name(path.name + ".wal")
        self.ledger = RowLedger(path.with_name(path.name + ".ledger"))
        self.evidence = evidence_path_of(path)
        self.stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.done = Recovery()
        self.say = self.done.lines.append

    def run(self) -> Recovery:
        if not self.path.exists():
            return self._without_main()
        _refuse_if_held(self.path)
        seen, wal_bytes, problem = self._look_at_main()
        promised = self._promised(seen)
        if seen is None or seen.unreadable:
            return self._salvage(seen, wal_bytes, problem, promised)
        if promised is not None:
            self.done.lost = promised.deficit(seen.line())
        evidence_problem = self._look_at_evidence(seen, wal_bytes)
        ledger_problem = self._ledger_problem(seen)
        if problem is None and not self.done.lost and evidence_problem is None and ledger_problem is None:
            self.done.is_sound = True
            self.say(
                f"{self.path}: nothing is wrong. Everything that was committed is there and can be read; "
                f"{self._brought_up_to_date()}"
            )
            return self.done
        self._mend_wal(problem, wal_bytes)
        if ledger_problem:
            self.say(ledger_problem)
        if self.done.lost or ledger_problem:
            self._tell_losses(seen)
            self._set_aside(self.ledger.path)
        if self.done.lost:
            self._keep_snapshot()
        if evidence_problem is not None:
            self._replace_evidence(evidence_problem)
        if not self.dry_run:
            with Store.open(self.path) as store:  # folds the WAL in, starts a new row ledger
                kept = ", ".join(f"{n:,} {table}" for table, n in store.row_counts().items() if n)
            self.say(f"{self.path} opens again; it holds {kept or 'no rows'}. `autointerp run` goes on from there")
        return self.done

    def _brought_up_to_date(self) -> str:
        """Opens a sound store. One that an older version wrote refuses readers until it was opened for writing."""
        with translated(self.path, opening=True), connect(self.path, read_only=True) as con:
            is_older = bool(pending_migrations(con, self.path))
        if not is_older or not self.dry_run:
            Store.open(self.path, read_only=not is_older).close()
        if not is_older:
            return "nothing was changed"
        return f"an older version of autointerp wrote it, and it {self._was} brought up to date"

    # --- looking ---------------------------------------------------------------------------------------------------

    def _look_at_main(self) -> tuple[_Seen | None, int | None, str | None]:
        """What can be read of the main file, with how many bytes of its WAL (None: all), and what is wrong with the two
        files (None: nothing)."""
        try:
            seen = _look(self.path)
        except DamagedError as error:
            problem = str(error.__cause__ or error)
        else:
            return seen, None, "; ".join(f"{t}: {why}" for t, why in seen.unreadable.items()) or None
        if not self.wal.exists():
            return None, None, problem
        # The part of the WAL before the damage is whole: DuckDB replays it from the beginning, commit by commit.
        damage = re.search(r"entry at byte position (\d+)", problem)
        for n in dict.fromkeys((int(damage[1]) if damage else 0, 0)):
            with suppress(DamagedError), self._linked(n) as file:
                return _look(file), n, problem
        return None, 0, problem

    @contextmanager
    def _linked(self, wal_bytes: int | None) -> Iterator[Path]:
        """The main file in a folder with only the first `wal_bytes` of its WAL beside it. None: the file itself."""
        if wal_bytes is None:
            yield self.path
            return
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".recover-") as folder:
            file = Path(folder) / self.path.name
            try:
                os.link(self.path.resolve(), file)  # the file that a symbolic link leads to
            except OSError:  # a file system without hard links
                shutil.copyfile(self.path, file)
            if wal_bytes:
                with open(self.wal, "rb") as whole, open(file.with_name(self.wal.name), "wb") as part:
                    part.write(whole.read(wal_bytes))
            yield file

    def _promised(self, seen: _Seen | None) -> LedgerLine | None:
        """The ledger's last line; None where it cannot be read or belongs to another store."""
        try:
            promised = self.ledger.last()
        except DamagedError:
            return None
        if promised and seen and seen.state and promised.store_id != seen.state[0]:
            return None
        return promised

    def _ledger_problem(self, seen: _Seen) -> str | None:
        try:
            promised = self.ledger.last()
        except DamagedError:
            return f"the row ledger {self.ledger.path} cannot be read"
        if promised and seen.state and promised.store_id != seen.state[0]:
            return f"the row ledger {self.ledger.path} was written for another store"
        return None

    def _look_at_evidence(self, seen: _Seen, wal_bytes: int | None) -> str | None:
        """What is wrong with the evidence file, when it is attached; None where it is whole or not needed."""
        assert seen.state is not None
        try:
            with self._linked(wal_bytes) as file, translated(file, opening=True), connect(file, read_only=True) as con:
                attach_evidence(restrict(con, self.path), self.path, self.evidence, seen.state[0])
                for table in ("harvest_info", "windows", "context_rows"):
                    with translated(self.evidence, opening=True):
                        con.execute(f"SELECT bit_xor(hash(t)) FROM evidence.{table} AS t").fetchall()
        except (DamagedError, MismatchError) as error:
            return f"{self.evidence.name}: {error.__cause__ or error}"
        return None

    # --- mending ---------------------------------------------------------------------------------------------------

    def _without_main(self) -> Recovery:
        left = [file for file in (self.wal, self.ledger.path) if file.exists()]
        if not left:
            raise InputError(f"no store at {self.path}; name one with --store")
        for saved in saved_files_of(self.path):
            self.say(f"{saved} is what a run saved when its store was taken away; move it to {self.path} to go on")
        self.say(
            f"{self.path} is missing, and what lies beside it cannot replace it. Put it back from a backup if there is "
            "one. Otherwise what is left is set aside, and the next run starts a new store"
        )
        for file in (*left, self.evidence, snapshot_path_of(self.path)):
            if file.exists():
                self._set_aside(file)
        return self.done

    def _mend_wal(self, problem: str | None, wal_bytes: int | None) -> None:
        if not self.wal.exists():
            return
        if problem is None:
            if self.done.lost:  # readable to its end, which came too early
                self._set_aside(self.wal, copy=True)
            return
        self.say(f"the WAL {self.wal.name}, which holds the newest commits, cannot be read: {problem}")
        if not wal_bytes:
            self._set_aside(self.wal)
            return
        self.say(f"its first {wal_bytes:,} bytes, before the damage, are whole and are kept in use")
        self._set_aside(self.wal, copy=True)
        if not self.dry_run:
            beside = self.wal.with_name(self.wal.name + ".tmp")
            with open(self.wal, "rb") as whole, open(beside, "wb") as part:
                part.write(whole.read(wal_bytes))
                part.flush()
                os.fsync(part.fileno())
            os.replace(beside, self.wal)
            fsync_folder(self.wal.parent)

    def _tell_losses(self, seen: _Seen) -> None:
        for table, n in self.done.lost.items():
            if table != "commits":
                self.say(f"lost: {n:,} rows of {table} ({seen.rows.get(table, 0):,} are there)")
        n_commits, n_calls = self.done.lost.get("commits", 0), self.done.lost.get("llm_calls", 0)
        if n_commits:
            self.say(f"lost: the last {n_commits:,} commits, with all that they changed in other tables")
        if n_calls:
            self.say(
                f"{n_calls:,} LLM calls that were paid for are no longer known; those still needed will be asked, and "
                "paid for, again. What they cost is missing from the spend that budgets count"
            )
        if self.done.lost:
            self.say("labels and scores among the lost rows are made again by the next `autointerp run`")

    def _keep_snapshot(self) -> None:
        snapshot = snapshot_path_of(self.path)
        if snapshot.exists():
            self.say(f"{snapshot.name}, a copy without replies for readers, may hold some of what was lost")
            self._set_aside(snapshot)

    def _replace_evidence(self, problem: str) -> None:
        """Sets the evidence aside, and empties `features`, whose rows say that the evidence is there: else the next
        merge would be skipped as done."""
        self.say(f"the evidence cannot be used: {problem}")
        if self.evidence.exists():
            self._set_aside(self.evidence)
        features = self._free_name(self.path.with_name(f"{self.path.stem}.features.parquet"))
        self.say(
            f"the table features, which describes that evidence, {self._was} written to {features.name} and emptied. "
            "Run `autointerp merge` where the harvested shards are still there, else `autointerp harvest` or "
            "`autointerp run`: they make both again, and the same texts and settings give the same "
            "evidence. Labels, scores and calls stay"
        )
        if self.dry_run:
            return
        with connect(self.path) as con:
            refuse_disguised(con, self.path)
            con.execute(f"COPY features TO {quoted(str(features))} (FORMAT parquet)")
            con.begin()
            con.execute("DELETE FROM features")
            con.execute("UPDATE store_state SET commit_number = commit_number + 1")
            con.commit()

    def _salvage(
        self, seen: _Seen | None, wal_bytes: int | None, problem: str | None, promised: LedgerLine | None
    ) -> Recovery:
        snapshot = snapshot_path_of(self.path)
        self.say(f"the main file is damaged: {problem}")
        from_snapshot = seen is None
        if from_snapshot:
            usable = False
            with suppress(AutointerpError):
                usable = snapshot.exists() and not _look(snapshot).unreadable
            if not usable:
                raise DamagedError(
                    f"nothing of {self.path} can be read, with or without its WAL ({problem}); it was left as it is. "
                    f"Restore it from a backup. To start anew, move it, {self.wal.name}, {self.ledger.path.name} and "
                    f"{self.evidence.name} away"
                )
            taken = datetime.fromtimestamp(snapshot.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
            self.say(f"nothing of it can be read, but {snapshot.name} shows it as it was at {taken}, without replies")
        target = self.path.with_name(f"{self.path.stem}.recovered.duckdb")
        if target.exists():
            raise InputError(f"{target} exists already; move it away, then recover again")
        self.say(f"what can be read {self._was} copied into {target.name}; {self.path.name} stays as it is")
        if self.dry_run:
            if seen is not None:
                self.say(f"tables with rows that cannot be read: {', '.join(seen.unreadable)}")
            return self.done
        building = self.path.with_name(f"{self.path.stem}.recovering.duckdb")
        for leftover in (building, *(building.with_name(building.name + end) for end in (".wal", ".ledger"))):
            leftover.unlink(missing_ok=True)  # of an attempt that was cut off
        with self._linked(None if from_snapshot else wal_bytes) as file:
            self.done.saved = salvage(
                snapshot if from_snapshot else file,
                building,
                promised.store_id if promised else None,
                promised.commit_number if promised else 0,
            )
        os.replace(building, target)
        fsync_folder(target.parent)
        self.done.recovered = target
        self._tell_saved(promised)
        aside = f"mkdir damaged; mv {self.path.name} {self.wal.name} {self.ledger.path.name} damaged/"
        self.say(f"to go on with it: {aside}; mv {target.name} {self.path.name}")
        return self.done

    def _tell_saved(self, promised: LedgerLine | None) -> None:
        held = promised.rows if promised else {}
        for table in self.done.saved:
            lost = max(table.lost or 0, held.get(table.name, 0) - table.saved)
            if lost:
                self.done.lost[table.name] = lost
                self.say(f"lost: {lost:,} rows of {table.name} ({table.saved:,} were saved)")
            elif table.lost is None:
                self.done.lost[table.name] = 0
                self.say(f"lost: all rows of {table.name}, however many there were")
            elif table.saved:
                self.say(f"saved: all {table.saved:,} rows of {table.name}")

    @property
    def _was(self) -> str:
        return "would be" if self.dry_run else "was"

    def _free_name(self, file: Path) -> Path:
        """The name that `file` gets when it is set aside."""
        name = f"{file.name}.quarantined-{self.stamp}"
        free, n = file.with_name(name), 2
        while free.exists():
            free, n = file.with_name(f"{name}-{n}"), n + 1
        return free

    def _set_aside(self, file: Path, copy: bool = False) -> None:
        if not file.exists():
            return
        aside = self._free_name(file)
        self.say(f"{file.name} {self._was} {'copied' if copy else 'moved'} to {aside.name}")
        if self.dry_run:
            return
        if copy:
            shutil.copy2(file, aside)
            with open(aside, "rb+") as copied:
                os.fsync(copied.fileno())
        else:
            os.rename(file, aside)
        fsync_folder(file.parent)


def _look(file: Path) -> _Seen:
    """Reads the database at `file` to the end, and no other file: it may come from somebody else. Raises DamagedError
    where it does not open, InputError where it is no store."""
    with translated(file, opening=True):
        con = restrict(connect(file, read_only=True), file)
    with con:
        with translated(file, opening=True):
            names = [
                row[0]
                for row in con.execute(
                    "SELECT table_name FROM duckdb_tables() WHERE NOT temporary ORDER BY table_name"
                ).fetchall()
            ]
        if names and "schema_migrations" not in names:
            raise InputError(f"{file} is a DuckDB file, but not a store of this program; name another file")
        rows, unreadable = {}, {}
        for name in names:
            try:
                rows[name] = int(
                    con.execute(f"SELECT count(*), bit_xor(hash(t)) FROM {identifier(name)} AS t").fetchall()[0][0]
                )
            except duckdb.Error as error:
                unreadable[name] = str(error).split("\n\nStack Trace", 1)[0].strip()
        state = None
        if "store_state" in rows:
            found = con.execute("SELECT store_id, commit_number FROM store_state").fetchall()
            if len(found) != 1:
                raise DamagedError(f"{file}: table store_state holds {len(found)} rows instead of one")
            state = (str(found[0][0]), int(found[0][1]))
        return _Seen(rows, unreadable, state)


def _refuse_if_held(path: Path) -> None:
    """Raises StoreBusyError where another process has the file open, even if only for reading."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows refuses to rename a file that is open, so recovering fails by itself
        return
    with open(path, "rb+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            with suppress(DamagedError):  # DuckDB's own message names the process, if it is a writer
                _look(path)
            raise StoreBusyError(f"{path} is in use by another process; end it, then recover") from None
