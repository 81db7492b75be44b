"""Finds each feature's nearest features by the cosine of their decoder rows, in blocks of rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK_ELEMENTS = 1 << 24
"""Number of similarities held in memory at once."""


def decoder_neighbours(W_dec: Tensor, n: int) -> Tensor:
    """For each feature, the features whose decoder rows have the largest cosine with its own, nearest first: int64
    [d_sae, min(n, d_sae - 1)] on CPU. The rows of W_dec [d_sae, d_out] may have any norm and float dtype."""
    return decoder_cosines(W_dec, n)[1]


@torch.no_grad()
def decoder_cosines(W_dec: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """`decoder_neighbours` with its cosines: (float32, int64), both [d_sae, min(n, d_sae - 1)] on CPU."""
    d_sae = len(W_dec)
    n = min(n, d_sae - 1)
    if n <= 0:
        return torch.zeros(d_sae, 0), torch.zeros(d_sae, 0, dtype=torch.int64)
    rows = F.normalize(W_dec.float(), dim=1)
    size = max(1, BLOCK_ELEMENTS // d_sae)
    values, indices = [], []
    for low in range(0, d_sae, size):
        cosine = rows[low : low + size] @ rows.T
        own = torch.arange(len(cosine), device=rows.device)
        cosine[own, own + low] = -torch.inf
        best = cosine.topk(n, dim=1)
        values.append(best.values.cpu())
        indices.append(best.indices.cpu())
    return torch.cat(values), torch.cat(indices)
