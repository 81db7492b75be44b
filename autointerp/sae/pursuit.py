"""Matching pursuit: features are taken one after the other, each the one that fits best what is left of the vector.

    r = u - b_pre                                  what is left
    repeat: i = argmax_j (r W_enc)_j,  v = relu((r W_enc)_i)
            f_i += v,  r -= v * (the file's decoder row i)

The encoder is the decoder turned, so a finished dictionary is its decoder and the rule by which a pursuit ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pursuit:
    """When the pursuit of one vector ends."""

    steps: int
    """After this many features at the latest."""
    residual: float
    """When what is left is shorter than this, in the units of the input; 0: never."""
    stop_at_repeat: bool
    """When a feature would be taken a second time, or none fits."""


def pursue(left: Tensor, W_enc: Tensor, rows: Tensor, rule: Pursuit) -> Tensor:
    """The activations [n, d_sae] of the vectors `left` [n, d_in], from which b_pre is subtracted already. `rows`
    [d_sae, d_in] are the decoder's rows with the lengths that the file gave them. Differentiable in `left`."""
    n = len(left)
    waiting = torch.arange(n, device=left.device)
    chosen = torch.full((n, 0), -1, dtype=torch.int64, device=left.device)
    places: list[tuple[Tensor, Tensor]] = []
    values: list[Tensor] = []
    for _ in range(rule.steps):
        value, feature = (left @ W_enc).relu().max(dim=1)
        places.append((waiting, feature))
        values.append(value)
        left = left - value.unsqueeze(1) * rows[feature]
        going_on = torch.ones_like(waiting, dtype=torch.bool)
        if rule.stop_at_repeat:
            going_on = (value > 0) & ~(chosen == feature.unsqueeze(1)).any(1)
            chosen = torch.cat([chosen, feature.unsqueeze(1)], dim=1)
        if rule.residual > 0:
            going_on &= left.norm(dim=1) >= rule.residual
        waiting, left, chosen = waiting[going_on], left[going_on], chosen[going_on]
        if not len(waiting):
            break
    at, which = (torch.cat([place[i] for place in places]) for i in (0, 1))
    zeros = torch.zeros(n, W_enc.shape[1], dtype=W_enc.dtype, device=W_enc.device)
    return zeros.index_put((at, which), torch.cat(values), accumulate=True)
