"""Tells which parts of a joined hookpoint are later states of the residual stream that others write into.

The outputs of several blocks are states of one stream: what is written at an earlier one stands in the later ones, too.
What several MLPs write is added to the stream, and does not stand in what a later MLP writes. It is tried by running
the model, as in logit_path.py: vectors so long that all else in the stream is nothing beside them are written at one
part and looked for at the others.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.errors import InputError
from autointerp.model.hooks import Hookpoint, hooked
from autointerp.model.load import LoadedModel
from autointerp.model.logit_path import DIRECTIONS, LENGTH, USUAL_LENGTH, write_last

CARRIED = 0.99
"""The least cosine between what was written and what is found, if the one is carried to the other."""
Visit = Callable[[Tensor], Tensor]


@torch.inference_mode()
def carried_into(loaded: LoadedModel, point: Hookpoint) -> dict[Hookpoint, tuple[Hookpoint, ...]]:
    """The parts of a joined hookpoint, in the order in which the model computes them, and for each the later parts in
    which its vectors stand. Parts of a second model are left out. Raises InputError for a part that the model never
    computes, and NoProjection where one holds no single vector for each token."""
    order = _order(loaded, point)
    return {part: _found_in(loaded, part, order[place + 1 :]) for place, part in enumerate(order)}


def _order(loaded: LoadedModel, point: Hookpoint) -> list[Hookpoint]:
    order: list[Hookpoint] = []

    def passed(part: Hookpoint) -> Visit:
        def note(held: Tensor) -> Tensor:
            order.append(part)
            return held

        return note

    _run(loaded, 1, [(part, passed(part)) for part in point.own_parts])
    missing = [part for part in point.own_parts if part not in order]
    if missing:
        raise InputError(f"hookpoint {missing[0]}: the model's forward pass never runs this module")
    return list(dict.fromkeys(order))


def _found_in(loaded: LoadedModel, early: Hookpoint, later: list[Hookpoint]) -> tuple[Hookpoint, ...]:
    if not later:
        return ()
    written: list[Tensor] = []
    found: dict[Hookpoint, Tensor] = {}

    def write(held: Tensor) -> Tensor:
        x = torch.randn(DIRECTIONS, held.shape[-1], generator=torch.Generator().manual_seed(0))
        x *= LENGTH.get(loaded.dtype, USUAL_LENGTH)
        written.append(x)
        return write_last(held, x, loaded.model)

    def keep(part: Hookpoint) -> Visit:
        def copy(held: Tensor) -> Tensor:
            found[part] = held.reshape(DIRECTIONS, -1, held.shape[-1])[:, -1].float().cpu().clone()
            return held

        return copy

    _run(loaded, DIRECTIONS, [(early, write), *((part, keep(part)) for part in later)])
    x = written[0]
    alike = (part for part in later if found[part].shape == x.shape)
    return tuple(part for part in alike if bool((F.cosine_similarity(x, found[part], dim=1) > CARRIED).all()))


def _run(loaded: LoadedModel, n: int, visits: list[tuple[Hookpoint, Visit]]) -> None:
    ids = torch.tensor([[1, 2]] * n, device=loaded.device)
    with ExitStack() as stack:
        for part, visit in visits:
            stack.enter_context(hooked(loaded.model, part, edit=visit))
        loaded.model(input_ids=ids, use_cache=False)
