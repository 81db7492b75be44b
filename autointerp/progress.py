"""The progress of a step of the work: how far it is, its speed, and its expected end, for a log, a bar and `status`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

Counting = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]
"""counting(doing, total, unit): a context that yields the function to which work says how much of it is done."""


@contextmanager
def uncounted(doing: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """The Counting of a caller who does not want to know."""
    yield lambda done: None


class Adding:
    """Adds up what is done, and tells the sum to `update`."""

    def __init__(self, update: Callable[[int], None]) -> None:
        self._update, self._done = update, 0

    def __call__(self, n: int) -> None:
        """`n` more are done."""
        self._done += n
        self._update(self._done)


LONGEST_S = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Standing:
    """The progress of one step at one moment."""

    what: str
    """ "DICTIONARY: doing", or just "doing"."""
    done: int
    total: int | None
    """None if the total is not known."""
    unit: str
    seconds: float
    """Seconds since the step began in this process."""
    begun_at: int = 0
    """How much an earlier run had done; it does not count towards this run's speed."""
    note: str = ""
    is_counted: bool = True
    """False for a step that cannot say how far it is."""

    @property
    def stage(self) -> str:
        return self.what.rpartition(": ")[2]

    @property
    def dictionary(self) -> str:
        return self.what.rpartition(": ")[0]

    @property
    def rate(self) -> float | None:
        """Units a second; None until something is done."""
        new = self.done - self.begun_at
        return new / self.seconds if self.is_counted and new > 0 and self.seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at this rate; None if rate or total is not known, or if more was done than the total."""
        if self.rate is None or self.total is None or self.done > self.total:
            return None
        return min((self.total - self.done) / self.rate, LONGEST_S)

    def expected_end(self, now: datetime) -> datetime | None:
        left = self.seconds_left
        return None if left is None else now + timedelta(seconds=left)

    def line(self, now: datetime) -> str:
        """The standing as text: "a: training: 200 of 1,000 (20%) steps in 40 s, 5 a second, end about 14:32 loss 0.3".
        Times are shown in the time zone of `now`."""
        if not self.is_counted:
            subject = f"{self.dictionary}: " if self.dictionary else ""
            return f"{subject}still {self.stage}, {duration(self.seconds)}"
        share = f" of {self.total:,} ({self.done / self.total:.0%})" if self.total else ""
        counted = f"{self.what}: {self.done:,}{share} {self.unit}".rstrip()
        return f"{counted} in {duration(self.seconds)}{self.pace(now)} {self.note}".rstrip()

    def pace(self, now: datetime) -> str:
        """ ", 5 a second, end about 14:32", or the part of it that is known."""
        told = "" if self.rate is None else f", {per_second(self.rate)}"
        end = self.expected_end(now)
        return told if end is None or self.done == self.total else f"{told}, end about {clock(end, now)}"


def per_second(rate: float) -> str:
    if rate >= 1:
        return f"{rate:,.0f} a second" if rate >= 10 else f"{rate:.1f} a second"
    return f"{60 * rate:.1f} a minute" if 60 * rate >= 1 else f"{3600 * rate:.1f} an hour"


def duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def clock(moment: datetime, now: datetime) -> str:
    """The time of day, with the date if it is not the date of `now`."""
    return f"{moment:%H:%M}" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%M}"


def iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")
