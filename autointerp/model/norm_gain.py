"""The gain of the norm whose output a hookpoint holds: what it multiplies, and adds, after it has normalised.

Dictionaries of a norm's output were trained before its gain or after it, and their files rarely say which. The norm is
found by running the model, and its gain by comparing what it returns with what a norm of those weights would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from autointerp.model.hooks import Hookpoint, no_second_model
from autointerp.model.load import LoadedModel
from autointerp.model.module_calls import ModuleCall, calls_before

_SMALLEST = 1e-12
_TRIED = 6
"""Tokens on which it is looked."""


@dataclass(frozen=True, slots=True)
class Gain:
    """A norm multiplies what it has normalised by `factor` [d] and adds `offset` [d]."""

    factor: Tensor
    offset: Tensor

    @property
    def inverse(self) -> Gain:
        return Gain(1 / self.factor, -self.offset / self.factor)


@torch.no_grad()
def norm_gain(loaded: LoadedModel, point: Hookpoint) -> Gain | None:
    """The gain, float32, of the norm whose output `point` holds. None where it holds no norm's output, or that of a
    norm whose gain changes nothing or, with a factor of 0, cannot be undone, or where it is joined. Raises InputError
    where it is one of a second model, which is not there."""
    if point.others:
        return None
    if point.of_other:
        if loaded.other is None:
            raise no_second_model(point)
        loaded, point = loaded.other, replace(point, of_other=False)
    rows = loaded.model.get_input_embeddings().weight
    ids = torch.arange(min(_TRIED, len(rows)), device=loaded.device)[:, None]  # type: ignore[arg-type]
    calls, held = calls_before(loaded.model, point, ids)
    for call in reversed(calls):
        y = call.returned_values
        if call.is_leaf and (y.shape, y.device) == (held.shape, held.device) and torch.equal(y, held):
            return _gain_of(call, 1e-3 if loaded.dtype == torch.float32 else 3e-2)
    return None


def _gain_of(call: ModuleCall, tolerance: float) -> Gain | None:
    x, y = call.read_values, call.returned_values
    if x.shape != y.shape:
        return None
    for gain in _gains(call.module, x):
        for centred in (x, x - x.mean(-1, keepdim=True)):
            size = (centred.square().mean(-1, keepdim=True) + _epsilon(call.module)).sqrt()
            made = centred / size * gain.factor + gain.offset
            if (made - y).abs().amax() <= tolerance * y.abs().amax():
                neutral = bool((gain.factor == 1).all()) and not bool(gain.offset.any())
                return None if neutral or bool((gain.factor.abs() < _SMALLEST).any()) else gain
    return None


def _gains(norm: nn.Module, x: Tensor) -> Iterator[Gain]:
    """What the norm's weights may mean: Gemma's norms multiply by 1 + weight."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if not isinstance(weight, Tensor) or weight.shape != x.shape[-1:]:
        return
    factor = weight.detach().to(x)
    offset = torch.zeros_like(factor)
    if isinstance(bias, Tensor) and bias.shape == weight.shape:
        offset = bias.detach().to(x)
    yield Gain(factor, offset)
    yield Gain(1 + factor, offset)


def _epsilon(norm: nn.Module) -> float:
    found = (getattr(norm, name, None) for name in ("eps", "variance_epsilon", "epsilon"))
    return float(next((value for value in found if isinstance(value, float)), 1e-6))
