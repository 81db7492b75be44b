"""A row with status 'gave_up' is no answer, so asking again replaces it. Every other row stays as it was written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from autointerp.records import Explanation, Score

_Record = TypeVar("_Record", Explanation, Score)


def replace_given_up(table: str, key: str, columns: Iterable[str]) -> str:
    """The ON CONFLICT clause for rows of `table` with the given columns, created_at and sequence."""
    sets = ", ".join(f"{c} = excluded.{c}" for c in (*columns, "created_at", "sequence") if c != key)
    return f"ON CONFLICT ({key}) DO UPDATE SET {sets} WHERE {table}.status = 'gave_up'"


def first_unless_given_up(records: Sequence[_Record], key: str) -> list[_Record]:
    """One record for each key of a group: the one that would stay if each record were written separately."""
    kept: dict[str, _Record] = {}
    for record in records:
        old = kept.get(getattr(record, key))
        if old is None or old.status == "gave_up":
            kept[getattr(record, key)] = record
    return list(kept.values())
