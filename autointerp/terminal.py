"""How results and progress reach a person: tables and bars on a terminal, plain lines when piped.

Results go to stdout, everything about the work itself to stderr, so that a pipe gets only the answer.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

_LOG_EVERY_S = 10.0
"""Seconds between plain progress lines."""


class Progress(Protocol):
    def __call__(self, done: int, of: int | None = None, note: str = "") -> None: ...


class Terminal:
    """Where one command writes. `plain` is decided by whether stdout (results) or stderr (progress) is a terminal."""

    def __init__(self, verbose: bool = False) -> None:
        self.out = Console(highlight=False)
        self.err = Console(stderr=True, highlight=False)
        self.verbose = verbose

    def silent(self) -> Terminal:
        """One that writes nothing: for the processes beside the first."""
        other = Terminal()
        other.out = other.err = Console(quiet=True, file=io.StringIO())
        return other

    def without_results(self, when: bool = True) -> Terminal:
        """One that only tells about the work: its results come in another form."""
        if not when:
            return self
        other = Terminal(self.verbose)
        other.out = Console(quiet=True, file=io.StringIO())
        return other

    def say(self, message: str) -> None:
        """One line about the work, with the time of day when it goes to a log."""
        if self.err.is_terminal:
            self.err.print(escape(message))
        else:
            self.err.file.write(f"{time.strftime('%H:%M:%S')} {message}\n")
            self.err.file.flush()

    def detail(self, message: str) -> None:
        if self.verbose:
            self.say(message)

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
        if not self.err.is_terminal:
            yield _LoggedProgress(self.say, what, total, unit)
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
            task = bar.add_task(what, total=total, note="")

            def update(done: int, of: int | None = None, note: str = "") -> None:
                bar.update(task, completed=done, note=escape(note))
                if of is not None:
                    bar.update(task, total=of)

            yield update


class _LoggedProgress:
    """Progress as log lines: at most one every ten seconds, and one at the end."""

    def __init__(self, say: Callable[[str], None], what: str, total: int | None, unit: str) -> None:
        self._say, self._what, self._total, self._unit = say, what, total, unit
        self._begun = self._last = time.monotonic()

    def __call__(self, done: int, of: int | None = None, note: str = "") -> None:
        total, now = of if of is not None else self._total, time.monotonic()
        at_end = bool(total) and done == total
        if now - self._last < _LOG_EVERY_S and not at_end:
            return
        self._last = now
        share = f" of {total:,} ({done / total:.0%})" if total else ""
        self._say(f"{self._what}: {done:,}{share} {self._unit} in {now - self._begun:.0f} s {note}".rstrip())


def cell_text(value: Any) -> str:
    """A value as a table shows it: floats to three digits, None as a dash, control characters made visible."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.3f}"
    return visible(str(value))


def visible(text: str) -> str:
    """`text` on one line, with control characters (a terminal's escape sequences among them) shown, not sent."""
    shown = text.replace("\n", "\u21b5").replace("\t", "\u2192")
    return "".join(c if c.isprintable() or c in "\u21b5\u2192" else f"\\x{ord(c):02x}" for c in shown)
