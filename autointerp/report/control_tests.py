"""What the tests of a feature's label against its controls say, in words."""

from __future__ import annotations

from autointerp.report.page import FeaturePage
from autointerp.store.label_controls import LabelControl

_CONTROLS = {
    "token_lookup": "the list of its tokens",
    "neighbour_label": "the nearest feature's label",
    "empty": "no label at all",
    "shuffled": "a label drawn from features as dense",
    "shuffled_any_density": "a label drawn from all features",
}


def control_lines(page: FeaturePage) -> list[str]:
    """A line for each control of each of the shown label's scores:
    `better than the list of its tokens by 0.12 [0.05, 0.19]  (simulation_natural)`."""
    shown = page.label.explanation_id
    return [
        f"       {tested_in_words(one)}  ({one.scorer})" for one in page.label_controls if one.explanation_id == shown
    ]


def tested_in_words(one: LabelControl) -> str:
    control = _CONTROLS.get(one.control, one.control)
    interval = "" if one.ci_low is None else f" [{one.ci_low:.2f}, {one.ci_high:.2f}]"
    if one.beats is None:
        return f"not tested against {control}: too few documents, or it is not known how they move the scores"
    if one.beats:
        return f"better than {control} by {one.difference:.2f}{interval}"
    if one.loses:
        return f"worse than {control} by {-one.difference:.2f} {_turned(one)}".rstrip()
    return f"no better than {control}: {one.difference:+.2f}{interval}"


def _turned(one: LabelControl) -> str:
    """The interval of the control's score minus the label's."""
    return "" if one.ci_low is None or one.ci_high is None else f"[{-one.ci_high:.2f}, {-one.ci_low:.2f}]"
