"""The attention heads in a dictionary of their outputs: which part of each feature is whose.

Such a dictionary reads what enters the attention's output projection W_O, the heads side by side (TransformerLens's
hook_z). With d_ih the part of feature i's decoder row that belongs to head h:

    decoder_share   |d_ih|^2 / |d_i|^2
    output_share    |d_ih W_O|^2 / sum over heads of |d_ig W_O|^2
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autointerp.model.hooks import Hookpoint, resolve
from autointerp.model.load import LoadedModel
from autointerp.model.module_calls import less_zero
from autointerp.sae.formats.hooknames import is_heads_output

_ROWS = 4096
"""Decoder rows that are projected at once."""


@dataclass(frozen=True, slots=True)
class HeadParts:
    """Both shares of each feature by head, float32 [n features, n heads]."""

    decoder: np.ndarray
    output: np.ndarray


def head_parts(loaded: LoadedModel, point: Hookpoint, W_dec: Tensor) -> HeadParts | None:
    """The shares of the rows of W_dec [n, width], which are vectors at `point`. None where `point` does not hold the
    heads' outputs, or where the model does not say how many heads make up its width."""
    if not is_heads_output(str(point), loaded.model):
        return None
    n_heads = getattr(loaded.model.config.get_text_config(), "num_attention_heads", None)
    width = W_dec.shape[1]
    if not isinstance(n_heads, int) or n_heads < 1 or width % n_heads:
        return None
    projection = resolve(loaded.model, point)
    decoder, output = (torch.zeros(len(W_dec), n_heads) for _ in range(2))
    size = width // n_heads
    with torch.no_grad():
        for start in range(0, len(W_dec), _ROWS):
            rows = W_dec[start : start + _ROWS].float()
            for head in range(n_heads):
                part = torch.zeros_like(rows)
                here = slice(head * size, (head + 1) * size)
                part[:, here] = rows[:, here]
                written = less_zero(projection, part, loaded.dtype)
                decoder[start : start + len(rows), head] = part.square().sum(1).cpu()
                output[start : start + len(rows), head] = written.square().sum(1).cpu()
    return HeadParts(*(_shares(squares).numpy() for squares in (decoder, output)))


def _shares(squares: Tensor) -> Tensor:
    """Each row as shares of its sum; zeros where that is 0."""
    return squares / squares.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
