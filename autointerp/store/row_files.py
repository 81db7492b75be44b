"""Writes rows of a report to a file: JSON lines, CSV or Parquet, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from autointerp.errors import InputError
from autointerp.store.connection import identifier, quoted
from autointerp.store.output_file import place_of, put_in_place
from autointerp.store.safety.paths import refuse_own_file

_FORMS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}


def check_rows_file(path: Path, store: Path) -> None:
    """Raises InputError where rows cannot be written to `path`, before the work for them is done."""
    if path.suffix.lower() not in _FORMS:
        raise InputError(f"{path}: the name has to end in .jsonl, .csv or .parquet, which says in which form")
    refuse_own_file(store, path)
    place_of(path)


def write_rows(path: Path, columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> None:
    """Writes the rows to `path`, in the form that its name says. `columns`: the SQL type of each; nested ones become
    JSON in CSV. Raises InputError where no file can stand there."""
    form = _FORMS[path.suffix.lower()]
    lines = "".join(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n" for row in rows)
    with put_in_place(path) as new:
        if form == "jsonl":
            new.write_text(lines, encoding="utf-8")
            return
        with TemporaryDirectory(prefix="autointerp-") as folder, closing(duckdb.connect()) as con:
            source = Path(folder) / "rows.jsonl"
            source.write_text(lines, encoding="utf-8")
            types = ", ".join(f"{quoted(name)}: {quoted(kind)}" for name, kind in columns.items())
            shown = ", ".join(
                f"to_json({identifier(name)})::VARCHAR AS {identifier(name)}" if _is_nested(kind) and form == "csv"
                else identifier(name)
                for name, kind in columns.items()
            )  # fmt: skip
            read = f"read_json({quoted(str(source))}, format = 'newline_delimited', columns = {{{types}}})"
            con.execute(f"CREATE TABLE result AS SELECT * FROM {read}" if rows else _empty(columns))
            con.execute(f"COPY (SELECT {shown} FROM result) TO {quoted(str(new))} (FORMAT {form})")


def _is_nested(kind: str) -> bool:
    return kind.endswith("[]") or kind.startswith(("STRUCT", "MAP"))


def _empty(columns: dict[str, str]) -> str:
    return f"CREATE TABLE result ({', '.join(f'{identifier(name)} {kind}' for name, kind in columns.items())})"
