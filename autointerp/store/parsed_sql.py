"""What a SELECT reads, from DuckDB's own parse of it. Nothing of it is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from autointerp.errors import InputError


def parsed(con: duckdb.DuckDBPyConnection, select: str) -> list[dict[str, Any]]:
    """The trees of the statements in `select`. Raises InputError with the reason where they are no SELECTs."""
    ((text,),) = con.execute("SELECT json_serialize_sql(?)", [select]).fetchall()
    tree: dict[str, Any] = json.loads(text)
    if tree["error"]:
        raise InputError(str(tree.get("error_message", "cannot be parsed")))
    return [statement["node"] for statement in tree["statements"]]


def every_dict(tree: Any) -> Iterator[dict[str, Any]]:
    """Every dict inside a parsed tree, itself included."""
    stack = [tree]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            yield one
            stack.extend(one.values())
        elif isinstance(one, list):
            stack.extend(one)


def tables_read(tree: Any) -> list[dict[str, Any]]:
    """The tables that `tree` names: table_name, schema_name, catalog_name. Raises InputError, which says what, where it
    has another source (a table function, DESCRIBE, SHOW or SUMMARIZE), writes, or takes parameters."""
    tables = []
    for one in every_dict(tree):
        kind = str(one.get("type"))
        if kind == "TABLE_FUNCTION":
            raise InputError("table functions are not allowed")
        if kind == "SHOW_REF":
            raise InputError("DESCRIBE, SHOW and SUMMARIZE are not allowed")
        if kind.endswith("_QUERY_NODE"):
            raise InputError(f"{kind.removesuffix('_QUERY_NODE')} is not allowed")
        if kind == "VALUE_PARAMETER" or one.get("class") == "PARAMETER":
            raise InputError("there can be no parameters (?, $1)")
        if kind == "BASE_TABLE":
            tables.append(one)
    return tables
