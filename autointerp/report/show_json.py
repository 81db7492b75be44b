"""What the commands that show something print with --json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from autointerp.report.page_findings import Findings, Row

if TYPE_CHECKING:
    from autointerp.report.page import FeaturePage


def page_rows(page: FeaturePage) -> dict[str, Any]:
    """The page by the names that users of `show --json` know: rows by column, findings beside the rest."""
    return {
        "feature": page.facts,
        "label": page.label,
        "explanations": page.explanations,
        "scores": page.scores,
        "label_controls": page.label_controls,
        "promoted": page.promoted,
        "suppressed": page.suppressed,
        "no_projection": page.no_projection,
        "heads": page.heads,
        "contexts": page.contexts,
        **findings_rows(page),
    }


def findings_rows(page: FeaturePage) -> dict[str, Any]:
    """What evidence methods found, by the names of `store.findings_page`: rows by column, and method_runs."""
    own = [field.name for field in fields(Findings) if field.name != "others"]
    found: dict[str, Any] = {name: _rows(getattr(page.findings, name)) for name in own}
    return {**found, **page.findings.others, "method_runs": _rows(page.method_runs)}


def as_json_text(value: Any) -> str:
    """Records as objects, times as text, nan and infinity as null, since JSON has no such numbers. Characters that a
    terminal obeys are escaped."""
    text = json.dumps(_finite(value), default=_plain, ensure_ascii=False, indent=1, allow_nan=False)
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)


def named_apart(columns: Sequence[str]) -> list[str]:
    """`columns` with a number after every name that was there before, as DuckDB does it: a, a_1, a_2."""
    names: list[str] = []
    for column in columns:
        name, n = column, 0
        while name in names or (n and name in columns):
            n += 1
            name = f"{column}_{n}"
        names.append(name)
    return names


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):  # a MAP of SQL may have any keys
        return {key if isinstance(key, str) else str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return _finite(_row(value)) if is_dataclass(value) else value


def _rows(value: Any) -> Any:
    if isinstance(value, list):
        return [_rows(one) for one in value]
    return {name: _rows(one) for name, one in _row(value).items()} if is_dataclass(value) else value


def _plain(item: Any) -> Any:
    return _row(item) if is_dataclass(item) else str(item)


def _row(record: Any) -> Row:
    """The record's fields: its own before those that it shares with records of other kinds."""
    own = type(record).__annotations__
    names = sorted((field.name for field in fields(record)), key=lambda name: name not in own)
    return {name: getattr(record, name) for name in names}
