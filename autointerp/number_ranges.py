"""The values that each number of the configuration may have, as part of its type."""

from __future__ import annotations

import functools
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from autointerp.errors import InputError, shown


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a number may have, both ends included. It is part of the field's type, and every number has one:
    without an upper end, a slip of the pen would end as an overflow hours later."""

    low: float
    high: float

    def check(self, value: float | None, key: str) -> None:
        """Raises InputError, with the key, the value and the range. None passes: the type says whether it may be."""
        if value is not None and not self.low <= value <= self.high:  # nan is in no range
            raise InputError(f"{key} must lie in {_number(self.low)}..{_number(self.high)}, not {shown(value)}")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


Count = Annotated[int, Range(1, 10**9)]
CountOrNone = Annotated[int, Range(0, 10**9)]
"""A count of which there may be none."""
Few = Annotated[int, Range(1, 10**4)]
"""A count of what is kept or shown for each feature."""
FewOrNone = Annotated[int, Range(0, 10**4)]
LargeCount = Annotated[int, Range(1, 10**15)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(1e-6, 1)]
Seconds = Annotated[float, Range(0.001, 10**6)]
Price = Annotated[float, Range(0, 10**9)]


@functools.cache
def ranges(kind: type) -> dict[str, Range]:
    """The range of every number of a config dataclass, by field name."""
    found: dict[str, Range] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        for part in (hint, *typing.get_args(hint)):
            for mark in getattr(part, "__metadata__", ()):
                if isinstance(mark, Range):
                    found[name] = mark
    return found


def check_ranges(config: Any, section: str = "") -> None:
    """Raises InputError for the first number of a config dataclass that is out of its range. `section`: its table in
    the file; by default that of its name."""
    section = section or type(config).__name__.removesuffix("Config").lower()
    for name, allowed in ranges(config.__class__).items():
        allowed.check(getattr(config, name), f"{section}.{name}")
