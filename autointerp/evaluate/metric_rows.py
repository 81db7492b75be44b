"""One number that an evaluation measured, as a plain dict to be stored, printed or put into a report."""

from __future__ import annotations

from typing import TypedDict

from autointerp.stats import Estimate


class MetricRow(TypedDict):
    metric: str
    value: float | None
    """None where the number could not be computed; `note` then says why."""
    split: str | None
    """The split; None for all splits together."""
    ci_low: float | None
    """Lower end of the 95 % interval; None, like the upper end, where there is no interval."""
    ci_high: float | None
    n_tokens: int | None
    """Tokens that the model read for this number; None where it read none."""
    n: int | None
    """How many `unit`s the number was counted or averaged over."""
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
    """A row for a number, or for an Estimate with its interval. Without `n`, the Estimate's own n is used."""
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
