"""Revives dead features, in the same way for every family.

A feature that has not been active for `dead_after` vectors gets the AuxK loss (Gao et al. 2024, arXiv 2406.04093).
Together with the other dead features it is fitted to the residual e, which is held constant:

    alpha * |e - e_hat|^2 / |e - mean(e)|^2      e_hat from the k_aux strongest dead features of each vector

The residual is smaller than the weakest active features, so this loss alone seldom revives a feature. After another
`dead_after` vectors, b_enc is therefore raised until the feature is active on some vectors again (`wake`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.sae import codes, parallel
from autointerp.sae.entries import Pairs


@torch.no_grad()
def add_auxk(gradients: dict[str, Tensor], weights: dict[str, Tensor], centred: Tensor, residual: Tensor, dead: Tensor,
             k: int, alpha: float) -> Tensor:  # fmt: skip
    """Add AuxK's gradients for the dead features to those of encoder, b_enc and decoder that are in `gradients`.
    Returns the loss without alpha.

    centred [n, d_in], residual [n, d_out], dead [n_dead] int64. `k` is how many dead features may be active on one
    vector. A residual without variance gives a loss and gradients of 0, not NaN.
    """
    encoder, decoder = weights["encoder"][dead], weights["decoder"][dead]
    pre = F.linear(centred, encoder, weights["b_enc"][dead])
    n = torch.tensor(float(len(residual)), device=residual.device)
    mean = parallel.total(residual.sum(0)) / parallel.total(n)
    variance = parallel.total((residual - mean).square().sum()) / parallel.world_size()
    inverse = torch.where(variance > 0, 1.0 / variance, torch.zeros_like(variance))
    if len(dead) <= k:  # every dead feature may be active, so the dense product is cheaper
        acts = pre.relu_()
        error = (acts @ decoder).sub_(residual)
        d_hat = error * (2 * alpha * inverse)
        d_pre = (d_hat @ decoder.T).mul_(acts > 0)
        parts = d_pre.T @ centred, d_pre.sum(0), acts.T @ d_hat
    else:
        active = codes.topk_codes(pre, k)
        pairs = Pairs.of(active, len(dead))
        error = pairs.sums_by_row(active.values, decoder).sub_(residual)
        d_hat = error * (2 * alpha * inverse)
        d_pre_values = pairs.products(d_hat, decoder)
        d_b_enc = torch.zeros_like(encoder[:, 0]).index_add_(0, pairs.features, d_pre_values)
        parts = pairs.sums_by_feature(d_pre_values, centred), d_b_enc, pairs.sums_by_feature(active.values, d_hat)
    for name, part in zip(("encoder", "b_enc", "decoder"), parts, strict=True):
        if name in gradients:
            gradients[name].index_add_(0, dead, part)
    return error.square().sum() * inverse


@torch.no_grad()
def wake(weights: dict[str, Tensor], centred: Tensor, bar: Tensor, features: Tensor, wins: int) -> None:
    """Raise b_enc of `features` [n] int64, in place, until each would be active on `wins` vectors of the batch. `bar`
    (broadcast with [n_rows, n]) is the pre-activation from which a feature is active. Never lowers b_enc."""
    pre = F.linear(centred, weights["encoder"][features], weights["b_enc"][features])
    margin = parallel.gathered(pre - bar)
    highest = margin.topk(min(wins, len(margin)), dim=0).values[-1]
    weights["b_enc"][features] += highest.nan_to_num(0.0, 0.0, 0.0).clamp_max(0).neg()
