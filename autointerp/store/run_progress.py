"""The progress of the running command, or of the last one: what it has spent, what its budgets leave, how fast it is
and when it will be done."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from autointerp.scorer_names import HEADLINE_SCORERS, headlines_among
from autointerp.store.rows import Spent
from autointerp.store.selection import Selection, is_chosen
from autointerp.store.store import Store

WINDOW_MIN = 5.0
"""The pace is measured over so many minutes before the run's last call, or since its first call where that is less."""


def run_progress(store: Store) -> dict[str, Any] | None:
    """The latest run that made calls, as plain values; None if there is no such run:

    run_id, command, status, requests, tokens, cached_tokens (of the input), usd
    remaining            what is left of each budget; the deadline as it was set
    calls_per_minute, usd_per_minute
    labels, scores       pending, per_minute and minutes_left (None while the pace is not known) for the features chosen
                         for the run; absent where the command makes none
    minutes_left         until all of it is done; None while a pace is not known, and where the run is over
    expected_end         when that will be (ISO, UTC), or earlier, when a budget ends the run; None where not known
    ends_by              "done", or the name of that budget
    """
    found = store.rows(
        """
        SELECT r.run_id, r.command, r.status, r.config::VARCHAR, c.first_at, c.last_at, r.started_at, r.sequence
        FROM runs AS r JOIN (
            SELECT run_id, min(created_at) AS first_at, max(created_at) AS last_at FROM llm_calls GROUP BY run_id
        ) AS c USING (run_id)
        ORDER BY r.sequence DESC LIMIT 1
        """
    )
    if not found:
        return None
    run_id, command, written, config, first_at, last_at, started_at, since = found[0]
    status = store.run_status(written)
    begin = max(first_at if first_at < last_at else started_at, last_at - timedelta(minutes=WINDOW_MIN))
    minutes = max((last_at - begin).total_seconds() / 60, 1 / 60)
    calls, usd, tokens, requests = store.rows(
        "SELECT count(*), sum(cost_usd), sum(input_tokens + output_tokens), sum(attempts) FROM llm_calls "
        "WHERE run_id = ? AND created_at >= ?",
        [run_id, begin],
    )[0]
    settings = json.loads(config) if config else {}
    work = _work(store, command, settings, since, begin, last_at, minutes)
    spent = store.spent(run_id)
    used = {"max_usd": spent.usd, "max_requests": spent.requests, "max_tokens": spent.tokens}
    paces = {"max_usd": usd / minutes, "max_requests": int(requests) / minutes, "max_tokens": int(tokens) / minutes}
    budget = settings.get("budget", {})
    remaining = {name: budget[name] - n for name, n in used.items() if budget.get(name) is not None}
    lasting = {name: max(0.0, left) / paces[name] for name, left in remaining.items() if paces[name] > 0}
    if budget.get("deadline") is not None:
        remaining["deadline"] = budget["deadline"]
        lasting["deadline"] = _minutes_until(budget["deadline"], last_at)
    lefts = [part["minutes_left"] for part in work.values()]
    running = status == "running"
    minutes_left = sum(lefts) if running and all(left is not None for left in lefts) else None
    ends_by, until = "done", minutes_left
    for name, left in lasting.items():
        if running and left is not None and (until is None or left < until):
            ends_by, until = name, left
    return {
        "run_id": run_id, "command": command, "status": status, "requests": spent.requests, "tokens": spent.tokens,
        "cached_tokens": spent.cached_tokens, "usd": spent.usd, "remaining": remaining,
        "calls_per_minute": calls / minutes, "usd_per_minute": paces["max_usd"], **work, "minutes_left": minutes_left,
        "expected_end": None if until is None else _iso(last_at, until), "ends_by": None if until is None else ends_by,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Written:
    """How many rows a run has written, by status."""

    labels: Counter[str]
    scores: Counter[str]
    """One score is counted for each label and scorer, without strata; for each feature if a scorer reads no label."""
    spent: Spent


def written_by(store: Store, run_id: str) -> Written:
    """The rows that the running command has written. It is the only writer, so every row since its start counts."""
    since = "sequence > (SELECT sequence FROM runs WHERE run_id = ?)"
    names = [name for (name,) in store.rows(f"SELECT DISTINCT scorer FROM scores WHERE {since}", [run_id])]
    headlines = headlines_among(names)
    others = (*HEADLINE_SCORERS, *headlines)
    whole = [name for name in headlines if not any(name.startswith(f"{other}_") for other in others)]
    labels = store.rows(f"SELECT status, count(*) FROM explanations WHERE {since} GROUP BY ALL", [run_id])
    scores = store.rows(
        f"SELECT status, count(*) FROM scores WHERE {since} AND part = 'report' AND scorer IN (SELECT unnest(?)) "
        "GROUP BY ALL",
        [run_id, whole],
    )
    return Written(Counter(dict(labels)), Counter(dict(scores)), store.spent(run_id))


def _iso(last_at: datetime, minutes: float) -> str:
    """`minutes` after the last call, at most a year."""
    end = last_at + timedelta(minutes=min(minutes, 366 * 1440.0))
    return end.replace(tzinfo=UTC).isoformat(timespec="seconds")


def _minutes_until(deadline: Any, last_at: datetime) -> float | None:
    """Minutes until the deadline in the run's row; None if that is not a point in time."""
    try:
        moment = datetime.fromisoformat(str(deadline)).astimezone(UTC).replace(tzinfo=None)
    except ValueError:
        return None
    return max(0.0, (moment - last_at).total_seconds() / 60)


def _work(
    store: Store,
    command: str,
    settings: dict[str, Any],
    since: int,
    begin: datetime,
    last_at: datetime,
    minutes: float,
) -> dict[str, dict[str, Any]]:
    """What is left to do, and how fast it goes, for labels and for scores. `since`: the run's own number; what it wrote
    has higher ones."""
    explainer = settings.get("explain", {}).get("explainer", "")
    scorers = settings.get("score", {}).get("scorers") or ["simulation"]
    selection = Selection(**settings.get("selection", {}))
    # A row is written just after its call.
    window = [since, begin, last_at + timedelta(seconds=1)]
    in_window = "sequence > ? AND created_at BETWEEN ? AND ?"
    left: dict[str, int] = {}
    held = store.dictionaries()
    names = {sae.get("name") or sae.get("hookpoint") for sae in settings.get("sae", [])}
    for dictionary in [row for row in held if row.name in names] or held:
        own = dictionary.dictionary_id
        wanted = None if selection.is_all else store.selected_features(own, selection)
        chosen, parameters = is_chosen(own, wanted)
        n_chosen = store.rows(f"SELECT count(*) FROM features WHERE dictionary_id = ? AND {chosen}", [own, *parameters])
        made, usable = store.rows(
            "SELECT count(DISTINCT feature), count(DISTINCT feature) FILTER (status = 'ok') FROM explanations "
            f"WHERE dictionary_id = ? AND explainer = ? AND {chosen} AND status <> 'gave_up'",
            [own, explainer, *parameters],
        )[0]
        # A score without a label belongs to the feature itself.
        scored = dict(
            store.rows(
                f"SELECT scorer, count(DISTINCT feature) FROM scores WHERE dictionary_id = ? AND {chosen} "
                "AND part = 'report' AND control IS NULL AND status <> 'gave_up' AND (explanation_id IS NULL OR "
                "explanation_id IN (SELECT explanation_id FROM explanations WHERE dictionary_id = ? AND explainer = ?))"
                " GROUP BY scorer",
                [own, *parameters, own, explainer],
            )
        )
        unlabelled = n_chosen[0][0] - made if command != "score" else 0
        left["labels"] = left.get("labels", 0) + unlabelled
        to_score = sum(max(0, usable + unlabelled - scored.get(scorer, 0)) for scorer in scorers)
        left["scores"] = left.get("scores", 0) + to_score
    labels = store.rows(f"SELECT count(*) FROM explanations WHERE {in_window} AND input_tokens > 0", window)[0][0]
    scores = store.rows(
        f"SELECT count(*) FROM scores WHERE {in_window} AND control IS NULL AND part = 'report' "
        "AND scorer IN (SELECT unnest(?))",
        [*window, scorers],
    )[0][0]
    # Where labels come first, the time that they took does not count for the scores.
    asked_at = store.rows(
        f"SELECT min(created_at) FROM llm_calls WHERE {in_window} AND stage NOT IN ('explain', 'probe')",
        window,
    )[0][0]
    scoring = minutes if asked_at is None else max((last_at - asked_at).total_seconds() / 60, 1 / 60)
    paces = {"labels": labels / minutes, "scores": scores / scoring}
    asked = {"explain": ("labels",), "compile": ("labels",), "score": ("scores",)}.get(command, ("labels", "scores"))
    return {
        name: {
            "pending": left.get(name, 0),
            "per_minute": paces[name],
            "minutes_left": 0.0 if not left.get(name) else left[name] / paces[name] if paces[name] else None,
        }
        for name in asked
    }
