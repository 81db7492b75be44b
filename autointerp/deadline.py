"""When a run has to end: [budget] deadline, given as a span from the start or as a point in time."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from datetime import time as day_time

from autointerp.errors import InputError, StoppedError

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_SPAN = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:d|h|min|m|s)\s*)+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)", re.ASCII)
_TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}(:\d{2})?", re.ASCII)
_LONGEST_S = 366 * 86400.0


def parse_deadline(value: float | str, now: datetime) -> datetime:
    """The moment that `value` stands for at `now`. A time without a zone is in the machine's own zone.

    A number, and a text such as "5400", "3h" or "1h30m" (d, h, m or min, s), is a span from `now`, in seconds without a
    unit. "07:30" is the next moment at which the clock shows it. "2026-11-23T07:30", with or without a zone, is that
    moment, even if it is past. Raises InputError for anything else.
    """
    text = str(value).strip()
    if len(text) > 100:
        raise InputError(f"deadline {text[:100]!r}... is too long to be a time")
    seconds = _span(text.lower())
    if seconds is not None:
        if not 0 < seconds <= _LONGEST_S:
            raise InputError(f"deadline {text!r}: a span must be longer than 0 s and at most 366 days")
        return now + timedelta(seconds=seconds)
    try:
        if _TIME_OF_DAY.fullmatch(text):
            # Computed without the zone, so that a change to or from summer time does not move the clock time.
            local = now.astimezone().replace(tzinfo=None)
            moment = datetime.combine(
                local.date(), day_time.fromisoformat(text.zfill(8 if text.count(":") == 2 else 5))
            )
            return (moment if moment > local else moment + timedelta(days=1)).astimezone()
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.astimezone()
        moment.timestamp(), moment.astimezone()  # the clock cannot express the first and the last days of all
    except (ValueError, OverflowError, OSError):
        raise InputError(
            f"deadline {text!r} is not a time; write seconds (5400), a span (3h, 1h30m), a time of day (07:30), "
            "or a date and time (2026-11-23T07:30)"
        ) from None
    return moment


def _span(text: str) -> float | None:
    """The seconds of a span such as "5400", "3h" or "1h30m"; None where the text is not a span."""
    if _SPAN.fullmatch(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if not math.isnan(seconds) else 0.0


def fixed(value: float | str | None) -> str | None:
    """The moment that `value` stands for now, as a date and time with its zone; None stays None."""
    return None if value is None else parse_deadline(value, datetime.now().astimezone()).isoformat()


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by the wall clock, so that a machine's sleep counts too."""

    at: datetime | None
    """The deadline; None if there is no deadline."""

    @classmethod
    def of(cls, value: float | str | None) -> Deadline:
        return cls(None if value is None else parse_deadline(value, datetime.now().astimezone()))

    @property
    def left_s(self) -> float:
        """Seconds until the deadline: 0 or less once it has passed, infinite without one."""
        return math.inf if self.at is None else self.at.timestamp() - time.time()

    def error(self) -> StoppedError:
        at = "none" if self.at is None else self.at.isoformat(sep=" ", timespec="seconds")
        return StoppedError(
            f"budget.deadline ({at}) has come: work in progress is finished and kept; run again with a later one"
        )

    def check(self) -> None:
        """Raise StoppedError once the deadline has passed."""
        if self.left_s <= 0:
            raise self.error()
