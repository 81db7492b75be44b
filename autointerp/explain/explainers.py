"""The explainers there are: the program's own, and those of other installed packages."""

from __future__ import annotations

from autointerp.explain.best_of_n import BestOfN
from autointerp.explain.concat import Concat
from autointerp.explain.explainer import Explainer, named
from autointerp.explain.one_call import ONE_CALL
from autointerp.explain.revise import Revise
from autointerp.explain.rule_explainers import RULES
from autointerp.plugins import with_plugins

BUILT_IN: tuple[Explainer, ...] = (*RULES, *ONE_CALL, Concat(), BestOfN(), Revise())


def explainers() -> tuple[Explainer, ...]:
    """All explainers. Raises InputError where an installed package brings one that cannot be used."""
    return with_plugins(BUILT_IN, "explainers")


def explainer_named(name: str) -> Explainer:
    """Raises InputError, with the nearest name, where there is no such explainer."""
    return named(explainers(), name)
