"""Reads a Jacobian lens that was made elsewhere: a `.pt` as the jlens library of Gurnee, Sofroniew, Lindsey et al.
(2026) writes it.

    J              {layer: [d, d]}, mostly in float16; J[layer] leads what block `layer` returns to the final stream
    n_prompts      prompts that it is the mean over
    source_layers  the layers of J
    d_model        d

The file does not say which model it is of. What can be checked is: its width, and that the model has that many blocks.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from autointerp.errors import DamagedError, InputError, MismatchError
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel
from autointerp.sae.formats.restricted import read_pt

KEYS = ("J", "n_prompts", "source_layers", "d_model")


def read_lens(path: Path, loaded: LoadedModel, point: Hookpoint, width: int) -> Tensor:
    """float32 [width, width] on CPU: the file's Jacobian from `point` to the final stream.

    Raises InputError where the file is none of a lens or has no Jacobian from `point`, MismatchError where it is one of
    another model, and DamagedError where what it holds cannot be true.
    """
    layer = block_of(loaded.model, point)
    if layer is None:
        raise InputError(
            f"the lens {path} holds Jacobians of what blocks return, and {point} is not what a block of {loaded.name} "
            "returns, or reads; leave evidence.lens_file empty to have one computed"
        )
    jacobians = _jacobians(path)
    n_blocks = _n_blocks(loaded.model)
    if max(jacobians) >= n_blocks:
        raise MismatchError(
            f"the lens {path} has a Jacobian of layer {max(jacobians)}, and {loaded.name} has {n_blocks} blocks; it "
            "belongs to another model"
        )
    if layer not in jacobians:
        raise InputError(
            f"the lens {path} has no Jacobian of layer {layer}, which is {point} here, but of {_spans(jacobians)}; "
            "leave evidence.lens_file empty to have one computed"
        )
    found = jacobians[layer]
    if found.shape != (width, width):
        raise MismatchError(
            f"the lens {path} holds matrices of shape {list(found.shape)}, and {point} of {loaded.name} has vectors of "
            f"width {width}; it belongs to another model"
        )
    found = found.float()
    if not torch.isfinite(found).all():
        raise DamagedError(f"{path} is damaged: its Jacobian of layer {layer} holds NaN or infinity; copy it again")
    return found


def _jacobians(path: Path) -> dict[int, Tensor]:
    held = read_pt(path, look=True)
    if isinstance(held, dict) and "jacobian_sum" in held:
        raise InputError(
            f"{path} is the state of a fit that is not finished; save the finished lens and name that file"
        )
    lacking = [key for key in KEYS if not isinstance(held, dict) or key not in held]
    if lacking:
        raise InputError(f"{path} is no Jacobian lens: it has no {lacking[0]!r}")
    jacobians, width = held["J"], held["d_model"]
    if not isinstance(jacobians, dict) or not jacobians:
        raise DamagedError(f"{path} is damaged: its 'J' is no table of matrices by layer")
    for layer, found in jacobians.items():
        if type(layer) is not int or layer < 0:
            raise DamagedError(f"{path} is damaged: {str(layer)[:40]!r} in its 'J' is no number of a layer")
        if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim != 2:
            raise DamagedError(f"{path} is damaged: its Jacobian of layer {layer} is no matrix of numbers")
        if list(found.shape) != [width, width]:
            raise DamagedError(
                f"{path} is not read: its Jacobian of layer {layer} has the shape {list(found.shape)}, and its d_model "
                f"is {str(width)[:40]}"
            )
    layers = held["source_layers"]
    if not isinstance(layers, (list, tuple)) or list(layers) != sorted(jacobians):
        raise DamagedError(f"{path} is damaged: its source_layers are not the layers of its 'J'")
    if type(held["n_prompts"]) is not int or held["n_prompts"] < 1:
        raise DamagedError(f"{path} is damaged: {str(held['n_prompts'])[:40]!r} is no number of prompts")
    return jacobians


def block_of(model: nn.Module, point: Hookpoint) -> int | None:
    """The number of the block that returns what is at `point`; None where no block does."""
    named = re.fullmatch(r"(.+)\.(\d+)", point.path)
    if named is None:
        return None
    blocks = dict(model.named_modules()).get(named[1])
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != _n_blocks(model):
        return None
    layer = int(named[2]) - (point.side == "in")
    return layer if layer >= 0 else None


def _n_blocks(model: nn.Module) -> int:
    return int(model.config.get_text_config().num_hidden_layers)  # type: ignore[operator, union-attr]


def _spans(jacobians: dict[int, Tensor]) -> str:
    layers = sorted(jacobians)
    return f"layers {layers[0]} to {layers[-1]}" if layers == list(range(layers[0], layers[-1] + 1)) else (
        f"the layers {', '.join(map(str, layers))}"
    )  # fmt: skip
