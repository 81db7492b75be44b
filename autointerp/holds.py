"""From which activation on a label holds, in a sentence."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from autointerp.records import Holding

_NAMES = tuple(field.name for field in fields(Holding))


def holding_of(row: Any) -> Holding:
    """The part of a row of `scores` that says from where on the label holds. `row` has the fields of Holding."""
    return Holding(**{name: getattr(row, name) for name in _NAMES})


def holds_line(found: Holding) -> str | None:
    """None where it was not looked for."""
    wanted = f"precision {found.from_floor:.2f}" if found.from_floor is not None else "the precision asked for"
    if found.from_status is None:
        return None
    if found.label_from is not None:
        return f"holds {_where(found)}: {_numbers(found)}"
    if found.from_status == "nowhere":
        return f"holds nowhere at {wanted}"
    if found.from_status == "not_confirmed":
        return (
            f"holds nowhere at {wanted}: where it should hold by the text that the activation was chosen on, it has "
            f"{_numbers(found)} on other text"
        )
    why = {
        "no_false_alarm": f"no silent place was claimed, and too few were tried to tell a {wanted}",
        "few_contexts": "too few places where the feature fires were kept",
        "no_contexts": "no silent places were kept to try it on",
    }.get(found.from_status, found.from_status)
    return f"from which activation on it holds is not known: {why}"


def _where(found: Holding) -> str:
    if not found.label_from:
        return "wherever the feature fires"
    share = "" if found.from_share is None else f"the strongest {_percent(found.from_share)} of places"
    mass = "" if found.from_mass is None else f", {_percent(found.from_mass)} of the mass"
    return f"from {found.label_from:.3g}" + (f" ({share}{mass})" if share else "")


def _numbers(found: Holding) -> str:
    precision = _number(found.from_precision, found.from_precision_low, found.from_precision_high)
    recall = _number(found.from_recall, found.from_recall_low, found.from_recall_high)
    return f"precision {precision}, recall {recall}"


def _number(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "not known" if low is None else f"at least {low:.2f}"
    return f"{value:.2f}" + ("" if low is None or high is None else f" [{low:.2f}, {high:.2f}]")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
