"""How far a dictionary's labels score above those of its controls: other dictionaries, in which a part of what the
dictionary has learned was never learned (see dictionary_controls.py).

Features of two dictionaries are no pairs, so the difference of the means has Welch's interval, by features. A feature
without a label has no score. So there are two means: over the features that have one, and over all that the explainer
was asked about, where a feature without a label counts 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autointerp.dictionary_controls import DICTIONARY_CONTROLS, control_name
from autointerp.means import mean_difference
from autointerp.number_text import decimals, interval
from autointerp.report.record_table import RowsFormat, print_records
from autointerp.store.headline_scores import Headline, HeadlineScores, headline_of_dictionary, headline_scores
from autointerp.store.safety.reading import open_for_reading
from autointerp.store.store import Store
from autointerp.terminal import Terminal


@dataclass(frozen=True, slots=True)
class ControlLift:
    """A dictionary's headline score beside that of one of its controls. Intervals are of 95 %. Names that end in `_0`
    are of the means in which a feature without a label counts 0."""

    dictionary: str
    control: str
    explainer: str
    scorer: str
    mean: float | None
    control_mean: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    mean_0: float | None
    control_mean_0: float | None
    difference_0: float | None
    ci_low_0: float | None
    ci_high_0: float | None
    n_scored: int
    n_labelled: int
    n_unlabelled: int
    n_pending: int
    n_dead: int
    control_n_scored: int
    control_n_labelled: int
    control_n_unlabelled: int
    control_n_pending: int
    control_n_dead: int
    note: str
    """Why the two are not quite comparable; "" where nothing is known of that."""


def control_lifts(store: Store, dictionary: str | None = None) -> list[ControlLift]:
    """The lift of every dictionary, or of the named one, over each of its controls that the store holds."""
    held = {row.name: row for row in store.dictionaries()}
    found = []
    for name, row in held.items():
        controls = [control for control in DICTIONARY_CONTROLS if control_name(name, control) in held]
        if not controls or dictionary not in (None, name):
            continue
        headline = headline_of_dictionary(store, row.dictionary_id)
        if headline is None:
            continue
        own = headline_scores(store, row.dictionary_id, headline)
        for control in controls:
            other = held[control_name(name, control)]
            theirs = headline_scores(store, other.dictionary_id, headline)
            found.append(_lift(name, control, headline, own, theirs))
    return found


def _lift(name: str, control: str, headline: Headline, own: HeadlineScores, theirs: HeadlineScores) -> ControlLift:
    over, over_0 = mean_difference(own.scores, theirs.scores), mean_difference(own.with_zeros, theirs.with_zeros)
    return ControlLift(
        dictionary=name, control=control, explainer=headline.explainer, scorer=headline.scorer,
        mean=_mean(own.scores), control_mean=_mean(theirs.scores),
        difference=over.value, ci_low=over.low, ci_high=over.high,
        mean_0=_mean(own.with_zeros), control_mean_0=_mean(theirs.with_zeros),
        difference_0=over_0.value, ci_low_0=over_0.low, ci_high_0=over_0.high,
        n_scored=len(own.scores), n_labelled=own.n_labelled, n_unlabelled=own.n_unlabelled, n_pending=own.n_pending,
        n_dead=own.n_dead, control_n_scored=len(theirs.scores), control_n_labelled=theirs.n_labelled,
        control_n_unlabelled=theirs.n_unlabelled, control_n_pending=theirs.n_pending, control_n_dead=theirs.n_dead,
        note=_note(own, theirs),
    )  # fmt: skip


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _note(own: HeadlineScores, theirs: HeadlineScores) -> str:
    """What differs in how the two were labelled and scored."""
    told = []
    for what, ours, others in (("labelled", own.models, theirs.models), ("scored", own.methods, theirs.methods)):
        if ours and others and not ours & others:
            told.append(f"{what} by {', '.join(sorted(ours))} and the control by {', '.join(sorted(others))}")
    return "; ".join(told)


# --- printing --------------------------------------------------------------------------------------------------------


def lift_line(lift: ControlLift) -> str:
    """The lift over one control on one line."""
    what = f"{lift.dictionary} over {lift.control}, {lift.scorer} of labels by {lift.explainer}"
    own = _side(lift.mean, lift.n_scored, lift.n_labelled, lift.n_unlabelled, lift.n_pending, lift.n_dead)
    theirs = _side(
        lift.control_mean, lift.control_n_scored, lift.control_n_labelled, lift.control_n_unlabelled,
        lift.control_n_pending, lift.control_n_dead,
    )  # fmt: skip
    text = f"{what}: {own} against {theirs}"
    if lift.difference is not None:
        text += f": {_change(lift.difference, lift.ci_low, lift.ci_high)}"
    if lift.mean_0 is not None and lift.control_mean_0 is not None and lift.difference_0 is not None:
        change = _change(lift.difference_0, lift.ci_low_0, lift.ci_high_0)
        text += f"; with 0 for features without a label {lift.mean_0:.3f} against {lift.control_mean_0:.3f}: {change}"
    return f"{text} ({lift.note})" if lift.note else text


def _side(mean: float | None, n_scored: int, n_labelled: int, n_unlabelled: int, n_pending: int, n_dead: int) -> str:
    """One dictionary's mean and what its features came to."""
    asked = n_labelled + n_unlabelled
    if not asked:
        return f"nothing labelled ({n_pending:,} features wait, {n_dead:,} are dead)"
    parts = [
        "no score" if mean is None else f"{mean:.3f}",
        f"{n_labelled:,} of {asked:,} features labelled ({n_labelled / asked:.0%})",
    ]
    others = {"labels without a score": n_labelled - n_scored, "features not labelled yet": n_pending, "dead": n_dead}
    return ", ".join([*parts, *(f"{n:,} {what}" for what, n in others.items() if n)])


def _change(difference: float, low: float | None, high: float | None) -> str:
    return decimals(difference, "+", 3) + interval(low, high, "+", 3)


def print_lifts(path: Path, dictionary: str | None, terminal: Terminal) -> None:
    """Prints a line for every control of the dictionary, or of all in the store."""
    with open_for_reading(path, terminal.say) as store:
        lifts = control_lifts(store, dictionary)
    for lift in lifts:
        terminal.result(lift_line(lift))
    if not lifts:
        terminal.say("no lift over a control yet: no label of the dictionary was scored")


def print_lift_table(path: Path, dictionary: str | None, form: RowsFormat, terminal: Terminal) -> None:
    """Prints the lifts with all their numbers."""
    with open_for_reading(path, terminal.say) as store:
        if dictionary is not None:
            store.dictionary(dictionary)
        lifts = control_lifts(store, dictionary)
    print_records(ControlLift, lifts, form, terminal)
    if not lifts:
        terminal.say(
            "nothing to compare: no dictionary here has a scored label and a control; `autointerp run --control "
            f"NAME` makes one ({', '.join(DICTIONARY_CONTROLS)})"
        )
