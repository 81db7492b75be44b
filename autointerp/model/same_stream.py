"""Tells, of a joined hookpoint, whether its parts are states of one residual stream or what modules add to it.

The outputs of several blocks are states of one stream: what is written at an earlier one stands in the later ones, too.
What several MLPs add to a stream are additions. It is tried by running the model, as in logit_path.py: vectors so long
that all else in the stream is nothing beside them are written at one part and looked for at the deepest one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.errors import InputError, NoProjection
from autointerp.model.hooks import Hookpoint, hooked
from autointerp.model.load import LoadedModel
from autointerp.model.logit_path import DIRECTIONS, LENGTH, USUAL_LENGTH, write_last

CARRIED = 0.99
"""The least cosine between what was written and what is found, if the one is carried to the other."""


@torch.inference_mode()
def deepest_state(loaded: LoadedModel, point: Hookpoint) -> Hookpoint | None:
    """The last part of a joined hookpoint that the model computes, if all other parts are earlier states of the same
    stream; None if they are not. Parts of a second model are left out. Raises NoProjection where some are and others are not, and InputError for a part that
    the model never computes."""
    order = _order(loaded, point)
    if len(order) == 1:
        return order[0]
    deepest, others = order[-1], order[:-1]
    carried = [part for part in others if _is_carried(loaded, part, deepest)]
    if not carried:
        return None
    if len(carried) < len(others):
        other = next(part for part in others if part not in carried)
        raise NoProjection(
            f"{carried[0]} and {deepest} are states of one residual stream, and {other} is something else; what a vector "
            "at all of them together means to the model is not clear"
        )
    return deepest


def _order(loaded: LoadedModel, point: Hookpoint) -> list[Hookpoint]:
    """The parts in the order in which the model computes them."""
    order: list[Hookpoint] = []

    def passed(part: Hookpoint) -> Callable[[Tensor], Tensor]:
        def note(held: Tensor) -> Tensor:
            order.append(part)
            return held

        return note

    _run(loaded, 1, [(part, passed(part)) for part in point.own_parts])
    missing = [part for part in point.own_parts if part not in order]
    if missing:
        raise InputError(f"hookpoint {missing[0]}: the model's forward pass never runs this module")
    return order


def _is_carried(loaded: LoadedModel, early: Hookpoint, late: Hookpoint) -> bool:
    found: list[Tensor] = []
    written: list[Tensor] = []
    length = LENGTH.get(loaded.dtype, USUAL_LENGTH)

    def write(held: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(DIRECTIONS, held.shape[-1], generator=generator) * length
        written.append(x.to(held.device, held.dtype).float())
        return write_last(held, x, loaded.model)

    def keep(held: Tensor) -> Tensor:
        found.append(held.reshape(DIRECTIONS, -1, held.shape[-1])[:, -1].float())
        return held

    _run(loaded, DIRECTIONS, [(early, write), (late, keep)])
    x, y = written[0], found[0].to(written[0].device)
    return x.shape == y.shape and bool((F.cosine_similarity(x, y, dim=1) > CARRIED).all())


def _run(loaded: LoadedModel, n: int, edits: list[tuple[Hookpoint, Callable[[Tensor], Tensor]]]) -> None:
    ids = torch.tensor([[1, 2]] * n, device=loaded.device)
    with ExitStack() as stack:
        for part, edit in edits:
            stack.enter_context(hooked(loaded.model, part, edit=edit))
        loaded.model(input_ids=ids, use_cache=False)
