"""Parquet files, through DuckDB.

DuckDB hands on 2,048 rows at a time, however long they are: a file of 3 kB can hold 400 rows of 8 MB. So the first
query asks for short rows only, and for the sizes of the others. Those are asked for by their numbers, a few at a time,
which bounds what is in memory by bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.formats.row_pieces import Row
from autointerp.errors import InputError, nearest

MOST_MEMORY = "2GiB"
"""What DuckDB may hold. It copies 2,048 lists before it can measure one, so chats are bounded by nothing else."""
SHORT_ROW = 64_000
"""Bytes of UTF-8. 2,048 rows of this size are the most that DuckDB holds at once."""
LONG_ROWS = 32_000_000
"""Bytes of longer rows that are asked for together."""
LONGEST_ROW = 64_000_000
"""Bytes. A longer row is skipped, and never held in memory as a whole."""
LONGEST_ID = 1000
"""Bytes. A row with a longer id is named by its place."""
_ROWS_AT_ONCE = 1024


def parquet_rows(path: Path, name: str, config: CorpusConfig, report: CorpusReport) -> Iterator[Row]:
    """The rows, of which only the wanted columns are read. Raises InputError if a column is not there or does not hold
    text (or, for a chat, lists of role and content), and if reading takes more than MOST_MEMORY."""
    wanted = config.chat_field or config.text_field
    with _connection() as connection:
        try:
            columns = _columns(path, config, _types(connection, path))
            for index, n_bytes, value, identity in _rows(connection, _escaped(path), columns):
                report.n_records += 1
                where = f"{name}:{index}"
                if n_bytes > LONGEST_ROW:
                    report.skip("row_too_long", where)
                    report.check(config.max_skipped_share, wanted, final=False)
                    continue
                yield where, {wanted: value, **({config.id_field: identity} if config.id_field else {})}
        except duckdb.OutOfMemoryException:
            raise InputError(
                f"{path} cannot be read within {MOST_MEMORY} of memory: 2,048 of its rows, or one of its pages, are "
                "more than that; write it again with shorter rows, or as jsonl"
            ) from None
        except duckdb.Error as error:
            report.n_records += 1
            report.skip("unreadable", f"{name}: {str(error).splitlines()[0]}")
            report.check(config.max_skipped_share, wanted, final=False)


def check_columns(path: Path, config: CorpusConfig) -> None:
    """Raise InputError if the file lacks a wanted column or that is of another type. What is damaged passes."""
    with _connection() as connection, suppress(duckdb.Error):
        _columns(path, config, _types(connection, path))


@contextmanager
def _connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:", config={"threads": 1, "autoinstall_known_extensions": "false"}) as connection:
        connection.execute("SET enable_progress_bar = false")  # DuckDB would draw it on stdout after two seconds
        connection.execute(f"SET memory_limit = '{MOST_MEMORY}'")
        connection.execute("SET temp_directory = ''")
        yield connection


def _escaped(path: Path) -> str:
    """The file's name, in which DuckDB would read [, * and ? as a glob."""
    return "".join(f"[{c}]" if c in "[*?" else c for c in str(path))


def _types(connection: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str]:
    """The file's columns and their types."""
    described = connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [_escaped(path)]).fetchall()
    return {str(row[0]): str(row[1]) for row in described}


def _columns(path: Path, config: CorpusConfig, types: dict[str, str]) -> tuple[str, str, str]:
    """SQL for the number of bytes of a row's value, for the value, and for the row's id."""
    wanted = config.chat_field or config.text_field
    for name in (wanted, *([config.id_field] if config.id_field else [])):
        if name not in types:
            raise InputError(f"{path} has no column {name!r}; it has {', '.join(types)}.{nearest(name, types)}")
    kind, column = types[wanted], _quoted(wanted)
    if config.chat_field is None:
        _require(kind in ("VARCHAR", "JSON"), path, wanted, kind, "text")
        n_bytes, value = f"strlen({column})", f"{column}::VARCHAR"
    else:
        fits = kind.startswith("STRUCT(") and kind.endswith(")[]") and _has_fields(kind)
        _require(fits, path, wanted, kind, "lists of {role, content} with text in both")
        # A name in a lambda must not be that of a column.
        sizes = "coalesce(strlen(each_.role), 0) + coalesce(strlen(each_.content), 0)"
        n_bytes = f"list_sum(list_transform({column}, lambda each_: {sizes}))"
        value = f"list_transform({column}, lambda each_: {{'role': each_.role, 'content': each_.content}})"
    identity = "NULL"
    if config.id_field:
        identity = _quoted(config.id_field)
        if types[config.id_field] == "VARCHAR":
            identity = f"CASE WHEN strlen({identity}) <= {LONGEST_ID} THEN {identity} END"
    return f"coalesce({n_bytes}, 0)::BIGINT", value, identity


def _has_fields(kind: str) -> bool:
    return all(f"{name} VARCHAR" in kind or f'"{name}" VARCHAR' in kind for name in ("role", "content"))


def _require(fits: bool, path: Path, column: str, kind: str, needed: str) -> None:
    if not fits:
        raise InputError(
            f"{path}: column {column!r} holds {kind[:200]}, not {needed}; set corpus.text_field (or corpus.chat_field) "
            "to a column that does"
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _rows(
    connection: duckdb.DuckDBPyConnection, file: str, columns: tuple[str, str, str]
) -> Iterator[tuple[int, int, Any, Any]]:
    """(number, bytes, value, id) of each row, in order. The value of a row above LONGEST_ROW is None."""
    n_bytes, value, identity = columns
    result = connection.execute(
        f"SELECT file_row_number, {n_bytes}, CASE WHEN {n_bytes} <= {SHORT_ROW} THEN {value} END, {identity} "
        "FROM read_parquet(?, file_row_number = true)",
        [file],
    )
    other = connection.cursor()
    while rows := result.fetchmany(_ROWS_AT_ONCE):
        long = [(index, n) for index, n, _, _ in rows if SHORT_ROW < n <= LONGEST_ROW]
        held: dict[int, Any] = {}
        for index, n, found, own in rows:
            if SHORT_ROW < n <= LONGEST_ROW:
                if index not in held:
                    together = [long.pop(0)]
                    while long and sum(size for _, size in together) + long[0][1] <= LONG_ROWS:
                        together.append(long.pop(0))
                    numbers = ", ".join(str(number) for number, _ in together)
                    held = dict(
                        other.execute(
                            f"SELECT file_row_number, {value} FROM read_parquet(?, file_row_number = true) "
                            f"WHERE file_row_number IN ({numbers})",
                            [file],
                        ).fetchall()
                    )
                found = held.pop(index)
            yield index, n, found, own
