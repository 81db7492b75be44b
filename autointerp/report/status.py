"""`autointerp status`: what is done, pending, failed and spent, and how a running command gets on."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from autointerp.errors import InputError, StoreBusyError
from autointerp.progress import clock, duration, per_second
from autointerp.report.control_lifts import control_lifts, lift_line
from autointerp.report.show_json import as_json_text
from autointerp.store.progress_file import CommandProgress, read_progress
from autointerp.store.run_progress import run_progress
from autointerp.store.safety.reading import open_for_reading
from autointerp.terminal import Terminal


def print_status(path: Path, as_json: bool, terminal: Terminal) -> None:
    """What is done, pending, failed and spent, and how a running command gets on. Where the store cannot be read but a
    command works for it, the latter alone. Raises what open_for_reading does where there is neither."""
    working = read_progress(path)
    try:
        with open_for_reading(path, terminal.say) as store:
            status = {**store.status(), "last_run": run_progress(store), "control_lifts": control_lifts(store)}
    except (InputError, StoreBusyError) as error:
        if not working:
            raise
        status, unreadable = {}, str(error)
    else:
        unreadable = ""
    status["working"] = [one.as_dict() for one in working]
    if as_json:
        terminal.result(as_json_text(status | ({"unreadable": unreadable} if unreadable else {})))
        return
    for one in working:
        terminal.result(working_line(one, datetime.now().astimezone()))
    if unreadable:
        terminal.say(unreadable)
        return
    _print_store(status, terminal)


def working_line(one: CommandProgress, now: datetime) -> str:
    """One line about a command that runs, or was killed: what it works on, how far it is, when it will be done."""
    facts = one.facts
    name = f"{facts['command']}{' (' + facts['part'] + ')' if facts['part'] else ''}"
    where = (
        f"process {facts['pid']}" if facts["host"] == platform.node() else f"process {facts['pid']} on {facts['host']}"
    )
    step = ": ".join(filter(None, (facts["dictionary"], facts["stage"])))
    if facts["done"] is not None:
        of = f" of {facts['total']:,} ({facts['done'] / facts['total']:.0%})" if facts["total"] else ""
        step += f", {facts['done']:,}{of} {facts['unit'] or ''}".rstrip()
    if one.state != "running":
        how = "was killed at" if one.state == "killed" else "has not been heard of since"
        last = _to_the_minute(facts["updated_at"])
        return f"{name}: {where} {how} {last}, in {step}; run again, it goes on from what was kept"
    pace = "" if facts["rate"] is None else f", {per_second(facts['rate'])}"
    if facts["expected_end"] is not None:
        pace += f", end about {clock(datetime.fromisoformat(facts['expected_end']).astimezone(), now)}"
    note = f" ({facts['note']})" if facts["note"] else ""
    return f"{name}: {where} is at {step}, for {duration(facts['seconds'])} now{pace}{note}"


def _print_store(status: dict[str, Any], terminal: Terminal) -> None:
    for d in status["dictionaries"]:
        counts = ", ".join(f"{n:,} {name}" for name, n in d["features"].items()) or "not harvested yet"
        terminal.result(f"{d['name']}: {d['model']} {d['hookpoint']}, {d['d_sae']:,} features: {counts}")
        for row in d["explanations"]:
            terminal.result(
                f"  labels by {row['explainer']} ({row['model'] or 'no LLM'}): {row['n']:,} {row['status']}"
            )
        for row in d["scores"]:
            mean = "" if row["mean"] is None else f", mean {row['mean']:.3f}"
            control = f", control {row['control']}" if row["control"] else ""
            terminal.result(
                f"  scores by {row['scorer']} ({row['method']}, {row['part']}{control}): "
                f"{row['n']:,} {row['status']}{mean}"
            )
        if d["methods"]:
            terminal.result(f"  evidence: {_methods(d['methods'])}")
        terminal.result(f"  pending: {d['without_label']:,} features without a label")
        for flag, n in d["flagged"].items():
            terminal.result(f"  flagged: {n:,} labels are {flag} (labels.label_flag)")
        if d["to_measure"]:
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in d["to_measure"].items())
            terminal.result(
                f"  to measure: {kinds}; `autointerp measure` answers them, then `autointerp score` goes on"
            )
    for lift in status["control_lifts"]:
        terminal.result(f"lift: {lift_line(lift)}")
    spent = status["spent"]
    terminal.result(
        f"spent: {spent['requests']:,} requests, {spent['input_tokens']:,} input{_cached(spent)} and "
        f"{spent['output_tokens']:,} output tokens, ${spent['usd']:.4f}"
    )
    newest, run = next(iter(status["runs"]), None), status["last_run"]
    is_told = any(one["state"] == "running" for one in status["working"])
    if newest and newest["status"] == "running" and not is_told and (run is None or newest["run_id"] != run["run_id"]):
        terminal.result(f"running: {newest['command']}; no call of it is in what is read here yet")
    if run is not None:
        for line in _progress_lines(run):
            terminal.result(line)
    if status["spend_by_stage"]:
        columns = ("name", "stage", "model", "n_calls", "n_not_ok", "input_tokens", "output_tokens", "cost_usd")
        terminal.table(columns, [[r[c] for c in columns] for r in status["spend_by_stage"]])
    for row in status["runs"][:5]:
        code = "" if row["exit_code"] is None else f", exit code {row['exit_code']}"
        terminal.result(f"run {row['started_at'][:19]} UTC  {row['command']}: {row['status']}{code}")


def _cached(spent: dict[str, Any]) -> str:
    """Which share of the input an endpoint's prefix cache served, where it tells."""
    if not spent["cached_tokens"]:
        return ""
    return f" ({100 * spent['cached_tokens'] / max(1, spent['input_tokens']):.0f} % of the input cached)"


