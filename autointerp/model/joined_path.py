"""Finds how a vector at a hookpoint reaches the logits, also where the hookpoint is joined.

A part whose vectors stand in a later part is an earlier state of it, and is not followed: of a crosscoder of block
outputs the last one alone is, since the model goes on with it. All others are added to the stream (a cross-layer
transcoder's outputs are): each is carried into it, and the sum is followed. Parts of a second model are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autointerp.errors import NoProjection
from autointerp.model.hooks import Hookpoint, part_columns
from autointerp.model.load import LoadedModel
from autointerp.model.logit_path import LogitPath, find_logit_path
from autointerp.model.same_stream import carried_into

_LINEAR = 1e-3
"""By how much a carried vector of twice the length may differ from twice the carried vector, as a share of it."""


@dataclass(frozen=True, slots=True)
class JoinedLogitPath(LogitPath):
    """The way of the vectors at a joined hookpoint; `width` is that of all its parts together."""

    branches: tuple[tuple[tuple[int, int], LogitPath], ...] = ()
    """The columns of each part that is followed, and its own way."""

    @torch.no_grad()
    def in_stream(self, directions: Tensor) -> Tensor:
        parts = [path.in_stream(directions[:, begin:end]) for (begin, end), path in self.branches]
        return torch.stack([part.to(parts[0].device) for part in parts]).sum(0)

    def __str__(self) -> str:
        first = LogitPath.__str__(self)
        return first if len(self.branches) == 1 else f"{first} (the sum of {len(self.branches)} parts)"


def find_path(loaded: LoadedModel, point: Hookpoint) -> LogitPath:
    """The way of the vectors at `point` to the logits. Raises the errors of `find_logit_path`, and NoProjection where
    the parts of a joined hookpoint do not reach the logits in one way."""
    if not point.own_parts:
        raise NoProjection(f"{point} is one of the second model, and the tokens promoted are those of the first")
    if not point.others:
        return find_logit_path(loaded, point)
    columns = dict(zip(point.parts, part_columns(loaded, point), strict=True))
    carried = carried_into(loaded, point)
    followed = [part for part in point.own_parts if not carried[part]]
    branches = tuple((columns[part], find_logit_path(loaded, part)) for part in followed)
    first = branches[0][1]
    for part, (_, path) in zip(followed, branches, strict=True):
        if path.tail != first.tail or abs(path.scale - first.scale) > _LINEAR * first.scale:
            raise NoProjection(f"{part} and {followed[0]} reach the logits in different ways ({path}; {first})")
        if len(followed) > 1 and not _is_linear(path):
            raise NoProjection(
                f"{path.names[0]}, which reads {part}, changes the length of a vector, so what the parts of {point} "
                "add up to is not known; a hookpoint behind it can be followed"
            )
    width = max(end for _, end in columns.values())
    names = tuple(dict.fromkeys(name for _, path in branches for name in path.names))
    carry = tuple(module for _, path in branches for module in path.carry)
    return JoinedLogitPath(carry, first.tail, first.head, first.scale, width, first.dtype, names, branches)


def _is_linear(path: LogitPath) -> bool:
    if not path.carry:
        return True
    x = torch.randn(4, path.width, generator=torch.Generator().manual_seed(0))
    once, twice = path.in_stream(x), path.in_stream(2 * x)
    return bool(((twice - 2 * once).norm(dim=1) <= _LINEAR * 10 * once.norm(dim=1)).all())
