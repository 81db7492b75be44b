"""Records the steps of counted work: what was done, of how much, and whether it reached its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class RecordedSteps:
    """A Counting (see autointerp/progress.py) that keeps the counts of each step."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}
        self.totals: dict[str, tuple[int, str]] = {}

    @contextmanager
    def __call__(self, doing: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        self.totals[doing] = total, unit
        self.counts[doing] = []
        yield self.counts[doing].append
        found = self.counts[doing]
        assert found == sorted(found) and found[-1] == total, (doing, found, total)
