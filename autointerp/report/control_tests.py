"""What the tests of a feature's label against its controls say, in words."""

from __future__ import annotations

from autointerp.jackknife import MIN_DOCUMENTS
from autointerp.number_text import decimals, interval
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
    `better than the list of its tokens by 0.12 [0.05, 0.19]  (simulation_natural)`. Controls that it was not tested
    against for one reason share a line."""
    of_label = [one for one in page.label_controls if one.explanation_id == page.label.explanation_id]
    untested: dict[tuple[str, str], list[str]] = {}
    for one in of_label:
        if one.beats is None:
            untested.setdefault((one.scorer, _why_untested(one)), []).append(_name(one))
    lines = [(tested_in_words(one), one.scorer) for one in of_label if one.beats is not None]
    lines += [(f"not tested against {' or '.join(names)}: {why}", scorer) for (scorer, why), names in untested.items()]
    return [f"       {line}  ({scorer})" for line, scorer in lines]


def tested_in_words(one: LabelControl) -> str:
    """`one` was tested: it has a verdict."""
    control, ends = _name(one), interval(one.ci_low, one.ci_high)
    if one.beats:
        return f"better than {control} by {decimals(one.difference)}{ends}"
    if one.loses:
        low, high = (None if end is None else -end for end in (one.ci_high, one.ci_low))
        return f"worse than {control} by {decimals(-one.difference)}{interval(low, high)}"
    return f"no better than {control}: {decimals(one.difference, '+')}{ends}"


def _name(one: LabelControl) -> str:
    return _CONTROLS.get(one.control, one.control)


def _why_untested(one: LabelControl) -> str:
    # Without documents no label would have a score, so none are counted where the store holds none of them.
    if not one.n_documents:
        return "the store does not hold how each document moves the scores"
    return f"its scores are on {one.n_documents} documents, and a test takes {MIN_DOCUMENTS}"
