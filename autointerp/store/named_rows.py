"""Records made from the columns of a query by name, so that a new column of a table moves no value to another field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb

from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def field_names(record: type[DataclassInstance], without: Sequence[str] = ()) -> list[str]:
    """The fields of a record that are columns: all of them, except those named in `without`."""
    return [field.name for field in fields(record) if field.name not in without]


def select_list(
    record: type[DataclassInstance], table: str = "", *, without: Sequence[str] = (), **expressions: str
) -> str:
    """The SELECT list that gives a record its fields: each is the column of its name (of `table`, an alias), or what
    `expressions` gives for it."""
    prefix = f"{table}." if table else ""
    names = field_names(record, without)
    return ", ".join(f'{expressions[n]} AS "{n}"' if n in expressions else f'{prefix}"{n}"' for n in names)


def read_records(
    cursor: duckdb.DuckDBPyConnection, record: type[Record], *, without: Sequence[str] = ()
) -> list[Record]:
    """The rows of the query that `cursor` has just run, as records; a JSON column is parsed.

    Raises AutointerpError unless the columns are the record's fields. `without`: its last fields, which keep their
    defaults and are no columns.
    """
    return [made for _, made in _read(cursor, record, None, without)]


def read_keyed_records(
    cursor: duckdb.DuckDBPyConnection, key: str, record: type[Record], *, without: Sequence[str] = ()
) -> list[tuple[Any, Record]]:
    """Like `read_records`, for a query with one more column `key`, whose value is paired with each record."""
    return list(_read(cursor, record, key, without))


def _read(
    cursor: duckdb.DuckDBPyConnection, record: type[Record], key: str | None, without: Sequence[str]
) -> Iterable[tuple[Any, Record]]:
    columns = cursor.description or []
    names = [column[0] for column in columns]
    wanted = field_names(record, without)
    if wanted != field_names(record)[: len(wanted)]:
        raise AutointerpError(f"only the last fields of {record.__name__} can be left out, not {', '.join(without)}")
    if sorted(names) != sorted(wanted + ([] if key is None else [key])):
        raise AutointerpError(
            f"a query for {record.__name__} must give the columns {', '.join(wanted)}, not {', '.join(names)}"
        )
    # From here on by position, where the record's fields may be given so: a third faster for a million labels.
    places = [names.index(name) for name in wanted]
    parsed = [i for i, place in enumerate(places) if str(columns[place][1]) == "JSON"]
    key_place = None if key is None else names.index(key)
    by_name = any(field.kw_only for field in fields(record))
    for row in cursor.fetchall():
        values = [row[place] for place in places]
        for i in parsed:
            values[i] = None if values[i] is None else json.loads(values[i])
        made = record(**dict(zip(wanted, values, strict=True))) if by_name else record(*values)
        yield None if key_place is None else row[key_place], made
