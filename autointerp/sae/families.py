"""The families of sparse autoencoders: how each chooses features, and its loss. All else is shared.

A family is a class that defines up to four things (`Family` has the defaults):

    choose   which (vector, feature) pairs take part in a step, given the pre-activations
    loss     the loss of those pairs, in plain torch; autograd gives the gradients, which entries.py keeps sparse
    extra    the family's own parameters, trained with the others
    choice   how the finished dictionary chooses features: k, or one threshold per feature

A reconstruction loss is the fraction of the data's variance left unexplained. The penalties of `relu`, `p_anneal`,
`gated` and `jumprelu` have a weight that the training loop adjusts until k features are active on average, unless the
configuration fixes it.

Sources: TopK Gao et al. 2024 (arXiv 2406.04093); BatchTopK Bussmann et al. 2024 (2412.06410); Matryoshka Bussmann et
al. 2025 (2503.17547); ReLU + L1 Bricken et al. 2023, norm-weighted in Anthropic's update of April 2024; p-annealing
Karvonen et al. 2024 (2408.00113); Gated Rajamanoharan et al. 2024 (2404.16014); JumpReLU Rajamanoharan et al. 2024
(2407.14435).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import InputError, nearest
from autointerp.sae import codes, entries, parallel
from autointerp.sae.codes import SparseCodes
from autointerp.sae.entries import Pairs

Weights = dict[str, Tensor]
"""encoder [d_sae, d_in] (W_enc transposed), b_enc [d_sae], decoder [d_sae, d_out], b_dec [d_out], for a skip
transcoder W_skip [d_in, d_out], and the family's own."""


@dataclass(slots=True)
class Step:
    """One batch on its way through the loss."""

    weights: Weights
    pairs: Pairs
    pre: Tensor
    """[n]: the pairs' pre-activations."""
    target: Tensor
    """[n_rows, d_out]: what f @ decoder should be, which is the vectors minus b_dec and the skip term."""
    frozen_target: Tensor
    """`target` without gradients to b_dec."""
    variance: float
    """Mean squared distance of the vectors from their mean."""
    strength: float
    """Weight of the penalty."""
    progress: float
    """0 at the first step, 1 at the last."""

    def unexplained(self, residual: Tensor) -> Tensor:
        return residual.square().sum() / (len(residual) * self.variance)

    def per_vector(self, penalties: Tensor) -> Tensor:
        return penalties.sum() / self.pairs.n_rows


@dataclass(slots=True)
class Loss:
    total: Tensor
    reconstruction: Tensor
    """[]: the fraction of variance that all features together leave unexplained."""
    acts: Tensor
    """[n]: the pairs' activations."""
    residual: Tensor
    """[n_rows, d_out]: the target minus its reconstruction."""


class Family:
    """The defaults: positive pre-activations take part and are the activations; no own parameters, no penalty."""

    has_penalty = False
    """Whether the loss uses `Step.strength`, which is adjusted until k features are active on average."""
    first_strength = 0.01
    start = 0.0
    """The pre-activation from which features are active at the first step."""

    def __init__(self, k: int, d_sae: int, d_out: int, settings: dict[str, Any]) -> None:
        self.k, self.d_sae, self.d_out, self.settings = k, d_sae, d_out, settings

    def extra(self) -> Weights:
        return {}

    def state(self) -> dict[str, Tensor]:
        """Tensors that are not trained but belong in a checkpoint."""
        return {}

    def choose(self, blocks: Iterable[Tensor], weights: Weights, state: dict[str, Tensor]) -> SparseCodes:
        """The pairs of a batch with their pre-activations, chosen from `blocks` [rows, d_sae] of the batch."""
        zero = torch.zeros((), device=weights["b_enc"].device)
        return codes.join([codes.threshold_codes(pre, zero) for pre in blocks])

    def loss(self, step: Step) -> Loss:
        residual = step.target - entries.decode(step.pairs, step.pre, step.weights["decoder"])
        unexplained = step.unexplained(residual)
        return Loss(unexplained, unexplained, step.pre, residual)

    def bar(self, weights: Weights, active: SparseCodes, features: Tensor) -> Tensor:
        """The pre-activation from which each of `features` would be active; broadcasts with [n_rows, features]."""
        return weights["b_enc"].new_zeros(1, 1)

    def choice(self, weights: Weights, state: dict[str, Tensor]) -> dict[str, Any]:
        """`k` or `threshold` of the finished Sae, and its encoder and b_enc where they differ from the trained ones."""
        return {"threshold": torch.zeros_like(weights["b_enc"])}


