"""From which activation on a label holds, in a sentence.

What a label claims is the same at every threshold, so precision is highest over all places in which the feature fires
and falls as the threshold rises. A label that is precise enough there holds everywhere, and the activation from which
on it holds only says where precision and recall balance best.
"""

from __future__ import annotations

from dataclasses import dataclass

from autointerp.number_text import percent, with_interval
from autointerp.records import Holding

_BY_OTHER_TEXT = {
    "nowhere": "though nowhere by the text that the activation is chosen on",
    "not_confirmed": "though the activation from which on it should do best by other text was not confirmed",
    "no_false_alarm": "but too few silent places were tried to tell from which activation on it does best",
}


@dataclass(frozen=True, slots=True)
class WholePrecision:
    """The precision of a label over all places in which its feature fires."""

    value: float | None
    """None where no false alarm was seen: then only the lower end is known."""
    low: float | None

    def reaches(self, floor: float | None) -> bool:
        known = self.low if self.value is None else self.value
        return floor is not None and known is not None and known >= floor


def holds_line(found: Holding, whole: WholePrecision | None = None) -> str | None:
    """None where it was not looked for. `whole`: None where it is not known."""
    wanted = f"precision {found.from_floor:.2f}" if found.from_floor is not None else "the precision asked for"
    holds_everywhere = whole is not None and whole.reaches(found.from_floor)
    if found.from_status is None:
        return None
    if found.label_from and holds_everywhere:
        return (
            f"holds {_where(found)}: {_numbers(found)}, weaker places counted as false; counted as true, it holds at "
            f"{wanted} wherever the feature fires"
        )
    if found.label_from is not None:
        return f"holds {_where(found)}: {_numbers(found)}"
    if holds_everywhere and found.from_status in _BY_OTHER_TEXT:
        return f"holds at {wanted} wherever the feature fires, {_BY_OTHER_TEXT[found.from_status]}"
    if found.from_status == "nowhere":
        return f"holds nowhere at {wanted}"
    if found.from_status == "no_better_than_chance":
        return (
            f"holds nowhere: it reaches a {wanted}, but so would a label that claims every place; it claims the places "
            "where the feature fires no more often than the others"
        )
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
    share = "" if found.from_share is None else f"the strongest {percent(found.from_share)} of places"
    mass = "" if found.from_mass is None else f", {percent(found.from_mass)} of the mass"
    return f"from {found.label_from:.3g}" + (f" ({share}{mass})" if share else "")


def _numbers(found: Holding) -> str:
    precision = with_interval(found.from_precision, found.from_precision_low, found.from_precision_high)
    recall = with_interval(found.from_recall, found.from_recall_low, found.from_recall_high)
    return f"precision {precision}, recall {recall}"
