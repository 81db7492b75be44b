"""`autointerp search`: features by the words of their labels."""

from __future__ import annotations

from pathlib import Path

from autointerp.report.label_table import LABEL_COLUMNS
from autointerp.report.show_json import as_json_text
from autointerp.store.safety.reading import open_for_reading
from autointerp.terminal import Terminal


def print_search(path: Path, text: str, dictionary: str | None, limit: int, as_json: bool, terminal: Terminal) -> None:
    """Prints up to `limit` labels that hold words of `text`, those with most of its words first.

    Raises InputError where the store has no such dictionary.
    """
    with open_for_reading(path, terminal.say) as store:
        chosen = store.dictionary(dictionary).dictionary_id if dictionary else None
        found = store.search_labels(text, chosen, limit)
    if as_json:
        terminal.result(as_json_text(found))
        return
    if not found:
        terminal.say(f"no label mentions {text!r}")
        return
    columns = ("name", *LABEL_COLUMNS)
    terminal.table(columns, [[row[c] for c in columns] for row in found])
