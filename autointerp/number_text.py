"""Scores and shares as text, alike on every page."""

from __future__ import annotations


def decimals(value: float, sign: str = "", places: int = 2) -> str:
    """Two decimals, or as many as `places`, and never -0.00. `sign`: "+" also for what is not negative."""
    return f"{round(value, places) + 0.0:{sign}.{places}f}"


def interval(low: float | None, high: float | None, sign: str = "", places: int = 2) -> str:
    """` [0.29, 0.76]`; nothing where an end is not known."""
    if low is None or high is None:
        return ""
    return f" [{decimals(low, sign, places)}, {decimals(high, sign, places)}]"


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """`0.57 [0.29, 0.76]`; where only the lower end is known `at least 0.29`."""
    if value is None:
        return "not known" if low is None else f"at least {decimals(low)}"
    return decimals(value) + interval(low, high)


def percent(share: float) -> str:
    """Whole per cent, with one decimal below 1 %."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 0.95 or value == 0 else f"{value:.1f} %"
