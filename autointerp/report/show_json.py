"""What the commands that show something print with --json."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any

from autointerp.report.page import FeaturePage
from autointerp.report.page_findings import Findings, Row


def page_rows(page: FeaturePage) -> dict[str, Any]:
    """The page by the names that users of `show --json` know: rows by column, findings beside the rest."""
    return {
        "feature": page.facts,
        "label": page.label,
        "explanations": page.explanations,
        "scores": page.scores,
        "promoted": page.promoted,
        "suppressed": page.suppressed,
        "contexts": page.contexts,
        **findings_rows(page),
    }


def findings_rows(page: FeaturePage) -> dict[str, Any]:
    """What evidence methods found, by the names of `store.findings_page`: rows by column, and method_runs."""
    own = [field.name for field in fields(Findings) if field.name != "others"]
    found: dict[str, Any] = {name: _rows(getattr(page.findings, name)) for name in own}
    return {**found, **page.findings.others, "method_runs": _rows(page.method_runs)}


def as_json_text(value: Any) -> str:
    """Records as objects, times as text."""
    return json.dumps(value, default=_plain, ensure_ascii=False, indent=1)


def _rows(value: Any) -> Any:
    if isinstance(value, list):
        return [_rows(one) for one in value]
    return {name: _rows(one) for name, one in _row(value).items()} if is_dataclass(value) else value


def _plain(item: Any) -> Any:
    return _row(item) if is_dataclass(item) else str(item)


def _row(record: Any) -> Row:
    return {field.name: getattr(record, field.name) for field in fields(record)}
