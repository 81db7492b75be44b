"""One measured number of an evaluation, as a plain dict that can be stored, printed or put into a report."""

from __future__ import annotations

from typing import TypedDict

from autointerp.stats import Estimate


class MetricRow(TypedDict):
    metric: str
    value: float | None
    """None where the number could not be had; `note` says why."""
    split: str | None
    """None: all there is."""
    ci_low: float | None
    """Ends of the 95 % interval; None where there is none."""
    ci_high: float | None
    n_tokens: int | None
    """Tokens the model read for this number; None where it read none."""
    n: int | None
    """What the number was counted or averaged over, in `unit`s."""
    unit: str
    note: str


def metric_row(
    metric: str,
    value: float | Estimate | None,
    *,
    split: str | None = None,
    n: int | None = None,
    unit: str = "",
    n_tokens: int | None = None,
    note: str = "",
) -> MetricRow:
    """A row of a number, or of an Estimate with its interval (whose n counts where `n` is not given)."""
    estimate = value if isinstance(value, Estimate) else Estimate(value, None, None, n or 0)
    return MetricRow(
        metric=metric,
        value=estimate.value,
        split=split,
        ci_low=estimate.low,
        ci_high=estimate.high,
        n_tokens=n_tokens,
        n=estimate.n if n is None and isinstance(value, Estimate) else n,
        unit=unit,
        note=note,
    )
