"""Users' SQL: a process of its own runs it, on a read-only connection that is locked down before it sees the SQL."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from autointerp.errors import AutointerpError, InputError
from autointerp.store.connection import identifier, quoted
from autointerp.store.output_file import put_in_place
from autointerp.store.query_process import GRACE_S, Alarm, Limits, Rows, Say, answer_in_a_process
from autointerp.store.query_statements import checked_statement, first_line
from autointerp.store.safety.bare_reading import connect_for_reading
from autointerp.store.safety.faults import from_duckdb, translated
from autointerp.store.safety.paths import real_path, refuse_own_file

LONGEST_S = 10_000_000
"""The longest time limit, some four months: timers take no infinite one."""


def run_query(
    path: Path, sql: str, *, unsafe: bool = False, memory_limit: str = "2GB", timeout_s: float = 30.0,
    max_rows: int | None = None, output: Path | None = None, output_format: str = "parquet",
    say: Callable[[str], None] | None = None,
) -> tuple[list[str], list[tuple[Any, ...]]]:  # fmt: skip
    """Column names and rows of one SQL statement over the store at `path`, its evidence attached.

    Only statements that read are answered (see query_statements.py), and unless `unsafe` they can reach no file or
    network either. The process that runs the statement is stopped after `timeout_s` seconds, whatever it is doing, and
    where it needs much more memory than `memory_limit`; the rows count too, and `max_rows` ends the result early.
    While a run writes to the store, its snapshot answers, and `say` is told so. With `output` the result goes to that
    file (`output_format`: parquet, csv or json), whole or not at all, and no rows are returned. A link in that place
    is replaced; the file it leads to is left as it is.

    Raises InputError (SQL that does not parse, bind or is not allowed), StoppedError (timeout), StoreBusyError,
    DamagedError, DiskFullError.
    """
    path = real_path(path)
    if not 0 < timeout_s <= LONGEST_S:
        raise InputError(f"the time limit must be above 0 and at most {LONGEST_S:,} seconds, not {timeout_s}")
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the SQL is not valid Unicode: {error.reason} at character {error.start}") from None
    limits = Limits("the query", timeout_s, memory_limit, " or allow more time")

    def answer(output: _Output | None) -> Rows:
        return answer_in_a_process(_Query(path, sql, limits, unsafe, max_rows, output), limits, say)

    if output is None:
        return answer(None)
    if output_format not in ("parquet", "csv", "json"):
        raise InputError(f"output format must be parquet, csv or json, not {output_format!r}")
    refuse_own_file(path, output)
    with put_in_place(output) as new:
        return answer(_Output(new, output_format))


@dataclass(frozen=True, slots=True)
class _Output:
    file: Path
    format: str


@dataclass(frozen=True, slots=True)
class _Query:
    """One query, as it is sent to the process that answers it."""

    path: Path
    sql: str
    limits: Limits
    unsafe: bool
    """Whether it may read files."""
    max_rows: int | None
    output: _Output | None

    def __call__(self, alarm: Alarm, say: Say) -> Rows:
        """Answers it. With `output`, its result is gathered in a table before it is written: DuckDB 2.0 may hang for
        ever where a query fails, or is interrupted, while COPY writes its rows."""
        limits, output = self.limits, self.output
        with ExitStack() as stack:
            spill = stack.enter_context(TemporaryDirectory(prefix="autointerp-")) if output is not None else ""
            con = stack.enter_context(closing(self._locked_down(say, spill)))
            timed_out = threading.Event()

            def stop() -> None:
                timed_out.set()
                con.interrupt()

            alarm.set(limits.seconds + GRACE_S)
            timer = threading.Timer(limits.seconds, stop)
            timer.daemon = True
            timer.start()
            try:
                statement, is_explain = checked_statement(con, self.sql)
                if output is not None and is_explain:
                    raise InputError("only a SELECT can be written to a file")
                # Without brackets, as it may end in a comment. By now we know that it is a single SELECT.
                if output is not None:
                    statement = f"CREATE TEMP TABLE result AS\n{statement}"
                elif not is_explain:
                    statement = _with_text_for_python(con, statement)
                con.execute(statement)
                columns = [column[0] for column in con.description or []]
                rows: list[tuple[Any, ...]] = []
                if output is None:
                    rows = con.fetchall() if self.max_rows is None else con.fetchmany(self.max_rows)
                timer.cancel()
                timer.join()  # it may be about to interrupt
                if timed_out.is_set():
                    raise duckdb.InterruptException
                alarm.off()
                if output is None:
                    return columns, rows
                con.execute(f"COPY temp.result TO {quoted(str(output.file))} (FORMAT {output.format})")
                return [], []
            except duckdb.InterruptException:
                if timed_out.is_set():
                    raise limits.took_too_long() from None
                raise
            except duckdb.OutOfMemoryException as error:
                raise limits.needs_more_memory(first_line(error)) from error
            except (OverflowError, ValueError) as error:
                raise InputError(
                    f"a value of the result does not fit Python's types ({error}); cast it to VARCHAR, or write the "
                    "result to a file"
                ) from None
            except MemoryError:
                raise limits.needs_more_memory() from None
            except duckdb.Error as error:
                if timed_out.is_set():  # not every function names the interrupt as the cause
                    raise limits.took_too_long() from None
                raise _explained(error, self.path, self.unsafe) from error
            finally:
                timer.cancel()

    def _locked_down(self, say: Say, spill: str) -> duckdb.DuckDBPyConnection:
        """A connection whose settings are made, then locked, so that no statement can undo them. `spill`: a folder for
        what the memory does not hold; without one nothing is written anywhere."""
        limits, output = self.limits, self.output
        extra = [] if output is None else [output.file]
        # By default DuckDB would spill into a folder beside the store, where a reader may not be allowed to write.
        con = connect_for_reading(self.path, say, may_reach=None if self.unsafe else extra, spill=spill)
        try:
            with translated(self.path):
                con.execute(f"SET memory_limit = {quoted(limits.memory)}")
                if not self.unsafe and output is None:
                    # External access does not cover the files of attached databases: those could be written to.
                    con.execute("SET disabled_filesystems = 'LocalFileSystem'")
                con.execute("SET lock_configuration = true")
            return con
        except BaseException:
            con.close()
            raise


_NOT_IN_PYTHON = re.compile(r'(?<!")\b(?:TIMESTAMP WITH TIME ZONE|TIMESTAMPTZ_NS|INTERVAL)\b(?!")')
"""Types whose values Python gets as text: it would need a package for the first, and has no months."""


def _with_text_for_python(con: duckdb.DuckDBPyConnection, select: str) -> str:
    """`select`, with what Python has no type for cast to text, inside of lists and structs too."""
    columns = con.execute(f"DESCRIBE SELECT * FROM (\n{select}\n)").fetchall()
    if not any(_NOT_IN_PYTHON.search(kind) for _, kind, *_ in columns):
        return select
    given = [f"c{i}" for i in range(len(columns))]
    shown = [
        f"{c}{'::' + _NOT_IN_PYTHON.sub('VARCHAR', kind) if _NOT_IN_PYTHON.search(kind) else ''} AS {identifier(name)}"
        for c, (name, kind, *_) in zip(given, columns, strict=True)
    ]
    return f"SELECT {', '.join(shown)} FROM (\n{select}\n) AS given({', '.join(given)})"


def _explained(error: duckdb.Error, path: Path, unsafe: bool) -> AutointerpError:
    text = first_line(error)
    if isinstance(error, duckdb.PermissionException) or "configuration has been locked" in text:
        advice = "" if unsafe else ". Queries reach only the store's own tables; --unsafe lifts that"
        return InputError(f"not allowed in a query: {text}{advice}")
    if "read-only mode" in text:
        return InputError(f"a query cannot change the store: {text}")
    fault = from_duckdb(error, path)
    return InputError(f"the query failed: {text}") if type(fault) is AutointerpError else fault