def _progress_lines(run: dict[str, Any]) -> list[str]:
    """Spent, remaining, pace and expected end of a run."""
    paces = [f"{run['calls_per_minute']:,.0f} calls"]
    paces += [f"{run[name]['per_minute']:,.0f} {name}" for name in ("labels", "scores") if name in run]
    lines = [
        f"last run: {run['command']} ({run['status']}), ${run['usd']:.4f} for {run['requests']:,} requests; "
        f"{', '.join(paces)} a minute, ${60 * run['usd_per_minute']:.2f} an hour"
    ]
    left = "; ".join(f"{name} {_amount(name, n)}" for name, n in run["remaining"].items())
    lines.append(f"  left of its budget: {left or 'no budget was set'}")
    if run["status"] != "running":
        return lines
    pending = " and ".join(f"{run[name]['pending']:,} {name}" for name in ("labels", "scores") if name in run)
    if run["expected_end"] is None:
        return [*lines, f"  to do: {pending}; how fast is not known yet"]
    end = _to_the_minute(run["expected_end"])
    if run["minutes_left"] is None:
        return [*lines, f"  to do: {pending}; how fast is not known yet; budget.{run['ends_by']} would end it {end}"]
    how = "all of it done" if run["ends_by"] == "done" else f"ended by budget.{run['ends_by']}"
    return [*lines, f"  to do: {pending}; expected end at this pace {end}, {how}"]


def _amount(budget: str, left: Any) -> str:
    """What is left of one budget; a deadline that is no point in time as it was set."""
    if budget != "deadline":
        return f"{left:,.4f}" if budget == "max_usd" else f"{left:,}"
    with suppress(ValueError):
        return _to_the_minute(str(left))
    return str(left)


def _to_the_minute(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone().isoformat(sep=" ", timespec="minutes")


def _methods(rows: Sequence[dict[str, Any]]) -> str:
    """Methods with the number of features: "pruning 9 (and 1 no_contexts), shape 1,024"."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        counts.setdefault(row["method"], {})[row["status"]] = row["n"]
    told = []
    for method, statuses in counts.items():
        failed = ", ".join(f"{n:,} {status}" for status, n in statuses.items() if status != "ok")
        told.append(f"{method} {statuses.get('ok', 0):,}" + (f" (and {failed})" if failed else ""))
    return ", ".join(told)
