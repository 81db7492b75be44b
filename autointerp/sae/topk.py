"""One training step of a TopK SAE with hand-written sparse gradients.

Only the encoder is a dense product; what follows the choice of the k active features touches k rows per vector, and
no gradient of shape [batch, d_sae] is ever made. The loss (Gao et al. 2024, arXiv 2406.04093):

    L = sum_b |x_b - x_hat_b|^2 / (batch * variance)  +  alpha * |e - e_hat|^2 / |e - mean(e)|^2

with e = x - x_hat held constant and e_hat its reconstruction (without b_dec) by the k_aux strongest of the dead
features (AuxK). Both terms are fractions of variance unexplained; `variance` is that of the data, a constant, so that
a batch's own scale does not change its weight.

The encoder is kept transposed, [d_sae, d_in]: one row per feature like the decoder, so that both have the same sparse
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.sae import codes
from autointerp.sae.codes import SparseCodes


@dataclass(frozen=True, slots=True)
class TopkWeights:
    """What is trained; the tensors change in place."""

    encoder: Tensor
    """[d_sae, d_in]: W_enc transposed."""
    b_enc: Tensor
    """[d_sae]"""
    decoder: Tensor
    """[d_sae, d_in], unit rows."""
    b_dec: Tensor
    """[d_in]"""

    def named(self) -> dict[str, Tensor]:
        return {"encoder": self.encoder, "b_enc": self.b_enc, "decoder": self.decoder, "b_dec": self.b_dec}


@dataclass(frozen=True, slots=True)
class AuxK:
    """The loss that revives dead features."""

    dead: Tensor
    """[n_dead] int64: the dead features' indices."""
    k: int
    """How many of them may answer one vector."""
    alpha: float


@dataclass(frozen=True, slots=True)
class StepGradients:
    """Loss and gradients of one batch, before any projection."""

    gradients: TopkWeights
    loss: Tensor
    """[] reconstruction loss + alpha * auxiliary loss."""
    reconstruction: Tensor
    """[] the first term: fraction of the data's variance left unexplained."""
    auxiliary: Tensor
    """[] the second term without alpha; 0 where no feature is dead."""
    fired: Tensor
    """[d_sae] int64: vectors of the batch on which each feature is active."""
    active: SparseCodes


def encode(weights: TopkWeights, x_centred: Tensor, k: int) -> SparseCodes:
    """Codes of x_centred = x - b_dec [n, d_in]."""
    blocks = codes.row_blocks(x_centred, len(weights.b_enc))
    return codes.join([codes.topk_codes(F.linear(b, weights.encoder, weights.b_enc), k) for b in blocks])


@torch.no_grad()
def step_gradients(weights: TopkWeights, x: Tensor, k: int, variance: float, auxk: AuxK | None = None) -> StepGradients:
    """The loss of the batch x [n, d_in] and its gradients, equal to autograd's."""
    x_centred = x - weights.b_dec
    active = encode(weights, x_centred, k)
    bags = active.row_starts()
    x_hat = codes.weighted_sums(weights.decoder, active.features, active.values, bags)
    error = x_hat.sub_(x_centred)
    scale = 1.0 / (len(x) * variance)
    reconstruction = error.square().sum() * scale
    residual = error.neg() if auxk is not None and len(auxk.dead) else None
    d_x_hat = error.mul_(2 * scale)

    d_encoder, d_b_enc, d_decoder, fired = _sparse_backward(active, bags, weights.decoder, x_centred, d_x_hat)
    auxiliary = torch.zeros((), device=x.device)
    if auxk is not None and residual is not None:
        auxiliary, d_dead = _auxiliary(weights, x_centred, residual, auxk)
        for gradient, part in zip((d_encoder, d_b_enc, d_decoder), d_dead, strict=True):
            gradient.index_add_(0, auxk.dead, part)
    # b_dec is added to x_hat, and taken from x in front of the encoder
    d_b_dec = d_x_hat.sum(0).sub_(d_b_enc @ weights.encoder)
    return StepGradients(
        gradients=TopkWeights(d_encoder, d_b_enc, d_decoder, d_b_dec),
        loss=reconstruction + auxk.alpha * auxiliary if auxk is not None else reconstruction,
        reconstruction=reconstruction,
        auxiliary=auxiliary,
        fired=fired,
        active=active,
    )


