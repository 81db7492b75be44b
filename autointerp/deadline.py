"""When a run has to end: [budget] deadline, as a span from the start or as a point in time."""

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
    """The point in time that `value` means at `now`. Times without a zone are in the machine's own.

    A number is seconds from `now`, and so are "5400", "3h" and "1h30m" (d, h, m or min, s); "07:30" is the next time
    the clock shows that; "2026-11-23T07:30" (with or without a zone) is that moment, past or not. InputError otherwise.
    """
    text = str(value).strip()
    seconds = _span(text.lower())
    if seconds is not None:
        if not 0 < seconds <= _LONGEST_S:
            raise InputError(f"deadline {text!r}: a span must be longer than nothing and at most 366 days")
        return now + timedelta(seconds=seconds)
    try:
        if _TIME_OF_DAY.fullmatch(text):
            # Reckoned without the zone, so that a change of summer time does not move what the clock shows.
            local = now.astimezone().replace(tzinfo=None)
            moment = datetime.combine(
                local.date(), day_time.fromisoformat(text.zfill(8 if text.count(":") == 2 else 5))
            )
            return (moment if moment > local else moment + timedelta(days=1)).astimezone()
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"deadline {text!r} is no time; write seconds (5400), a span (3h, 1h30m), a time of day (07:30) or a date "
            "and time (2026-11-23T07:30)"
        ) from None
    return moment if moment.tzinfo is not None else moment.astimezone()


def _span(text: str) -> float | None:
    """Seconds of "5400", "3h", "1h30m"; None where the text is no span."""
    if _SPAN.fullmatch(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if not math.isnan(seconds) else 0.0


def fixed(value: float | str | None) -> str | None:
    """`value`, a span or a time of day as from now, as a date and time with its zone."""
    return None if value is None else parse_deadline(value, datetime.now().astimezone()).isoformat()


@dataclass(frozen=True, slots=True)
class Deadline:
    """Wall-clock time: it is kept through a machine's sleep."""

    at: datetime | None
    """None: there is none."""

    @classmethod
    def of(cls, value: float | str | None) -> Deadline:
        return cls(None if value is None else parse_deadline(value, datetime.now().astimezone()))

    @property
    def left_s(self) -> float:
        """Seconds; 0 or less once it has passed, infinite where there is none."""
        return math.inf if self.at is None else self.at.timestamp() - time.time()

    def error(self) -> StoppedError:
        at = "none" if self.at is None else self.at.isoformat(sep=" ", timespec="seconds")
        return StoppedError(
            f"budget.deadline ({at}) has come: what was in work is finished and kept; run again with a later one"
        )

    def check(self) -> None:
        """StoppedError once it has passed."""
        if self.left_s <= 0:
            raise self.error()
