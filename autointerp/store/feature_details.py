"""What the pages of other tools show of a feature: counts, label, promoted tokens and contexts, of many features at
once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autointerp.records import Context, PromotedToken
from autointerp.store.named_rows import select_list
from autointerp.store.store import Store

AT_ONCE = 128
"""Features that are read by one query: their contexts are held in memory."""


@dataclass(frozen=True, slots=True)
class ShownFeature:
    """The counts of one feature and its label, from the table `features` and the view `labels`."""

    feature: int
    status: str
    """live, rare, dead or no_heldout."""
    token_density: float
    """Share of tokens on which it fires."""
    max_activation: float
    """Raw units; 0 where it is dead."""
    histogram_edges: list[float] | None
    histogram_counts: list[int] | None
    label: str | None
    second_label: str | None
    explanation_status: str | None
    """None where the feature was not explained."""
    explainer: str | None
    scorer: str | None
    score: float | None
    ci_low: float | None
    ci_high: float | None
    label_from: float | None
    """The activation from which on the label holds, raw units."""


@dataclass(frozen=True, slots=True)
class FeatureDetail:
    """One feature with all that a page of another tool shows."""

    shown: ShownFeature
    tokens: list[PromotedToken]
    """Promoted, then suppressed ones, the strongest first."""
    top: list[Context]
    """The strongest contexts of the explain split, which the label was made from."""
    held_out: list[Context]
    """The strongest contexts of the report split."""
    drawn: list[Context]
    """Contexts of the report split that were drawn from all places in which the feature fires."""


_LABEL = "label, second_label, explanation_status, explainer, scorer, score, ci_low, ci_high, label_from"
_SHOWN = f"""
    SELECT {select_list(ShownFeature, "", feature="f.feature", status="f.status")}
    FROM (SELECT * FROM features WHERE dictionary_id = $1 AND feature BETWEEN $2 AND $3
          AND feature IN (SELECT unnest($4::INTEGER[]))) AS f
    LEFT JOIN (SELECT feature, {_LABEL} FROM labels WHERE dictionary_id = $1 AND feature BETWEEN $2 AND $3) AS l
        ON l.feature = f.feature
    ORDER BY f.feature
"""


def feature_details(
    store: Store, dictionary_id: int, features: Sequence[int], contexts: int
) -> Iterator[FeatureDetail]:
    """The details of these features in ascending order, with up to `contexts` of the strongest contexts of either
    split. Features that the store does not hold are left out."""
    wanted = sorted(set(features))
    harvest_id = store.current_harvest(dictionary_id)
    if harvest_id is None:
        return
    kinds = {"top": contexts, "sampled": None if contexts else 0}
    for begin in range(0, len(wanted), AT_ONCE):
        some = wanted[begin : begin + AT_ONCE]
        shown = store.records(ShownFeature, _SHOWN, [dictionary_id, some[0], some[-1], some])
        tokens = store.projected_tokens(dictionary_id, some)
        explain = store.contexts_of(dictionary_id, harvest_id, some, "explain", {"top": contexts})
        report = store.contexts_of(dictionary_id, harvest_id, some, "report", kinds)
        for one in shown:
            held_out = report[one.feature]
            yield FeatureDetail(
                one,
                tokens[one.feature],
                explain[one.feature],
                [context for context in held_out if context.kind == "top"],
                [context for context in held_out if context.kind == "sampled"],
            )
