"""What earlier calls and scores tell of those to come: how long a call takes, and how well labels do."""

from __future__ import annotations

from dataclasses import dataclass

from autointerp.store.connection import StoreConnection

LATEST = 500
"""Calls that are looked at: an endpoint may be slower today than it was."""


@dataclass(frozen=True, slots=True)
class Latency:
    seconds: float
    """Of one call, on average: with so many in flight, a run takes calls x seconds / in flight."""
    output_tokens: float
    """Written by one of these calls, on average."""
    calls: int


def measured_latency(store: StoreConnection, model: str) -> Latency | None:
    """Of the model's latest answered calls that did not go through a batch; None where there are none."""
    found = store.rows(
        """
        SELECT avg(latency_s), avg(output_tokens), count(*) FROM (
            SELECT latency_s, output_tokens FROM llm_calls
            WHERE model = ? AND status = 'ok' AND stage <> 'probe' AND latency_s > 0
              AND run_id NOT IN (SELECT run_id FROM batches)
            ORDER BY created_at DESC LIMIT ?
        )
        """,
        [model, LATEST],
    )[0]
    return Latency(float(found[0]), float(found[1]), int(found[2])) if found[2] else None


def earlier_scores(store: StoreConnection, dictionary_id: int, scorer: str, model: str, part: str) -> list[float]:
    """The latest scores of real labels by this scorer and judge, at most 200 of them."""
    return [
        float(value)
        for (value,) in store.rows(
            "SELECT value FROM scores WHERE dictionary_id = ? AND scorer = ? AND model = ? AND part = ? "
            "AND control IS NULL AND value IS NOT NULL ORDER BY created_at DESC LIMIT 200",
            [dictionary_id, scorer, model, part],
        )
    ]
