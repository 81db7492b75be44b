"""Which SQL `query` answers: a SELECT in any of its forms, DESCRIBE, or EXPLAIN of one. DuckDB's own parse decides.

The list is of what is allowed. DuckDB lets a connection write to the files of its attached databases whatever
enable_external_access says, so that a COPY could replace the store itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from autointerp.errors import InputError

_FORBIDDEN_FUNCTION = "JSON_EXECUTE_SERIALIZED_SQL"
"""A table function that runs a statement on a connection of its own, where what is said below does not hold."""


def checked_statement(con: duckdb.DuckDBPyConnection, sql: str) -> tuple[str, bool]:
    """The one statement in `sql`, without a semicolon at its end, and whether it is an EXPLAIN.

    Plans the statement on `con` and executes nothing of it, apart from the values of a PIVOT. Raises InputError where
    it is not one statement, has parameters, or is of a kind that could do more than read; duckdb.Error where it does
    not fit the store.
    """
    statement = _single_statement(con, sql)
    text = _without_semicolon(statement.query)
    inner = _explained(con, text)
    select = text if inner is None else inner
    if not _is_select(con, select):
        raise InputError(_refusal(statement))
    # In brackets DuckDB refuses WITH clauses that write (COPY, INSERT, UPDATE, DELETE), which a SELECT may begin with.
    # The plan shows what views, macros and query() stand for.
    try:
        plan = con.execute(f"EXPLAIN (FORMAT json) SELECT * FROM (\n{select}\n)").fetchall()
    except duckdb.BinderException as error:
        if "must be at the top level" in str(error):
            raise InputError(_refusal(statement)) from None
        raise
    if any(_FORBIDDEN_FUNCTION in name.upper() for name in _names(json.loads(plan[0][1]))):
        raise InputError(f"not allowed in a query: {_FORBIDDEN_FUNCTION.lower()}")
    return text, inner is not None


def _refusal(statement: duckdb.Statement) -> str:
    kind = statement.type.name
    which = "a statement that writes" if kind in ("SELECT", "MULTI") else kind
    return (
        f"a query cannot change the store, a file or a setting: give a SELECT (or FROM, VALUES, WITH, PIVOT, SHOW, "
        f"SUMMARIZE), a DESCRIBE, or an EXPLAIN of one, not {which}"
    )


def _single_statement(con: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    try:
        statements = con.extract_statements(sql)
    except duckdb.Error as error:
        raise InputError(f"the SQL does not parse: {first_line(error)}") from error
    if len(statements) != 1:
        raise InputError(f"give one SQL statement, not {len(statements)}")
    if statements[0].named_parameters:
        raise InputError("the SQL has parameters (?, $1); write the values into it")
    return statements[0]


def _is_select(con: duckdb.DuckDBPyConnection, text: str) -> bool:
    """Whether DuckDB reads `text` as one SELECT. A PIVOT makes "multi" of any statement, such as COPY (PIVOT ...) TO;
    only a SELECT may stand in brackets."""
    kinds = _kinds(con, text)
    if kinds == [duckdb.StatementType.MULTI]:
        return _kinds(con, f"(\n{text}\n)") == kinds
    return kinds == [duckdb.StatementType.SELECT]


def _kinds(con: duckdb.DuckDBPyConnection, text: str) -> list[duckdb.StatementType]:
    """The types of the statements in `text`; none where it does not parse."""
    try:
        return [statement.type for statement in con.extract_statements(text)]
    except duckdb.Error:
        return []


def _explained(con: duckdb.DuckDBPyConnection, text: str) -> str | None:
    """What an EXPLAIN explains; None where `text` is another statement, or one that cannot be explained."""
    tokens = _tokens(text)
    if not tokens or tokens[0].upper() != b"EXPLAIN":
        return None
    # After it comes the statement, or ANALYZE, or options in brackets and then the statement.
    starts = [1]
    if len(tokens) > 1 and tokens[1].upper() == b"ANALYZE":
        starts.append(2)
    if len(tokens) > 1 and tokens[1] == b"(" and b")" in tokens:
        starts.append(tokens.index(b")") + 1)
    for start in starts:
        rest = _text_from(text, start)
        if _kinds(con, rest):
            return rest
    return None


def _offsets(text: str) -> list[int]:
    """Where in the UTF-8 bytes of `text` each token begins that is not a comment."""
    return [offset for offset, kind in duckdb.tokenize(text) if kind != duckdb.token_type.comment]


def _tokens(text: str) -> list[bytes]:
    """The tokens of `text`, each without the space and the comments after it where it is a word or a sign."""
    data = text.encode()
    offsets = [*_offsets(text), len(data)]
    found = []
    for start, end in zip(offsets, offsets[1:], strict=False):
        word = data[start:end].split(None, 1)[0]
        found.append(word.split(b"--", 1)[0].split(b"/*", 1)[0] or word)
    return found


def _text_from(text: str, token: int) -> str:
    offsets = _offsets(text)
    return text.encode()[offsets[token] :].decode() if token < len(offsets) else ""


def _without_semicolon(text: str) -> str:
    data = text.encode()
    for offset in reversed(_offsets(text)):
        if data[offset : offset + 1] != b";":
            break
        data = data[:offset]
    return data.decode()


def _names(plan: Any) -> Iterator[str]:
    """The names of all operators of a plan in JSON, and of the functions that they call."""
    if isinstance(plan, dict):
        for key, value in plan.items():
            if key in ("name", "Function") and isinstance(value, str):
                yield value
            else:
                yield from _names(value)
    elif isinstance(plan, list):
        for value in plan:
            yield from _names(value)


def first_line(error: duckdb.Error) -> str:
    return str(error).split("\n\nStack Trace", 1)[0].strip()
