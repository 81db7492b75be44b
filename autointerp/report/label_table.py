"""The table of labels that ends a demo, and the columns in which tables of labels agree."""

from __future__ import annotations

from pathlib import Path

from autointerp.number_text import interval
from autointerp.scorer_names import NATURAL, scorer_place
from autointerp.store.safety.reading import open_for_reading
from autointerp.terminal import Terminal

LABEL_COLUMNS = (
    "feature", "label", "score", "ci_low", "ci_high", "precision", "recall", "label_from", "from_share", "density",
)  # fmt: skip


def print_labels(path: Path, dictionary: str, terminal: Terminal, rows: int = 20) -> None:
    """Prints how many features of each status there are, how well labels score, and the `rows` best of them."""
    with open_for_reading(path, terminal.say) as store:
        dictionary_id = store.dictionary(dictionary).dictionary_id
        summary = store.label_summary(dictionary_id)
        best = store.best_labels(dictionary_id, rows)
    counts = ", ".join(f"{n} {status}" for status, n in summary["features"].items())
    terminal.result(f"{dictionary}: {counts}; {summary['labelled']} labelled, {summary['scored']} scored")
    for row in sorted(summary["scores"], key=lambda row: scorer_place(row["scorer"])):
        meant = "how well labels predict ordinary text, " if row["scorer"] == NATURAL else ""
        name = f"{row['explainer']} / {meant}{row['scorer']} ({row['method']})"
        if row["mean_score"] is None:
            terminal.result(f"{name}: no score of {row['n_without_score']} features")
            continue
        shared = "" if row["n_documents"] is None else f" on {row['n_documents']} documents"
        terminal.result(
            f"{name}: mean {row['mean_score']:.3f}{interval(row['ci_low'], row['ci_high'], places=3)} over {row['n']} "
            f"features{shared}, {row['n_without_score']} without a score"
        )
    terminal.table(
        LABEL_COLUMNS, [[r[c] for c in LABEL_COLUMNS] for r in best], title=f"the {len(best)} best-scored features"
    )
