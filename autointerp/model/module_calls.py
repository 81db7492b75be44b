"""What the modules of a model read and return in one forward pass, and whether one of them keeps directions apart."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autointerp.model.hooks import Hookpoint, hooked

PAIRS = 4
"""Pairs of random vectors on which a module is tried."""


@dataclass(frozen=True, slots=True, eq=False)
class ModuleCall:
    """One call of a module with one floating tensor that it reads first, and one that it returns first."""

    name: str
    module: nn.Module
    read: Tensor
    returned: Tensor
    read_values: Tensor
    """A copy, float32 [tokens, width]; the tensor itself may be written to later in the pass."""
    returned_values: Tensor

    @property
    def is_leaf(self) -> bool:
        """Whether it has no modules inside, and so no way around one of them."""
        return next(self.module.children(), None) is None

    def reads(self, tensor: Tensor) -> bool:
        """Whether what it reads is this very tensor."""
        return self.read.data_ptr() == tensor.data_ptr() and self.read.shape == tensor.shape


@torch.no_grad()
def calls_before(model: nn.Module, point: Hookpoint, ids: Tensor) -> tuple[list[ModuleCall], Tensor]:
    """The calls that end before the forward pass of `ids` [n, 1] has passed `point`, in the order in which they end;
    and the tensor at `point`, float32 [n, width], without columns where the pass never comes there. Calls that read or
    return no floating tensor are left out."""
    found: list[ModuleCall] = []
    reached: list[Tensor] = []
    n = ids.numel()

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            read, returned = _first_floating((*args, *kwargs.values())), _first_floating(output)
            if read is not None and returned is not None and read.numel() % n == returned.numel() % n == 0:
                rows = [tensor.detach().reshape(n, -1).float().clone() for tensor in (read, returned)]
                found.append(ModuleCall(name, module, read, returned, *rows))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            handle = module.register_forward_hook(keep(name), with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(hooked(model, point, capture=reached, stop=True))
        model(input_ids=ids, use_cache=False)
    if not reached:
        return found, torch.zeros(n, 0)
    return found, reached[0].detach().reshape(n, -1).float()


def _first_floating(value: Any) -> Tensor | None:
    """The first floating tensor of some elements, in a module's arguments or in what it returns."""
    values: Sequence[Any] = [value] if isinstance(value, Tensor) else list(_elements(value))
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.numel()), None)


def _elements(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):  # a ModelOutput
        return list(value.values())
    return value if isinstance(value, (tuple, list)) else []


def less_zero(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """module(x) - module(0) of rows x [n, width], float32 [n, width of its output]; `dtype` is that of its input where
    it has no weights."""
    x = _as_read(module, x, dtype)
    result: Tensor = module(x).float() - module(torch.zeros_like(x[:1])).float()
    return result


def applied(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """module(x), float32; see `less_zero`."""
    result: Tensor = module(_as_read(module, x, dtype)).float()
    return result


def _as_read(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    weight = next((p for p in module.parameters() if p.is_floating_point()), None)
    return x.to(dtype) if weight is None else x.to(weight.device, weight.dtype)


def keeps_directions(call: ModuleCall, dtype: torch.dtype, tolerance: float) -> bool:
    """Whether the module does by itself what it did in `call`, and is linear up to a positive factor for each vector
    once its value at 0 is subtracted: a matrix, a norm, a factor."""
    try:
        again = applied(call.module, call.read_values, dtype)
        width = call.read_values.shape[1]
        pairs = torch.randn(2, PAIRS, width, generator=torch.Generator().manual_seed(0))
        a, b = pairs.to(call.read.device)
        first, second, both = (less_zero(call.module, x, dtype) for x in (a, b, a + b))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # it needs more than one tensor
        return False
    if again.shape != call.returned_values.shape or both.shape[0] != PAIRS:
        return False
    size = call.returned_values.abs().amax().clamp_min(1e-12)
    if not (again - call.returned_values).abs().amax() <= tolerance * size:
        return False
    # Least squares by the normal equations: both = p first + q second, row by row.
    aa, ab, bb = (first * first).sum(1), (first * second).sum(1), (second * second).sum(1)
    ca, cb = (both * first).sum(1), (both * second).sum(1)
    determinant = aa * bb - ab * ab
    p, q = (ca * bb - cb * ab) / determinant, (cb * aa - ca * ab) / determinant
    rest = (both - p[:, None] * first - q[:, None] * second).norm(dim=1)
    # With one or two outputs any vector is such a sum.
    if both.shape[1] < 3:
        return False
    return bool((rest <= tolerance * both.norm(dim=1)).all() and (p > 0).all() and (q > 0).all())
