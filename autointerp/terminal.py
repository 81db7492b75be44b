"""Shows results and progress to a person: as tables and bars on a terminal, as plain lines when piped.

Results go to stdout, and everything about the work itself goes to stderr (see log.py), so a pipe gets only the answer.
"""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from autointerp.errors import InputError
from autointerp.log import Level, Log, LogFormat
from autointerp.log import visible as visible
from autointerp.progress import Counting, Standing, iso

_LOG_EVERY_S = 10.0
"""Seconds between two lines about one step."""
_LISTEN_EVERY_S = 4.0
"""Seconds after which the listener is told of a step that has no updates."""


class Progress(Protocol):
    def __call__(self, done: int, of: int | None = None, note: str = "") -> None: ...

    def begin_at(self, done: int) -> None:
        """Says how much of the work earlier runs did; it does not count towards this run's speed. May be called again
        when more of it is found."""


class Terminal:
    """The output of one command. Its form depends on whether stdout (results) and stderr (the work) are terminals.

    `every_s`: long work is never silent for more seconds than this, on a terminal or in a log.
    """

    def __init__(
        self, verbose: bool = False, log_format: LogFormat = LogFormat.text, every_s: float | None = None
    ) -> None:
        # Without emoji: data may hold `:x:`.
        self.out = Console(highlight=False, emoji=False)
        self.err = Console(stderr=True, highlight=False, emoji=False)
        self.verbose = verbose
        self.log = Log(log_format)
        self._steps = _Steps(_LOG_EVERY_S if every_s is None else every_s)

    def silent(self) -> Terminal:
        """A Terminal that writes nothing, for all processes but the first."""
        other = Terminal(every_s=0)
        other.out = other.err = Console(quiet=True, file=io.StringIO())
        other.log = Log(quiet=True)
        return other

    def without_results(self, when: bool = True) -> Terminal:
        """A Terminal that shows only the work, for a command that gives its results in another form."""
        if not when:
            return self
        other = Terminal(self.verbose)
        other.out, other.err, other.log = Console(quiet=True, file=io.StringIO()), self.err, self.log
        other._steps = self._steps
        return other

    @property
    def is_live(self) -> bool:
        """Whether a person watches: bars, colours, no time of day."""
        return self.err.is_terminal and not self.log.is_for_programs

    def say(self, message: str, event: str = "message", level: Level = "info", **fields: Any) -> None:
        """Writes one line about the work. `event` and `fields` are for a log in JSON."""
        self._steps.spoken()
        if self.is_live:
            self.err.print(Text(visible(message)))
        else:
            self.log.write(message, level, event, **fields)

    def warn(self, message: str) -> None:
        """Writes a warning, which a person should read although the work goes on."""
        self.say(message if self.log.is_for_programs else f"WARNING {message}", level="warning")

    def detail(self, message: str) -> None:
        if self.verbose:
            self.say(message, level="debug")

    def result(self, text: str) -> None:
        """Writes text of the answer itself. What a terminal would obey is written out there; a pipe gets the text as it
        is."""
        if self.out.is_terminal:
            self.out.print(Text("\n".join(visible(line) for line in text.split("\n"))))
        else:
            self.out.file.write(text + "\n")

    def styled(self, *parts: str | tuple[str, str]) -> None:
        """Writes one line of the answer to a terminal, from texts and from pairs of a text and its rich style. No text
        is markup: `x[i]`, of three tokens, would be shown as `x`."""
        shown = [(visible(part), "") if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts]
        self.out.print(Text.assemble(*shown), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
        """Writes a table: with rules and folded cells on a terminal, aligned and unfolded in a pipe."""
        cells = [[cell_text(value) for value in row] for row in rows]
        if self.out.is_terminal:
            named = None if title is None else Text(visible(title))
            table = Table(title=named, title_justify="left", header_style="bold")
            for i, column in enumerate(columns):
                numeric = bool(rows) and all(isinstance(row[i], (int, float, type(None))) for row in rows)
                table.add_column(Text(visible(column)), justify="right" if numeric else "left", overflow="fold")
            for row in cells:
                table.add_row(*(Text(c) for c in row))
            self.out.print(table)
            return
        header = [visible(column) for column in columns]
        widths = [max(len(r[i]) for r in [header, *cells]) for i in range(len(columns))]
        if title:
            self.out.file.write(f"{title}\n")
        for row in [header, *cells]:
            line = "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
            self.out.file.write(line.rstrip() + "\n")

    def csv(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Writes a table as CSV. Raises InputError where the encoding of standard output lacks a sign of it."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n" if self.out.is_terminal else "\r\n")
        writer.writerow(columns)
        writer.writerows(rows)
        if self.out.is_terminal:
            self.result(text.getvalue().rstrip("\n"))
            return
        try:
            text.getvalue().encode(self.out.encoding)
        except UnicodeEncodeError as error:  # CSV has no way to write such a sign
            sign = error.object[error.start]
            raise InputError(
                f"standard output takes {self.out.encoding}, which lacks {ascii(sign)} of the result; set "
                "PYTHONIOENCODING=utf-8, or choose another form"
            ) from None
        self.out.file.write(text.getvalue())

    @contextmanager
    def progress(
        self, what: str, total: int | None, unit: str = "", done: int = 0, tells_end: bool = True
    ) -> Iterator[Progress]:
        """Yields the Progress to update. A terminal shows a bar; a log gets lines, at most one every `every_s` seconds
        while there are updates, and one every `every_s` seconds without updates. `what` is "DICTIONARY: doing"; `done`
        is how much of the total earlier runs did. `tells_end` is whether a log gets a last line even of a short step.
        """
        if self.is_live and not self._steps.has_bar:
            with (
                _bar(self.err, what, total, unit) as show,
                self._steps.step(_Step(what, total, unit, done, show, is_bar=True)) as step,
            ):
                yield step
            return
        with self._steps.step(_Step(what, total, unit, done, self._say_standing, tells_end=tells_end)) as step:
            yield step

    def counting(self, dictionary: str) -> Counting:
        """The steps of work on one dictionary, for code that knows no terminal. A log hears of a short one nothing."""
        return lambda doing, total, unit: self.progress(f"{dictionary}: {doing}", total, unit, tells_end=False)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """For a step that cannot say how far it is. Says every `every_s` seconds that it is still at work, unless
        something else is said. `what` is "DICTIONARY: doing", or "doing"."""

        def tell(standing: Standing) -> None:
            if not self._steps.has_bar:
                self._say_standing(standing)

        with self._steps.step(_Step(what, None, "", 0, tell, is_counted=False)):
            yield

    def watch(self, listener: Callable[[Standing], None] | None) -> None:
        """Tells `listener` the standing of the innermost step at every update and every few seconds. None ends that."""
        self._steps.listener = listener

    def _say_standing(self, standing: Standing) -> None:
        now = datetime.now().astimezone()
        if self.is_live:
            self.err.print(Text(visible(standing.line(now))))
        else:
            self._log_standing(standing)

    def _log_standing(self, standing: Standing) -> None:
        now = datetime.now().astimezone()
        done = standing.done if standing.is_counted else None
        self.log.write(
            standing.line(now), event="progress", what=standing.what, done=done, total=standing.total,
            unit=standing.unit or None, seconds=round(standing.seconds, 3), rate=standing.rate,
            expected_end=iso(standing.expected_end(now)), note=standing.note or None,
        )  # fmt: skip


@contextmanager
def _bar(console: Console, what: str, total: int | None, unit: str) -> Iterator[Callable[[Standing], None]]:
    """Shows a bar that moves by itself, and yields the function that sets it."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TextColumn("{task.fields[pace]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with RichProgress(*columns, console=console) as bar:
        task = bar.add_task(visible(what), total=total, note="", pace="")

        def show(standing: Standing) -> None:
            pace = standing.pace(datetime.now().astimezone()).removeprefix(", ")
            note = visible(standing.note)
            bar.update(task, completed=standing.done, total=standing.total, note=note, pace=pace)

        yield show


class _Step:
    """One step of the work. It is called as a Progress."""

    def __init__(
        self, what: str, total: int | None, unit: str, done: int, show: Callable[[Standing], None],
        is_counted: bool = True, is_bar: bool = False, tells_end: bool = True,
    ) -> None:  # fmt: skip
        self._what, self._total, self._unit, self._begun_at = what, total, unit, done
        self._done, self._note, self._is_counted = done, "", is_counted
        self._begun = time.monotonic()
        self.show = show
        self.steps: _Steps | None = None
        self.is_bar, self.tells_end = is_bar, tells_end

    @property
    def is_new(self) -> bool:
        """Whether the step counts something and has not counted anything yet."""
        return self._is_counted and self._done == self._begun_at

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def standing(self) -> Standing:
        return Standing(
            self._what, self._done, self._total, self._unit, self.seconds, self._begun_at, self._note, self._is_counted
        )

    def begin_at(self, done: int) -> None:
        self._begun_at, self._done = done, max(done, self._done)

    def __call__(self, done: int, of: int | None = None, note: str = "") -> None:
        self._done, self._note = done, note
        if of is not None:
            self._total = of
        if self.steps is not None:
            self.steps.updated(self, is_at_end=bool(self._total) and done == self._total)


class _Steps:
    """The running steps, the innermost last. While there are any, a thread makes sure that they are not silent for
    long."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self.listener: Callable[[Standing], None] | None = None
        self._steps: list[_Step] = []
        self._last = time.monotonic()
        self._over: threading.Event | None = None
        self._failure: Exception | None = None
        """What ended the thread, until the next step raises it."""
        self._lock = threading.RLock()

    @property
    def has_bar(self) -> bool:
        return any(step.is_bar for step in self._steps)

    def spoken(self) -> None:
        """Records that something has just been said."""
        self._last = time.monotonic()

    @contextmanager
    def step(self, step: _Step) -> Iterator[_Step]:
        step.steps = self
        with self._lock:
            if not self._steps:  # inside another step, the silence began earlier
                self._last = time.monotonic()
            self._steps.append(step)
            if self.every_s > 0 and self._over is None:
                self._over = threading.Event()
                threading.Thread(target=self._speak, args=(self._over,), name="progress", daemon=True).start()
        self._listen(step)
        try:
            yield step
        finally:
            with self._lock:
                self._steps.remove(step)
                if not self._steps and self._over is not None:
                    self._over.set()
                    self._over = None

    def updated(self, step: _Step, is_at_end: bool) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        is_told = is_at_end and (step.tells_end or step.seconds >= self.every_s)
        if step.is_bar or is_told or time.monotonic() - self._last >= self.every_s:
            self._show(step)
        self._listen(step)

    def _show(self, step: _Step) -> None:
        with self._lock:
            self._last = time.monotonic()
            step.show(step.standing())

    def _listen(self, step: _Step) -> None:
        listener = self.listener
        if listener is not None:
            listener(step.standing())

    def _speak(self, over: threading.Event) -> None:
        try:
            while not over.wait(min(self.every_s, _LISTEN_EVERY_S) / 2):
                with self._lock:
                    if over.is_set() or not self._steps:
                        continue
                    step = self._steps[-1]
                    if time.monotonic() - self._last >= self.every_s:
                        self._show(self._subject())
                self._listen(step)
        except Exception as error:  # a thread's error reaches nobody
            self._failure = error

    def _subject(self) -> _Step:
        """The innermost step about which there is something to say: one that has just begun has no speed yet."""
        old = [step for step in self._steps if not step.is_new or step.seconds >= self.every_s]
        return (old or self._steps)[-1]


def cell_text(value: Any) -> str:
    """A value as a table shows it: floats with three digits, None as a dash, control characters made visible."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.3f}"
    return visible(str(value))