def _sparse_backward(
    active: SparseCodes, bags: Tensor, decoder: Tensor, x_centred: Tensor, d_x_hat: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of encoder, b_enc and decoder given that of x_hat, and how often each feature fired."""
    d_sae = len(decoder)
    if active.features.numel() == 0:
        nothing = torch.zeros_like(decoder)
        counts = torch.zeros(d_sae, dtype=torch.int64, device=decoder.device)
        return nothing, decoder.new_zeros(d_sae), torch.zeros_like(decoder), counts
    # [n]: d_x_hat[row] . decoder[feature], without gathering either
    d_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        d_x_hat, decoder, active.features, bags, active.rows, 0
    )
    # narrow keys take torch's radix sort
    key = active.features.to(torch.int16 if d_sae <= 1 << 15 else torch.int32)
    order = key.argsort(stable=True)
    rows, fired = active.rows[order], torch.bincount(active.features, minlength=d_sae)
    by_feature = F.pad(fired.cumsum(0), (1, 0))[:-1]
    d_decoder = codes.weighted_sums(d_x_hat, rows, active.values[order], by_feature)
    d_encoder = codes.weighted_sums(x_centred, rows, d_values[order], by_feature)
    d_b_enc = decoder.new_zeros(d_sae).index_add_(0, active.features, d_values)
    return d_encoder, d_b_enc, d_decoder, fired


def _auxiliary(
    weights: TopkWeights, x_centred: Tensor, residual: Tensor, auxk: AuxK
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The AuxK loss and its gradients for the dead features' rows of encoder, b_enc and decoder.

    A residual without variance gives loss and gradients of 0 rather than NaN.
    """
    encoder, decoder = weights.encoder[auxk.dead], weights.decoder[auxk.dead]
    pre = F.linear(x_centred, encoder, weights.b_enc[auxk.dead])
    variance = (residual - residual.mean(0)).square().sum()
    inverse = torch.where(variance > 0, 1.0 / variance, torch.zeros_like(variance))
    if len(auxk.dead) <= auxk.k:  # every dead feature may answer: the dense product is the cheaper one
        acts = pre.relu_()
        error = (acts @ decoder).sub_(residual)
        d_hat = error * (2 * auxk.alpha * inverse)
        d_pre = (d_hat @ decoder.T).mul_(acts > 0)
        gradients = d_pre.T @ x_centred, d_pre.sum(0), acts.T @ d_hat
    else:
        active = codes.topk_codes(pre, auxk.k)
        bags = active.row_starts()
        error = codes.weighted_sums(decoder, active.features, active.values, bags).sub_(residual)
        d_hat = error * (2 * auxk.alpha * inverse)
        gradients = _sparse_backward(active, bags, decoder, x_centred, d_hat)[:3]
    return error.square().sum() * inverse, gradients


@torch.no_grad()
def wake(weights: TopkWeights, x: Tensor, active: SparseCodes, k: int, features: Tensor, wins: int) -> None:
    """Raise b_enc of `features` [n] int64 to where each would be among the k chosen on `wins` vectors of the batch x,
    whose codes are `active`. Never lowers it. In place."""
    weakest = torch.full((len(x),), torch.inf, device=x.device)
    weakest.scatter_reduce_(0, active.rows, active.values, "amin")
    weakest[torch.bincount(active.rows, minlength=len(x)) < k] = 0.0  # anything positive is chosen there
    margin = F.linear(x - weights.b_dec, weights.encoder[features], weights.b_enc[features]) - weakest.unsqueeze(1)
    weights.b_enc[features] += margin.topk(min(wins, len(x)), dim=0).values[-1].clamp_max(0).neg()


@torch.no_grad()
def project(gradient: Tensor, decoder: Tensor) -> None:
    """Take from each row of `gradient` its part along the unit row of `decoder`: the norm is fixed, so that part would
    only feed the optimiser's averages. In place."""
    gradient.addcmul_(torch.linalg.vecdot(gradient, decoder).unsqueeze(1), decoder, value=-1)


@torch.no_grad()
def normalise_rows(decoder: Tensor) -> None:
    """Unit rows again, in place."""
    decoder.div_(torch.linalg.vector_norm(decoder, dim=1, keepdim=True).clamp_min_(1e-12))
