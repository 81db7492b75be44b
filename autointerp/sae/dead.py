"""Bringing dead features back, for every family alike.

A feature that has not been active for `dead_after` vectors gets AuxK (Gao et al. 2024, arXiv 2406.04093): with the
other dead ones it is fitted to the residual e, held constant,

    alpha * |e - e_hat|^2 / |e - mean(e)|^2      e_hat from the k_aux strongest dead features of each vector

That fits it to the residual, whose scale is below that of the weakest active features, so alone it seldom brings one
back: after another `dead_after` vectors b_enc is raised to where the feature is active on some vectors again (`wake`).
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
    """Add AuxK's gradients of the dead features' rows to those of encoder, b_enc and decoder; the loss without alpha.

    centred [n, d_in], residual [n, d_out], dead [n_dead] int64, k: how many of them may answer one vector. A residual
    without variance gives loss and gradients of 0 rather than NaN.
    """
    encoder, decoder = weights["encoder"][dead], weights["decoder"][dead]
    pre = F.linear(centred, encoder, weights["b_enc"][dead])
    n = torch.tensor(float(len(residual)), device=residual.device)
    mean = parallel.total(residual.sum(0)) / parallel.total(n)
    variance = parallel.total((residual - mean).square().sum()) / parallel.world_size()
    inverse = torch.where(variance > 0, 1.0 / variance, torch.zeros_like(variance))
    if len(dead) <= k:  # every dead feature may answer: the dense product is the cheaper one
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
        gradients[name].index_add_(0, dead, part)
    return error.square().sum() * inverse


@torch.no_grad()
def wake(weights: dict[str, Tensor], centred: Tensor, bar: Tensor, features: Tensor, wins: int) -> None:
    """Raise b_enc of `features` [n] int64 to where each would be active on `wins` of the batch's vectors, given the
    pre-activation from which one is (`bar`, broadcast with [n_rows, n]). Never lowers it. In place."""
    pre = F.linear(centred, weights["encoder"][features], weights["b_enc"][features])
    margin = parallel.gathered(pre - bar)
    highest = margin.topk(min(wins, len(margin)), dim=0).values[-1]
    weights["b_enc"][features] += highest.nan_to_num(0.0, 0.0, 0.0).clamp_max(0).neg()