class TopK(Family):
    """Chooses the k largest pre-activations of each vector."""

    def choose(self, blocks: Iterable[Tensor], weights: Weights, state: dict[str, Tensor]) -> SparseCodes:
        return codes.join([codes.topk_codes(pre, self.k) for pre in blocks])

    def bar(self, weights: Weights, active: SparseCodes, features: Tensor) -> Tensor:
        weakest = torch.full((active.n_rows,), torch.inf, device=active.values.device)
        weakest.scatter_reduce_(0, active.rows, active.values, "amin")
        weakest[torch.bincount(active.rows, minlength=active.n_rows) < self.k] = 0.0  # here any positive one is chosen
        return weakest.unsqueeze(1)

    def choice(self, weights: Weights, state: dict[str, Tensor]) -> dict[str, Any]:
        return {"k": self.k}


class BatchTopK(Family):
    """Chooses the k * batch largest pre-activations of the batch. The finished dictionary has a threshold: the running
    mean of the smallest chosen pre-activation."""

    memory = 0.99

    def state(self) -> dict[str, Tensor]:
        return {"threshold": torch.zeros(())}

    def choose(self, blocks: Iterable[Tensor], weights: Weights, state: dict[str, Tensor]) -> SparseCodes:
        # Entries below half the last threshold are hardly ever needed. When they are, all entries are searched.
        kept = list(blocks)
        wanted = self.k * parallel.total_rows(sum(map(len, kept)), state["threshold"].device)
        for bound in (state["threshold"] / 2, torch.zeros_like(state["threshold"])):
            found = codes.join([codes.threshold_codes(pre, bound) for pre in kept])
            values = parallel.gathered(found.values)
            if len(values) >= wanted or not bound:
                break
        if len(values) > wanted:
            smallest = values.topk(wanted, sorted=False).values.min()
            keep = found.values >= smallest
            found = SparseCodes(found.rows[keep], found.features[keep], found.values[keep], found.n_rows)
        if len(values):
            smallest = parallel.smallest(found.values)
            state["threshold"].copy_(
                smallest if not state["threshold"] else state["threshold"].lerp(smallest, 1 - self.memory)
            )
        return found

    def bar(self, weights: Weights, active: SparseCodes, features: Tensor) -> Tensor:
        return parallel.smallest(active.values).view(1, 1)

    def choice(self, weights: Weights, state: dict[str, Tensor]) -> dict[str, Any]:
        return {"threshold": state["threshold"].expand(self.d_sae).clone()}


class Matryoshka(BatchTopK):
    """BatchTopK whose first features must also reconstruct without the later ones: the loss is a mean over nested
    prefixes."""

    def loss(self, step: Step) -> Loss:
        ends = [max(1, round(share * self.d_sae)) for share in self.settings["prefixes"]]
        residual, total, low = step.target, torch.zeros((), device=step.pre.device), 0
        for high in ends:
            inside = ((step.pairs.features >= low) & (step.pairs.features < high)).nonzero().squeeze(1)
            group = Pairs(step.pairs.rows[inside], step.pairs.features[inside] - low, step.pairs.n_rows, high - low)
            residual = residual - entries.decode(group, step.pre[inside], step.weights["decoder"][low:high])
            unexplained, low = step.unexplained(residual), high
            total = total + unexplained / len(ends)
        return Loss(total, unexplained, step.pre, residual)


class Relu(Family):
    """ReLU with an L1 penalty, in units of the vectors' mean distance from their mean (sqrt(d_out))."""

    has_penalty = True

    def penalties(self, step: Step) -> Tensor:
        acts = step.pre
        if self.settings["decoder_norm_penalty"]:
            acts = acts * step.weights["decoder"].norm(dim=1)[step.pairs.features]
        return acts / self.d_out**0.5

    def loss(self, step: Step) -> Loss:
        loss = super().loss(step)
        loss.total = loss.reconstruction + step.strength * step.per_vector(self.penalties(step))
        return loss


class PAnneal(Relu):
    """ReLU whose penalty's exponent falls from 1 to `p_end` over the middle of the run, at the same total penalty."""

    begin, end, smallest = 0.2, 0.9, 1e-3

    def penalties(self, step: Step) -> Tensor:
        linear = super().penalties(step)
        done = min(1.0, max(0.0, (step.progress - self.begin) / (self.end - self.begin)))
        p = 1 + done * (self.settings["p_end"] - 1)
        if p == 1 or len(linear) == 0:
            return linear
        powers = (linear + self.smallest) ** p
        return powers * (linear.sum() / powers.sum()).detach()


