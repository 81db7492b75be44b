"""What evidence methods found about one feature, as lines of its page. A method that was not run has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autointerp.errors import InputError
from autointerp.evidence.method import Method
from autointerp.evidence.methods import BUILT_IN as BUILT_IN_METHODS
from autointerp.evidence.methods import methods
from autointerp.store.finding_tables import BUILT_IN
from autointerp.store.findings import NO_OUTPUT_SPACE
from autointerp.terminal import visible

MOST_ROWS = 3
"""Rows shown of a method that is not installed here, whose lines are not known."""


def evidence_lines(page: Mapping[str, Any]) -> list[str]:
    """Lines for the keys of `store.findings_page`: what the built-in methods found, what others did, then which methods
    were run and found nothing."""
    try:
        known, missing = methods(), []
    except InputError as error:  # a page must be readable whatever else is installed
        known, missing = BUILT_IN_METHODS, [f"not shown in their own words: findings of installed packages ({error})"]
    by_name = {method.name: method for method in known}
    lines: list[str] = []
    for table in BUILT_IN:
        lines += by_name[table.method].page(_rows(page[table.page_key]))
    built_in = {table.method for table in BUILT_IN}
    run = [one["method"] for one in page["method_runs"] if one["method"] not in built_in]
    for name in run:
        lines += _lines_of(name, by_name.get(name), _rows(page.get(name)))
    return [visible(line) for line in (*lines, *_failures(page["method_runs"]), *missing)]


def _rows(found: Any) -> list[Mapping[str, Any]]:
    """The rows under one key of a page, where a method with one row for a feature has that row or None."""
    if found is None:
        return []
    return found if isinstance(found, list) else [found]


def _lines_of(name: str, method: Method | None, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if method is not None:
        return method.page(rows)
    shown = [{column: value for column, value in row.items() if column != "harvest_id"} for row in rows[:MOST_ROWS]]
    return [f"{name}  {', '.join(f'{column} {value}' for column, value in row.items())}" for row in shown]


def _failures(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    failed = [f"{run['method']} ({run['status']})" for run in runs if run["status"] not in ("ok", NO_OUTPUT_SPACE)]
    lines = [f"nothing found by  {', '.join(failed)}"] if failed else []
    refused = [run for run in runs if run["status"] == NO_OUTPUT_SPACE]
    for reason in dict.fromkeys(run["error"] for run in refused):
        names = ", ".join(run["method"] for run in refused if run["error"] == reason)
        lines.append(f"nothing found by  {names}: {reason}")
    return lines
