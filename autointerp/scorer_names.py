"""The names in `scores.scorer`: which say how good a label is, which are parts of another, and which comes first."""

from __future__ import annotations

from collections.abc import Iterable

NATURAL = "simulation_natural"
"""How well a label predicts text as it comes: what stands for a label in the place of `simulation`."""
MIXTURES = ("simulation", "simulation_random", "simulation_calibrated")
"""Correlations over a mixture of contexts, far higher than on text as it comes: for ranking and comparison alone."""
HEADLINE_SCORERS = (
    NATURAL, *MIXTURES, "detection", "fuzzing", "embedding", "surprisal", "generation", "output", "intervention",
    "intruder", "rule_agreement",
)  # fmt: skip
"""The names that say how good a label is, in the order in which they are shown. A row whose name begins with one of
them and an underscore is a part of it: "detection_sensitivity". The scorers of other packages come after these, by
their name. The view `explainer_leaderboard` lists the same names."""


def headline_of(scorer: str, among: Iterable[str] = ()) -> str:
    """The scorer that a row is a part of, "detection" for "detection_sensitivity"; itself where it is no part.

    `among`: the names of all rows at hand, by which parts of other packages' scorers are known.
    """
    if scorer in HEADLINE_SCORERS:
        return scorer
    known = [name for name in HEADLINE_SCORERS if scorer.startswith(f"{name}_")]
    if known:
        return max(known, key=len)
    return min((name for name in among if scorer.startswith(f"{name}_")), key=len, default=scorer)


def headlines_among(scorers: Iterable[str]) -> list[str]:
    """Those of the names, each given once, that are no part of another."""
    names = list(scorers)
    return [name for name in names if headline_of(name, names) == name]


def scorer_place(scorer: str) -> tuple[int, bool, str]:
    """Orders values of `scores.scorer` as HEADLINE_SCORERS, each with its parts after it, so that the honest figure
    comes first; after them the scorers of other packages."""
    headline = headline_of(scorer)
    known = HEADLINE_SCORERS.index(headline) if headline in HEADLINE_SCORERS else len(HEADLINE_SCORERS)
    return known, headline in HEADLINE_SCORERS and scorer != headline, scorer
