"""The table of labels that ends a demo, and the columns in which tables of labels agree."""

from __future__ import annotations

from pathlib import Path

from autointerp.store.safety.reading import open_for_reading
from autointerp.terminal import Terminal

LABEL_COLUMNS = ("feature", "label", "score", "ci_low", "ci_high", "density")


def print_labels(path: Path, dictionary: str, terminal: Terminal, rows: int = 20) -> None:
    """Prints how many features of each status there are, how well labels score, and the `rows` best of them."""
    with open_for_reading(path, terminal.say) as store:
        dictionary_id = store.dictionary(dictionary).dictionary_id
        summary = store.label_summary(dictionary_id)
        best = store.best_labels(dictionary_id, rows)
    counts = ", ".join(f"{n} {status}" for status, n in summary["features"].items())
    terminal.result(f"{dictionary}: {counts}; {summary['labelled']} labelled, {summary['scored']} scored")
    for row in summary["scores"]:
        terminal.result(
            f"{row['explainer']} / {row['scorer']} ({row['method']}): mean {row['mean_score']:.3f} "
            f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}] over {row['n']} features, "
            f"{row['n_without_score']} without a score"
        )
    terminal.table(
        LABEL_COLUMNS, [[r[c] for c in LABEL_COLUMNS] for r in best], title=f"the {len(best)} best-scored features"
    )
