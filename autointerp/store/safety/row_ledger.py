"""A file beside the store that records how much the store held after every commit.

DuckDB says nothing when its WAL was deleted or cut short; it opens with fewer rows. So after each commit one line is
written to `X.duckdb.ledger` and fsynced: the number of the commit and the row counts of the tables that only grow. A
store that holds less than its ledger says has lost acknowledged rows. A line is written after its commit, so a kill in
between leaves the ledger behind the store, never ahead of it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from autointerp.errors import DamagedError
from autointerp.store.safety.faults import from_os

COMPACT_ABOVE = 4_000_000
"""Bytes; a larger file is rewritten with its last line only."""


@dataclass(frozen=True, slots=True)
class LedgerLine:
    store_id: str
    commit_number: int
    rows: dict[str, int]
    """Rows of each append-only table."""

    def deficit(self, actual: LedgerLine) -> dict[str, int]:
        """What `actual` lacks: missing rows by table, and missing transactions under 'commits'."""
        missing = {table: n - actual.rows.get(table, 0) for table, n in self.rows.items()}
        missing["commits"] = self.commit_number - actual.commit_number
        return {name: n for name, n in missing.items() if n > 0}


class RowLedger:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = 0

    def exists(self) -> bool:
        return self.path.exists()

    def last(self) -> LedgerLine | None:
        """The newest whole line; None if there is no such line. A torn last line (the process died while writing it) is
        skipped.

        Raises DamagedError if the newest whole line cannot be read.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os(error, self.path) from error
        complete = raw.split(b"\n")[:-1]  # what follows the last line break is torn, or empty
        if not complete:
            return None
        try:
            line = json.loads(complete[-1])
            rows = {str(table): int(n) for table, n in line["rows"].items()}
            return LedgerLine(str(line["store_id"]), int(line["commit_number"]), rows)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DamagedError(
                f"{self.path}: the last line of the row ledger is not readable ({error}). If the store itself is "
                "sound, `autointerp recover` sets this file aside and starts a new one"
            ) from error

    def check(self, actual: LedgerLine, store: Path) -> None:
        """Raises DamagedError where the store at `store`, which holds `actual`, has less than the ledger promises."""
        promised = self.last()
        if promised is None:
            return
        if promised.store_id != actual.store_id:
            raise DamagedError(
                f"{self.path} belongs to another store than {store}. Put back the store it was written for, or let "
                "`autointerp recover` set the ledger aside to go on with this one"
            )
        deficit = promised.deficit(actual)
        if deficit:
            listed = ", ".join(f"{name}: {n:,} missing" for name, n in deficit.items())
            raise DamagedError(
                f"{store} holds less than was committed to it by {self.path.name} ({listed}): its WAL file "
                f"({store.name}.wal) was deleted or cut short, or an older copy was put in its place. Nothing was "
                "changed. Restore both files from a backup, or let `autointerp recover` say what is lost and go on "
                "with what is left"
            )

    def append(self, line: LedgerLine) -> None:
        """Writes `line` and waits until it is on the disk."""
        if self._size > COMPACT_ABOVE:
            self.compact(line)
            return
        data = self._encoded(line)
        try:
            with open(self.path, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise from_os(error, self.path) from error
        self._size += len(data)

    def compact(self, line: LedgerLine) -> None:
        """Replaces the whole file by `line`, in one step."""
        data = self._encoded(line)
        beside = self.path.with_name(self.path.name + ".tmp")
        try:
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
            fsync_folder(self.path.parent)
        except OSError as error:
            raise from_os(error, self.path) from error
        self._size = len(data)

    @staticmethod
    def _encoded(line: LedgerLine) -> bytes:
        return json.dumps(asdict(line), separators=(",", ":")).encode() + b"\n"


def fsync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` durable (where the platform can open a folder)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
