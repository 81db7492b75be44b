"""How results and progress reach a person: tables and bars on a terminal, plain lines when piped.

Results go to stdout, everything about the work itself to stderr (see log.py), so that a pipe gets only the answer.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from autointerp.log import Level, Log, LogFormat
from autointerp.log import visible as visible

_LOG_EVERY_S = 10.0
"""Seconds between plain progress lines."""


class Progress(Protocol):
    def __call__(self, done: int, of: int | None = None, note: str = "") -> None: ...


class Terminal:
    """Where one command writes. `plain` is decided by whether stdout (results) or stderr (progress) is a terminal."""

    def __init__(self, verbose: bool = False, log_format: LogFormat = LogFormat.text) -> None:
        self.out = Console(highlight=False)
        self.err = Console(stderr=True, highlight=False)
        self.verbose = verbose
        self.log = Log(log_format)

    def silent(self) -> Terminal:
        """One that writes nothing: for the processes beside the first."""
        other = Terminal()
        other.out = other.err = Console(quiet=True, file=io.StringIO())
        other.log = Log(quiet=True)
        return other

    def without_results(self, when: bool = True) -> Terminal:
        """One that only tells about the work: its results come in another form."""
        if not when:
            return self
        other = Terminal(self.verbose)
        other.out, other.err, other.log = Console(quiet=True, file=io.StringIO()), self.err, self.log
        return other

    @property
    def is_live(self) -> bool:
        """Whether a person watches: bars, colours, no time of day."""
        return self.err.is_terminal and not self.log.is_for_programs

    def say(self, message: str, event: str = "message", level: Level = "info", **fields: Any) -> None:
        """One line about the work. `event` and `fields` are for a log in JSON."""
        if self.is_live:
            self.err.print(escape(visible(message)))
        else:
            self.log.write(message, level, event, **fields)

    def warn(self, message: str) -> None:
        """Something that a person should look at, though the work goes on."""
        self.say(message if self.log.is_for_programs else f"WARNING {message}", level="warning")

    def detail(self, message: str) -> None:
        if self.verbose:
            self.say(message, level="debug")

    def result(self, text: str, markup: bool = False) -> None:
        """Text of the answer itself. Markup (colours, highlights) only ever reaches a terminal."""
        if self.out.is_terminal:
            self.out.print(text if markup else escape(text))
        else:
            self.out.file.write(text + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
        """A table: ruled and folded on a terminal, aligned and unfolded in a pipe."""
        cells = [[cell_text(value) for value in row] for row in rows]
        if self.out.is_terminal:
            table = Table(title=title, title_justify="left", header_style="bold")
            for i, column in enumerate(columns):
                numeric = bool(rows) and all(isinstance(row[i], (int, float, type(None))) for row in rows)
                table.add_column(column, justify="right" if numeric else "left", overflow="fold")
            for row in cells:
                table.add_row(*(escape(c) for c in row))
            self.out.print(table)
            return
        widths = [max(len(r[i]) for r in [list(columns), *cells]) for i in range(len(columns))]
        if title:
            self.out.file.write(f"{title}\n")
        for row in [list(columns), *cells]:
            line = "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
            self.out.file.write(line.rstrip() + "\n")

    @contextmanager
    def progress(self, what: str, total: int | None, unit: str = "") -> Iterator[Progress]:
        """Yields the Progress to update. A bar on a terminal, a line every ten seconds in a log."""
        if not self.is_live:
            yield _LoggedProgress(self.log, what, total, unit)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with RichProgress(*columns, console=self.err) as bar:
            task = bar.add_task(escape(visible(what)), total=total, note="")

            def update(done: int, of: int | None = None, note: str = "") -> None:
                bar.update(task, completed=done, note=escape(visible(note)))
                if of is not None:
                    bar.update(task, total=of)

            yield update


class _LoggedProgress:
    """Progress as log lines: at most one every ten seconds, and one at the end."""

    def __init__(self, log: Log, what: str, total: int | None, unit: str) -> None:
        self._log, self._what, self._total, self._unit = log, what, total, unit
        self._begun = self._last = time.monotonic()

    def __call__(self, done: int, of: int | None = None, note: str = "") -> None:
        total, now = of if of is not None else self._total, time.monotonic()
        at_end = bool(total) and done == total
        if now - self._last < _LOG_EVERY_S and not at_end:
            return
        self._last = now
        share = f" of {total:,} ({done / total:.0%})" if total else ""
        seconds = now - self._begun
        self._log.write(
            f"{self._what}: {done:,}{share} {self._unit} in {seconds:.0f} s {note}".rstrip(),
            event="progress", what=self._what, done=done, total=total, unit=self._unit or None,
            seconds=round(seconds, 3), note=note or None,
        )  # fmt: skip


def cell_text(value: Any) -> str:
    """A value as a table shows it: floats to three digits, None as a dash, control characters made visible."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.3f}"
    return visible(str(value))
