"""Users' SQL: it gets a read-only connection of its own, which is locked down before the SQL is looked at."""

from __future__ import annotations

import os
import re
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from autointerp.errors import AutointerpError, InputError, StoppedError
from autointerp.store.connection import quoted
from autointerp.store.safety.faults import from_duckdb, translated
from autointerp.store.safety.paths import real_path, refuse_own_file
from autointerp.store.safety.reading import connect_for_reading


def run_query(
    path: Path, sql: str, *, unsafe: bool = False, memory_limit: str = "2GB", timeout_s: float = 30.0,
    max_rows: int | None = None, output: Path | None = None, output_format: str = "parquet",
    say: Callable[[str], None] | None = None,
) -> tuple[list[str], list[tuple[Any, ...]]]:  # fmt: skip
    """Column names and rows of one SQL statement over the store at `path`, its evidence attached.

    The connection cannot write to the store, and unless `unsafe` it can reach no file, network, extension or setting
    either. A statement that runs longer than `timeout_s` seconds is interrupted. `max_rows` ends the result early,
    since the rows are held in memory, outside of `memory_limit`. While a run writes to the store, its snapshot answers,
    and `say` is told so. With `output` the result goes to that file (`output_format`: parquet, csv or json), whole or
    not at all, and no rows are returned. A link in that place is replaced; the file it leads to is left as it is.

    Raises InputError (SQL that does not parse, bind or is not allowed), StoppedError (timeout), StoreBusyError,
    DamagedError, DiskFullError.
    """
    path = real_path(path)
    limits = _Limits(unsafe, memory_limit, timeout_s, max_rows)
    if output is None:
        return _answer(path, sql, limits, None, say)
    if output_format not in ("parquet", "csv", "json"):
        raise InputError(f"output format must be parquet, csv or json, not {output_format!r}")
    refuse_own_file(path, output)
    with _put_in_place(output) as new:
        return _answer(path, sql, limits, _Output(new, output_format), say)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a statement may do and use."""

    unsafe: bool
    """Whether it may reach files, the network, extensions and settings."""
    memory: str
    seconds: float
    max_rows: int | None


@dataclass(frozen=True, slots=True)
class _Output:
    file: Path
    format: str


@contextmanager
def _put_in_place(target: Path) -> Iterator[Path]:
    """Where to write what is meant for `target`: a new file beside it, which replaces it when the block ends well. A
    device or a pipe is written to directly. Raises InputError where no file can stand there."""
    place = target.parent.resolve() / target.name
    if place.is_dir():
        raise InputError(f"the result is to be a file, but there is a folder {target}")
    if not place.parent.is_dir():
        raise InputError(f"there is no folder {target.parent} to write {target.name!r} to")
    if {"dev", "proc"} & set(place.parts[1:2]) or (place.exists() and not place.is_file()):
        yield place.resolve()
        return
    # The end of the name is kept: DuckDB chooses the compression by it.
    new = place.with_name(f".{uuid.uuid4().hex[:8]}.{place.name[-100:]}")
    try:
        yield new
        if place.is_file() and not place.is_symlink():
            new.chmod(stat.S_IMODE(place.stat().st_mode))
        os.replace(new, place)
    except OSError as error:
        raise AutointerpError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        new.unlink(missing_ok=True)


def _answer(
    path: Path, sql: str, limits: _Limits, output: _Output | None, say: Callable[[str], None] | None
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Runs the SQL. With `output`, its result is gathered in a table before it is written: DuckDB 2.0 may hang for ever
    where a query fails, or is interrupted, while COPY writes its rows."""
    with ExitStack() as stack:
        con = stack.enter_context(closing(connect_for_reading(path, say)))
        spill = stack.enter_context(TemporaryDirectory(prefix="autointerp-")) if output is not None else ""
        _lock_down(con, path, limits, output, spill)
        statement = _single_statement(con, sql)
        if output is not None and statement.type != duckdb.StatementType.SELECT:
            raise InputError("only a SELECT can be written to a file")
        # Without brackets, as a statement may end in a semicolon. By now we know that it is a single SELECT.
        query = statement.query if output is None else f"CREATE TEMP TABLE result AS\n{statement.query}"
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            con.interrupt()

        timer = threading.Timer(limits.seconds, stop)
        timer.start()
        try:
            con.execute(query)
            if output is not None:
                timer.cancel()
                timer.join()  # it may be about to interrupt
                if timed_out.is_set():
                    raise duckdb.InterruptException
                con.execute(f"COPY temp.result TO {quoted(str(output.file))} (FORMAT {output.format})")
                return [], []
            columns = [column[0] for column in con.description or []]
            return columns, con.fetchall() if limits.max_rows is None else con.fetchmany(limits.max_rows)
        except duckdb.InterruptException:
            if timed_out.is_set():
                raise StoppedError(
                    f"the query took longer than {limits.seconds:g} s and was stopped; narrow it down or allow more "
                    "time"
                ) from None
            raise
        except duckdb.OutOfMemoryException as error:
            raise InputError(f"the query needs more memory than {limits.memory}: {_first_line(error)}") from error
        except duckdb.Error as error:
            raise _explained(error, path, limits.unsafe) from error
        finally:
            timer.cancel()


def _single_statement(con: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    try:
        statements = con.extract_statements(sql)
    except duckdb.Error as error:
        raise InputError(f"the SQL does not parse: {_first_line(error)}") from error
    if len(statements) != 1:
        raise InputError(f"give one SQL statement, not {len(statements)}")
    if statements[0].named_parameters:
        raise InputError("the SQL has parameters (?, $1); write the values into it")
    return statements[0]


def _lock_down(con: duckdb.DuckDBPyConnection, path: Path, limits: _Limits, output: _Output | None, spill: str) -> None:
    """Makes the settings, then locks them, so that no statement can undo them. `output`: the one file it may write."""
    if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", limits.memory, re.IGNORECASE):
        raise InputError(f"memory limit must look like 2GB or 512MB, not {limits.memory!r}")
    with translated(path):
        con.execute(f"SET memory_limit = {quoted(limits.memory)}")
        if limits.unsafe:
            return
        if output is not None:
            con.execute(f"SET allowed_paths = [{quoted(str(output.file))}]")
        # By default DuckDB would spill into a folder beside the store, where a reader may not be allowed to write.
        con.execute(f"SET temp_directory = {quoted(spill)}")
        con.execute("SET enable_external_access = false")
        con.execute("SET lock_configuration = true")


def _explained(error: duckdb.Error, path: Path, unsafe: bool) -> AutointerpError:
    text = _first_line(error)
    if isinstance(error, duckdb.PermissionException) or "configuration has been locked" in text:
        advice = "" if unsafe else ". Queries reach only the store's own tables; --unsafe lifts that"
        return InputError(f"not allowed in a query: {text}{advice}")
    if "read-only mode" in text:
        return InputError(f"a query cannot change the store: {text}")
    fault = from_duckdb(error, path)
    return InputError(f"the query failed: {text}") if type(fault) is AutointerpError else fault


def _first_line(error: duckdb.Error) -> str:
    return str(error).split("\n\nStack Trace", 1)[0].strip()
