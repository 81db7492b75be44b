"""Contexts drawn at random from wherever a feature is active, in groups by decile, strongest first.

Each decile holds a tenth of the feature's active places by definition, so a group of two stands for a fifth of them,
however few contexts of it there are to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

from autointerp.records import Context


@dataclass(frozen=True)
class Group:
    """Neighbouring deciles with contexts drawn from them."""

    highest: int
    lowest: int
    contexts: list[Context]

    @property
    def deciles(self) -> str:
        return str(self.highest) if self.highest == self.lowest else f"{self.highest} to {self.lowest}"

    @property
    def percent(self) -> int:
        """The share of the feature's active places that the group stands for."""
        return 10 * (self.highest - self.lowest + 1)


def groups(sampled: Sequence[Context], n: int) -> list[Group]:
    """`n` of the contexts (all, if there are fewer) in groups: the groups take turns, strongest first, and each gives
    its contexts in the order in which they were drawn. Two contexts a group where there is room for that many in five
    groups or in two. Groups without a context are left out."""
    width = 2 if n >= 10 else 5 if n >= 4 else 10
    found = [Group(high, high - width + 1, []) for high in range(9, -1, -width)]
    waiting = [[c for c in sampled if c.decile is not None and g.lowest <= c.decile <= g.highest] for g in found]
    turns = (pair for turn in zip_longest(*waiting) for pair in zip(found, turn, strict=True))
    for group, context in islice(((g, c) for g, c in turns if c is not None), n):
        group.contexts.append(context)
    return [group for group in found if group.contexts]
