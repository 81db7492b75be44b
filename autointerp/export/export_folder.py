"""Runs a target: the folder is written whole or not at all, with a file in it that says what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autointerp import __version__
from autointerp.errors import InputError
from autointerp.export.export_target import Job, Tally, Target
from autointerp.export.whole_folder import whole_folder


def check_job(job: Job, target: Target) -> None:
    """Raises InputError where the target needs a graph that is not given, or has no use for one that is."""
    if target.reads_graphs and not job.graphs:
        raise InputError(f"{target.name} puts labels into a graph that circuit-tracer made: name its file with --graph")
    if job.graphs and not target.reads_graphs:
        raise InputError(f"--graph is for circuit-tracer-graph, and {target.name} reads no graph")


def export_folder(target: Target, job: Job, out: Path, force: bool) -> Tally:
    """Writes `out`. Raises what `check_job`, `whole_folder` and the target raise."""
    check_job(job, target)
    tally = Tally()

    def about() -> dict[str, Any]:
        return {
            "autointerp": __version__,
            "target": target.name,
            "written": dict(tally.written),
            "left_out": dict(sorted(tally.left_out.items())),
            "notes": tally.notes,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    with whole_folder(out, force, about) as folder:
        target.write(job, folder, tally)
    return tally


def lines_of(tally: Tally, out: Path) -> Iterator[str]:
    """What a person is told of an export."""
    yield f"wrote {out}: {', '.join(f'{n:,} {what}' for what, n in tally.written.items())}"
    for reason, n in sorted(tally.left_out.items()):
        yield f"left out: {n:,} {reason}"
    yield from (f"note: {note}" for note in tally.notes)
