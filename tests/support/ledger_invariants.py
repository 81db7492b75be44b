"""Invariants between the ledger of the fault server (what was asked, what is billed) and a store.

Each function returns the violations as sentences; an empty list means that its invariant holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb

from support.fault_server import WORDS, Entry

Row = tuple[Any, ...]
LABELS = "SELECT dictionary_id, feature, explainer, status, text FROM explanations ORDER BY ALL"
SCORES = (
    "SELECT dictionary_id, feature, scorer, method, part, control, status, value, ci_low, ci_high, n, n_failed "
    "FROM scores ORDER BY ALL"
)
"""The columns that are a run's result. Errors' texts, tokens and times depend on how it was reached."""


def rows(store: Path, sql: str) -> list[Row]:
    """The rows of a query on a store that no process has open."""
    with duckdb.connect(str(store), read_only=True) as con:
        return con.execute(sql).fetchall()


def tables(store: Path, scores_too: bool = True) -> list[Row]:
    """The labels and scores, for a comparison with those of an undisturbed run."""
    return [*rows(store, LABELS), *(rows(store, SCORES) if scores_too else [])]


def billed(entries: Iterable[Entry]) -> tuple[int, int]:
    """(input, output) tokens on the bill."""
    counted = [e for e in entries if e.billed]
    return sum(e.input_tokens for e in counted), sum(e.output_tokens for e in counted)


def booked(store: Path) -> tuple[int, int]:
    """(input, output) tokens that the store says were used."""
    found = rows(store, "SELECT coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0) FROM llm_calls")[0]
    return int(found[0]), int(found[1])


def underbooked(store: Path, entries: Sequence[Entry], lost: Collection[int] = ()) -> list[str]:
    """Every billed token is in llm_calls, including those of attempts that may be billed. `lost` holds the numbers of
    requests whose client was killed before it could write anything."""
    bill, found = billed(e for e in entries if e.number not in lost), booked(store)
    return [] if found >= bill and found[1] >= bill[1] else [f"billed {bill} tokens, booked {found}"]


def zeros_for_failures(store: Path) -> list[str]:
    """A failed score has a status and no value; every other score has a value."""
    failed = "SELECT count(*) FROM scores WHERE (status = 'ok') <> (value IS NOT NULL)"
    predicted = "SELECT count(*) FROM predictions WHERE (status = 'ok') <> (predicted IS NOT NULL)"
    unlabelled = "SELECT count(*) FROM explanations WHERE (status = 'ok') <> (text IS NOT NULL)"
    found = [(sql.split()[3], rows(store, sql)[0][0]) for sql in (failed, predicted, unlabelled)]
    return [f"{n} rows of {table} have a value and a failure, or neither" for table, n in found if n]


def twice(store: Path) -> list[str]:
    """No label, score or call is in the store twice."""
    keys = {
        "explanations": "explanation_id", "scores": "score_id", "llm_calls": "(request_sha256, sample)",
        "predictions": "(score_id, context_id)",
    }  # fmt: skip
    out = []
    for table, key in keys.items():
        n, distinct = rows(store, f"SELECT count(*), count(DISTINCT {key}) FROM {table}")[0]
        if n != distinct:
            out.append(f"{n - distinct} rows of {table} stand twice")
    return out


def lost(before: Sequence[Row], after: Sequence[Row]) -> list[str]:
    """Every earlier row with a final status is still there, unchanged. (Rows with gave_up may change.)"""
    missing = Counter(r for r in before if "gave_up" not in r) - Counter(after)
    return [f"lost: {row}" for row in missing]


def is_answer(entry: Entry) -> bool:
    """Whether the client got a reply that it keeps, useful or not."""
    return entry.answered and (entry.fault is None or entry.fault in WORDS)


def unrecorded(store: Path, entries: Iterable[Entry]) -> set[str]:
    """The keys in llm_calls of the answered requests whose answer the store does not hold."""
    held = {key for (key,) in rows(store, "SELECT request_sha256 FROM llm_calls WHERE status <> 'gave_up'")}
    return {e.request for e in entries if is_answer(e)} - held


def paid_again(store: Path, entries: Iterable[Entry], allowed: int) -> list[str]:
    """At most `allowed` answered requests came again. These are replies not yet written when a client was killed, or on
    their way when a server was killed. Probes do not count, since every command that needs them asks them anew."""
    probes = {key for (key,) in rows(store, "SELECT request_sha256 FROM llm_calls WHERE stage = 'probe'")}
    answers = Counter(e.request for e in entries if is_answer(e) and e.request not in probes)
    again = answers.total() - len(answers)
    return [] if again <= allowed else [f"{again} answered requests were sent again, at most {allowed} explained"]
