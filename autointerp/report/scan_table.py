"""What a scan found, as text, as JSON, and as the rows of a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from autointerp.number_text import percent, with_interval
from autointerp.report.show_json import as_json_text
from autointerp.scan_rows import ScanRow
from autointerp.store.row_files import write_rows
from autointerp.terminal import Terminal, visible

_EXAMPLE = "STRUCT(document VARCHAR, position BIGINT, strength DOUBLE, text VARCHAR, marked VARCHAR)"
COLUMNS = {
    "dictionary": "VARCHAR", "feature": "INTEGER", "label": "VARCHAR", "second_label": "VARCHAR",
    "explainer": "VARCHAR", "explanation_id": "VARCHAR", "at_least": "DOUBLE", "n_tiles": "BIGINT",
    "n_claimed": "BIGINT", "share": "DOUBLE", "n_documents": "BIGINT", "n_tokens": "BIGINT", "density": "DOUBLE",
    "natural": "DOUBLE", "precision": "DOUBLE", "precision_low": "DOUBLE", "precision_high": "DOUBLE",
    "recall": "DOUBLE", "recall_low": "DOUBLE", "recall_high": "DOUBLE", "examples": f"{_EXAMPLE}[]",
}  # fmt: skip
"""The fields of ScanRow, in order, as columns of a file."""


def write_scan(path: Path, rows: Sequence[ScanRow]) -> None:
    """Writes one row for each feature."""
    write_rows(path, COLUMNS, [asdict(row) for row in rows])


def print_scan(rows: Sequence[ScanRow], as_json: bool, terminal: Terminal) -> None:
    if as_json:
        terminal.result(as_json_text(rows))
        return
    for place, row in enumerate(rows):
        if place:
            terminal.result("")
        for line in _lines(row):
            terminal.result(line)


def _lines(row: ScanRow) -> Iterator[str]:
    second = f"; or {row.second_label}" if row.second_label else ""
    yield f"{visible(row.dictionary)}:{row.feature}  {visible(row.label + second)}  (by {visible(row.explainer)})"
    yield (
        f"  holds in {row.n_claimed:,} of {row.n_tiles:,} tiles ({percent(row.share)}), on {row.n_tokens:,} tokens, in "
        f"{row.n_documents:,} documents; the feature fires in {percent(row.density)} of the tiles of its own text"
    )
    if row.natural is not None:
        precision = with_interval(row.precision, row.precision_low, row.precision_high)
        recall = with_interval(row.recall, row.recall_low, row.recall_high)
        yield f"  there, from a prediction of 1 on: precision {precision}, recall {recall}"
    else:
        yield "  what that is worth is not known: `autointerp score` scores rules without an LLM"
    for example in row.examples:
        where = f"{example.document}@{example.position}"
        yield f"  {example.strength:5.2f}  {visible(example.marked)}  ({visible(where)})"