class Gated(Family):
    """Reads one set of weights twice: a gate decides whether a feature is active (b_enc is its bias), and a
    magnitude decides how much (r_mag, b_mag). The gate learns from an L1 penalty, and from reconstructing by itself
    through a frozen decoder."""

    has_penalty = True

    def extra(self) -> Weights:
        return {"r_mag": torch.zeros(self.d_sae), "b_mag": torch.zeros(self.d_sae)}

    def loss(self, step: Step) -> Loss:
        weights, features, gate = step.weights, step.pairs.features, step.pre
        magnitude = (gate - weights["b_enc"][features]) * weights["r_mag"].exp()[features] + weights["b_mag"][features]
        acts = magnitude.relu()
        residual = step.target - entries.decode(step.pairs, acts, weights["decoder"])
        alone = step.frozen_target - entries.decode(step.pairs, gate, weights["decoder"].detach())
        unexplained = step.unexplained(residual)
        penalty = step.strength * step.per_vector(gate) / self.d_out**0.5
        return Loss(unexplained + penalty + step.unexplained(alone), unexplained, acts, residual)

    def choice(self, weights: Weights, state: dict[str, Tensor]) -> dict[str, Any]:
        # With m = exp(r_mag) pi + b_mag, pi + b_enc > 0 is the same as m > b_mag - exp(r_mag) b_enc.
        size = weights["r_mag"].exp()
        return {
            "encoder": weights["encoder"] * size.unsqueeze(1),
            "b_enc": weights["b_mag"],
            "threshold": weights["b_mag"] - size * weights["b_enc"],
        }


class JumpRelu(Family):
    """A threshold per feature, trained on the number of active features by a straight-through estimate: within half the
    bandwidth of its threshold, a feature's jump is treated as a slope."""

    has_penalty = True
    first_strength = 1e-3

    @property
    def start(self) -> float:  # type: ignore[override]
        return float(self.settings["first_threshold"])

    def extra(self) -> Weights:
        return {"log_threshold": torch.full((self.d_sae,), self.start).log()}

    def choose(self, blocks: Iterable[Tensor], weights: Weights, state: dict[str, Tensor]) -> SparseCodes:
        near = (weights["log_threshold"].exp() - self.settings["bandwidth"] / 2).clamp_min(0)
        return codes.join([codes.threshold_codes(pre, near) for pre in blocks])

    def loss(self, step: Step) -> Loss:
        threshold = step.weights["log_threshold"].exp()[step.pairs.features]
        bandwidth = self.settings["bandwidth"]
        acts: Tensor = _Jump.apply(step.pre, threshold, bandwidth)
        is_active: Tensor = _IsAbove.apply(step.pre, threshold, bandwidth)
        residual = step.target - entries.decode(step.pairs, acts, step.weights["decoder"])
        unexplained = step.unexplained(residual)
        return Loss(unexplained + step.strength * step.per_vector(is_active), unexplained, acts, residual)

    def bar(self, weights: Weights, active: SparseCodes, features: Tensor) -> Tensor:
        return weights["log_threshold"].exp()[features].unsqueeze(0)

    def choice(self, weights: Weights, state: dict[str, Tensor]) -> dict[str, Any]:
        return {"threshold": weights["log_threshold"].exp()}


class _Jump(torch.autograd.Function):
    """pre where pre > threshold, else 0."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (d,), (pre, threshold) = grads, ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        return d * (pre > threshold), -threshold / ctx.bandwidth * near * d, None


class _IsAbove(torch.autograd.Function):
    """1 where pre > threshold, else 0; no gradient to pre."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (d,), (pre, threshold) = grads, ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        return None, -(near * d) / ctx.bandwidth, None


FAMILIES: dict[str, type[Family]] = {
    "topk": TopK,
    "batchtopk": BatchTopK,
    "matryoshka": Matryoshka,
    "relu": Relu,
    "p_anneal": PAnneal,
    "gated": Gated,
    "jumprelu": JumpRelu,
}


def family_named(name: str) -> type[Family]:
    """The family with this name. Otherwise raises InputError, which names the nearest family."""
    if name not in FAMILIES:
        raise InputError(
            f"SAE architecture {name!r} cannot be trained; {', '.join(FAMILIES)} can.{nearest(name, FAMILIES)}"
        )
    return FAMILIES[name]
