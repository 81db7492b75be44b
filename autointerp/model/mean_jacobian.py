"""The mean Jacobian of a part of the model: how far a small change of the vectors at one hookpoint changes those at a
later one.

    J_p = sum over positions p' >= p of  d y_p' / d x_p        effects = "later"
    J_p =                                d y_p  / d x_p        effects = "same"

x are the vectors at the earlier hookpoint, y those at the later one, and J is the mean of J_p over positions and
prompts. "later" is how the Jacobian lens is defined (Gurnee, Sofroniew, Lindsey et al. 2026): a direction counts by all
that it does to the text after it, through attention too. The first SKIPPED positions take part in neither sum: much
attention goes to them, whatever stands there. Nor does the last one.

One backward pass gives one row of J_p, summed over p, for all prompts of a batch: the gradient of coordinate i of y,
added up over positions. For "same" each position is added with a random sign, and the gradient there multiplied by
that sign. What comes from other positions then has a mean of zero, so J is right on average, and its noise falls with
the number of positions and prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Literal

import torch
from torch import Tensor

from autointerp.errors import InputError, NoProjection
from autointerp.model.hooks import Hookpoint, hooked, model_inputs
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import is_out_of_memory

SKIPPED = 16
SHORTEST_PROMPT = SKIPPED + 2
"""Tokens of a prompt that has one position that counts."""

Effects = Literal["later", "same"]


def mean_jacobian(
    loaded: LoadedModel,
    earlier: Hookpoint,
    later: Hookpoint,
    ids: Tensor,
    rows: Sequence[int],
    effects: Effects,
    generator: torch.Generator,
    on_row: Callable[[], None] = lambda: None,
) -> Tensor:
    """The given rows, which are coordinates at `later`: float32 [len(rows), width at `earlier`] on CPU, the mean over
    the prompts `ids` [P, T], none of them padded. `generator` (on CPU) draws the signs for "same". `on_row` is called
    after each row.

    Raises InputError where a hookpoint is never run, and NoProjection where the later one does not depend on the
    earlier one, or the model cannot be differentiated in between. What runs out of memory raises PyTorch's error.
    """
    if ids.shape[1] < SHORTEST_PROMPT:
        raise InputError(f"a prompt of {ids.shape[1]} tokens is too short for a Jacobian: it takes {SHORTEST_PROMPT}")
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _rows(loaded, earlier, later, ids, rows, effects, generator, on_row)
    except RuntimeError as error:  # the code of any architecture runs here, and some of it has no derivative
        if is_out_of_memory(error):
            raise
        raise NoProjection(
            f"{type(loaded.model).__name__} cannot be differentiated from {earlier} to {later}: "
            f"{(str(error).strip().splitlines() or [''])[0]}"
        ) from error


def _rows(
    loaded: LoadedModel, earlier: Hookpoint, later: Hookpoint, ids: Tensor, rows: Sequence[int], effects: Effects,
    generator: torch.Generator, on_row: Callable[[], None],
) -> Tensor:  # fmt: skip
    x, y = _run(loaded, earlier, later, ids)
    n_prompts, n_tokens = ids.shape
    counted = slice(SKIPPED, n_tokens - 1)
    signs = torch.ones(n_prompts, n_tokens - 1 - SKIPPED)
    jacobian = torch.zeros(len(rows), x.shape[-1])
    weights = torch.zeros(n_prompts, n_tokens, y.shape[-1], dtype=y.dtype, device=y.device)
    for i, row in enumerate(rows):
        if effects == "same":
            signs = torch.randint(2, signs.shape, generator=generator).float() * 2 - 1
        weights.zero_()
        weights[:, counted, row] = signs.to(weights)
        (gradient,) = torch.autograd.grad(y, x, weights.view(y.shape), retain_graph=i + 1 < len(rows))
        found = gradient.reshape(n_prompts, n_tokens, -1)[:, counted].float()
        jacobian[i] = (found * signs.to(found)[..., None]).mean((0, 1)).cpu()
        on_row()
    return jacobian


def _run(loaded: LoadedModel, earlier: Hookpoint, later: Hookpoint, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What is at the two hookpoints, the later depending on the earlier in autograd's graph."""
    begun: list[Tensor] = []
    reached: list[Tensor] = []

    def begin(held: Tensor) -> Tensor:
        if begun:  # a module that is called again later on, which is part of what is between
            return held
        begun.append(held.detach().clone().requires_grad_())
        return begun[0] * 1  # the model may write into what it gets, but not into a leaf

    with ExitStack() as stack:
        stack.enter_context(hooked(loaded.model, earlier, edit=begin))
        stack.enter_context(hooked(loaded.model, later, capture=reached, stop=True))
        loaded.model(**model_inputs(loaded, ids, None))
    if not begun or not reached:
        raise InputError(f"the model's forward pass does not run {earlier} and then {later}")
    for point, held in ((earlier, begun[0]), (later, reached[0])):
        if held.numel() % ids.numel():
            raise InputError(f"hookpoint {point} carries {tuple(held.shape)}, not one vector for each token")
    if reached[0].grad_fn is None:
        raise NoProjection(f"{later} does not depend on what {earlier} holds")
    return begun[0], reached[0]
