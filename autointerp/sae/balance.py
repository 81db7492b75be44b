"""Balances the parts of joined vectors, so that a crosscoder learns of all its layers.

Vectors grow from layer to layer of a residual stream. Side by side, the last layer would have most of the variance and
so of the loss. For training each part is therefore multiplied by one number, so that all parts have the same mean
square distance from their mean; afterwards these numbers are folded into the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autointerp.sae.formats import internal
from autointerp.sae.sae import Sae


def factors(vectors: Tensor, widths: Sequence[int]) -> Tensor:
    """[d]: what each number of vectors [n, d] is multiplied by, the same within a part. `widths` are those of the
    parts. All parts together keep their mean square distance; a part that is constant is left as it is."""
    squares = [(part - part.mean(0)).square().sum(1).mean() for part in vectors.split(list(widths), dim=1)]
    mean = torch.stack(squares).mean()
    found = [(mean / square).sqrt() if square > 0 else torch.ones_like(mean) for square in squares]
    return torch.cat([factor.expand(width) for factor, width in zip(found, widths, strict=True)])


def undone(sae: Sae, read: Tensor, written: Tensor) -> Sae:
    """The dictionary of the vectors themselves, from one of vectors x * read that reconstructs y * written."""
    read, written = read.to(sae.device), written.to(sae.device)
    return internal.build(
        sae.W_enc * read[:, None],
        sae.b_enc,
        internal.file_W_dec(sae) / written,
        sae.b_dec / written,
        k=sae.k,
        threshold=sae.threshold,
        b_pre=None if internal.same_pre_bias(sae) else sae.b_pre / read,
        W_skip=None if sae.W_skip is None else sae.W_skip * read[:, None] / written,
        architecture=sae.architecture,
        metadata=sae.metadata,
    )
