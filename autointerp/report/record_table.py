"""Rows of a report in the form that a person chose: a table, JSON or CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import TYPE_CHECKING, Literal

from autointerp.report.show_json import as_json_text
from autointerp.terminal import Terminal

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RowsFormat = Literal["table", "json", "csv"]


def print_records(
    kind: type[DataclassInstance], rows: Sequence[DataclassInstance], form: RowsFormat, terminal: Terminal
) -> None:
    """Prints records of one kind with all their fields. Without rows a table is not printed; JSON and CSV are."""
    columns = [field.name for field in fields(kind)]
    if form == "json":
        terminal.result(as_json_text(rows))
    elif form == "csv":
        terminal.csv(columns, [astuple(row) for row in rows])
    elif rows:
        terminal.table(columns, [astuple(row) for row in rows])
