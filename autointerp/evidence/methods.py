"""The evidence methods there are, in the order in which they are run: the cheap ones first."""

from __future__ import annotations

from collections.abc import Iterable

from autointerp.errors import InputError, nearest
from autointerp.evidence.jacobian_lens import JacobianLens
from autointerp.evidence.method import Method
from autointerp.evidence.mutual_information import MutualInformation
from autointerp.evidence.neighbours import Neighbours
from autointerp.evidence.output_statistic import OutputStatistic
from autointerp.evidence.pruning import Pruning
from autointerp.evidence.shape import Shape
from autointerp.evidence.token_change import TokenChange
from autointerp.evidence.words import Words
from autointerp.plugins import with_plugins

BUILT_IN: tuple[Method, ...] = (
    Shape(), Words(), Neighbours(), OutputStatistic(), MutualInformation(), JacobianLens(), Pruning(), TokenChange(),
)  # fmt: skip


def methods() -> tuple[Method, ...]:
    """The built-in methods, then those of installed packages. Raises InputError where one of these is not fit."""
    return with_plugins(BUILT_IN, "methods")


def check_methods(names: Iterable[str]) -> list[Method]:
    """The named methods in the order in which they are run. Raises InputError for a name without a method."""
    known = {method.name: method for method in methods()}
    wanted = list(names)
    for name in wanted:
        if name not in known:
            raise InputError(f"no method {name!r}; there are {', '.join(known)}.{nearest(name, known)}")
    return [method for name, method in known.items() if name in wanted]
