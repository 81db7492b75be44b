"""How the running command, or the last one, gets on: what it has spent, what its budgets leave, and how fast it is."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from autointerp.records import HEADLINE_SCORERS
from autointerp.store.reads import Spent, StoreReads

WINDOW_MIN = 5.0
"""The pace is that of the last so many minutes before the run's last call, or of all its time where that is less."""


def run_progress(store: StoreReads) -> dict[str, Any] | None:
    """The latest run that made calls, or None. Plain values: run_id, command, status, requests, tokens, usd,
    remaining (by budget; its deadline as it was set), calls_per_minute, labels_per_minute, and minutes_left: of all
    features without a label, at that pace; None where nothing was labelled or the run is over."""
    found = store.rows(
        """
        SELECT r.run_id, r.command, r.status, r.config::VARCHAR, r.started_at, max(c.created_at)
        FROM runs AS r JOIN llm_calls AS c USING (run_id) GROUP BY ALL ORDER BY r.started_at DESC LIMIT 1
        """
    )
    if not found:
        return None
    run_id, command, status, config, started_at, last_at = found[0]
    begin = max(started_at, last_at - timedelta(minutes=WINDOW_MIN))
    minutes = max((last_at - begin).total_seconds() / 60, 1 / 60)
    calls = store.rows("SELECT count(*) FROM llm_calls WHERE run_id = ? AND created_at >= ?", [run_id, begin])[0][0]
    # A label is written just after its call.
    labels = store.rows(
        "SELECT count(*) FROM explanations WHERE created_at BETWEEN ? AND ? AND input_tokens > 0",
        [begin, last_at + timedelta(seconds=1)],
    )[0][0]
    pending = store.rows("SELECT count(*) FROM labels WHERE label IS NULL AND status <> 'dead'")[0][0]
    spent = store.spent(run_id)
    tokens = spent.input_tokens + spent.output_tokens
    used = {"max_usd": spent.usd, "max_requests": spent.requests, "max_tokens": tokens}
    budget = (json.loads(config) if config else {}).get("budget", {})
    remaining = {name: budget[name] - n for name, n in used.items() if budget.get(name) is not None}
    if budget.get("deadline") is not None:
        remaining["deadline"] = budget["deadline"]
    return {
        "run_id": run_id, "command": command, "status": status, "requests": spent.requests, "tokens": tokens,
        "usd": spent.usd, "remaining": remaining, "calls_per_minute": calls / minutes,
        "labels_per_minute": labels / minutes,
        "minutes_left": pending * minutes / labels if labels and status == "running" else None,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Written:
    """What the rows say that a run has written, each by its status."""

    labels: Counter[str]
    scores: Counter[str]
    """One for each label (or, where the label does not matter, feature) and scorer, without strata."""
    spent: Spent


def written_by(store: StoreReads, run_id: str) -> Written:
    """Of the running command: nobody else writes, so what is younger than its start is its own."""
    whole = [s for s in HEADLINE_SCORERS if not any(s.startswith(f"{other}_") for other in HEADLINE_SCORERS)]
    since = "created_at >= (SELECT started_at FROM runs WHERE run_id = ?)"
    labels = store.rows(f"SELECT status, count(*) FROM explanations WHERE {since} GROUP BY ALL", [run_id])
    scores = store.rows(
        f"SELECT status, count(*) FROM scores WHERE {since} AND part = 'report' AND scorer IN (SELECT unnest(?)) "
        "GROUP BY ALL",
        [run_id, whole],
    )
    return Written(Counter(dict(labels)), Counter(dict(scores)), store.spent(run_id))
