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
from autointerp.score.scorer import Scorer
from autointerp.score.simulation import SIMULATION_SCORER
from autointerp.score.surprisal import SURPRISAL_SCORER

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
)


def scorers() -> tuple[Scorer[Any], ...]:
    """Every scorer there is. Raises InputError where an installed package's scorer cannot be used."""
    found = with_plugins(BUILT_IN, "scorers")
    for added in found[len(BUILT_IN) :]:
        for other in found:
            if other is not added and any(added.name.startswith(f"{name}_") for name in other.headlines):
                raise InputError(
                    f"an installed package has a scorer called {added.name!r}, but rows of that name are parts of the "
                    f"scorer {other.name!r}; it needs another name"
                )
    return found


def scorer_named(name: str) -> Scorer[Any]:
    """The scorer with a row of this name. Raises InputError where there is none, and names the nearest one."""
    found = scorers()
    for scorer in found:
        if name in scorer.headlines:
            return scorer
    names = [one for scorer in found for one in scorer.headlines]
    raise InputError(f"no scorer {name!r}; there are {', '.join(names)}.{nearest(name, names)}")


def configured(names: Sequence[str]) -> list[Scorer[Any]]:
    """The scorers that a configuration names, each once, in the order given; simulation where it names none."""
    chosen = [scorer_named(name) for name in names or (BUILT_IN[0].name,)]
    return [scorer for i, scorer in enumerate(chosen) if scorer not in chosen[:i]]
