"""All scorers: those of this program, and those that installed packages add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autointerp.errors import InputError, nearest
from autointerp.plugins import with_plugins
from autointerp.score.detection_fuzzing import DETECTION_SCORER, FUZZING_SCORER
from autointerp.score.embedding import EMBEDDING_SCORER
from autointerp.score.generation import GENERATION_SCORER
from autointerp.score.intervention import INTERVENTION_SCORER
from autointerp.score.intruder import INTRUDER_SCORER
from autointerp.score.output import OUTPUT_SCORER
from autointerp.score.rule_agreement import RULE_AGREEMENT_SCORER
from autointerp.score.scorer import Scorer
from autointerp.score.simulation import SIMULATION_SCORER
from autointerp.score.surprisal import SURPRISAL_SCORER
from autointerp.scorer_names import HEADLINE_SCORERS

BUILT_IN: tuple[Scorer[Any], ...] = (
    SIMULATION_SCORER,
    DETECTION_SCORER,
    FUZZING_SCORER,
    INTRUDER_SCORER,
    EMBEDDING_SCORER,
    SURPRISAL_SCORER,
    GENERATION_SCORER,
    OUTPUT_SCORER,
    INTERVENTION_SCORER,
    RULE_AGREEMENT_SCORER,
)


def scorers() -> tuple[Scorer[Any], ...]:
    """Every scorer there is. Raises InputError where an installed package's scorer cannot be used."""
    found = with_plugins(BUILT_IN, "scorers")
    for one in found:
        for other in found:
            if one.name.startswith(f"{other.name}_"):
                raise InputError(
                    f"an installed package has a scorer called {one.name!r}, but rows of that name are parts of the "
                    f"scorer {other.name!r}; one of them needs another name"
                )
    return found


def scorer_named(name: str) -> Scorer[Any]:
    """The scorer called `name`, or the one that has `name` as a headline row: simulation for simulation_calibrated.
    Otherwise raises InputError, which names the nearest one."""
    found = {scorer.name: scorer for scorer in scorers()}
    for known in HEADLINE_SCORERS:
        whole = next((scorer for scorer in BUILT_IN if known.startswith(f"{scorer.name}_")), None)
        if whole is not None:
            found[known] = whole
    if name not in found:
        raise InputError(f"no scorer {name!r}; there are {', '.join(found)}.{nearest(name, tuple(found))}")
    return found[name]


def configured(names: Sequence[str]) -> list[Scorer[Any]]:
    """The scorers that a configuration names, each once, in the order given; simulation where it names none."""
    return list({scorer.name: scorer for scorer in map(scorer_named, names or (SIMULATION_SCORER.name,))}.values())
