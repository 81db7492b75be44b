"""Predicts the next calls and scores from earlier ones: how long a call takes, and how well labels score."""

from __future__ import annotations

from dataclasses import dataclass

from autointerp.store.connection import StoreConnection

LATEST = 500
"""The number of latest calls that count. Older ones do not, since an endpoint may be slower today than it was."""


@dataclass(frozen=True, slots=True)
class Latency:
    seconds: float
    """Mean duration of a call. A run takes calls x seconds / calls in flight."""
    output_tokens: float
    """Mean number of tokens that a call writes."""
    calls: int


def measured_latency(store: StoreConnection, model: str) -> Latency | None:
    """The means over the model's latest answered calls that did not go through a batch; None without such calls."""
    found = store.records(
        Latency,
        """
        SELECT avg(latency_s) AS seconds, avg(output_tokens) AS output_tokens, count(*) AS calls FROM (
            SELECT latency_s, output_tokens FROM llm_calls
            WHERE model = ? AND status = 'ok' AND stage <> 'probe' AND latency_s > 0
              AND run_id NOT IN (SELECT run_id FROM batches)
            ORDER BY sequence DESC LIMIT ?
        )
        """,
        [model, LATEST],
    )[0]
    return found if found.calls else None


def earlier_scores(store: StoreConnection, dictionary_id: int, scorer: str, model: str, part: str) -> list[float]:
    """The latest scores that this scorer, with this model, gave to real labels; at most 200."""
    return [
        float(value)
        for (value,) in store.rows(
            "SELECT value FROM scores WHERE dictionary_id = ? AND scorer = ? AND model = ? AND part = ? "
            "AND control IS NULL AND value IS NOT NULL ORDER BY sequence DESC LIMIT 200",
            [dictionary_id, scorer, model, part],
        )
    ]
