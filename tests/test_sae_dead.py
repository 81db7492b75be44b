"""AuxK against autograd on its loss, and waking."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.sae import dead
from autointerp.sae.codes import topk_codes
from autointerp.sae.families import TopK

N_FEATURES, D = 96, 24


def weights_of(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "encoder": torch.randn(N_FEATURES, D, generator=g),
        "b_enc": torch.randn(N_FEATURES, generator=g) * 0.3,
        "decoder": F.normalize(torch.randn(N_FEATURES, D, generator=g), dim=1),
    }


def zeros(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


@pytest.mark.parametrize("n_dead", [5, 30], ids=["all may answer", "k of them may answer"])
def test_auxk_equals_autograd_and_reaches_the_encoder(n_dead: int) -> None:
    weights, k, alpha, silent = weights_of(), 8, 1 / 32, torch.arange(n_dead)
    g = torch.Generator().manual_seed(5)
    centred, residual = torch.randn(64, D, generator=g), torch.randn(64, D, generator=g) + 1
    gradients = zeros(weights)
    loss = dead.add_auxk(gradients, weights, centred, residual, silent, k, alpha)

    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    pre = F.linear(centred, leaves["encoder"], leaves["b_enc"])[:, silent]
    values, index = pre.topk(min(k, n_dead), dim=1)
    e_hat = torch.zeros_like(pre).scatter(1, index, values.relu()) @ leaves["decoder"][silent]
    expected = (residual - e_hat).square().sum() / (residual - residual.mean(0)).square().sum()
    (alpha * expected).backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, gradient in gradients.items():
        grad = leaves[name].grad
        assert grad is not None
        torch.testing.assert_close(gradient, grad, rtol=1e-4, atol=1e-7, msg=name)
        assert (gradient[silent].abs().sum(-1) > 0).all() if gradient.ndim == 2 else True


def test_auxk_of_a_perfect_reconstruction_is_zero_not_nan() -> None:
    weights = weights_of()
    gradients = zeros(weights)
    loss = dead.add_auxk(gradients, weights, torch.randn(5, D), torch.zeros(5, D), torch.arange(8), 4, 1 / 32)
    assert float(loss) == 0
    assert all(bool((g == 0).all()) for g in gradients.values())


def fired(weights: dict[str, Tensor], x: Tensor, k: int) -> Tensor:
    active = topk_codes(F.linear(x, weights["encoder"], weights["b_enc"]), k)
    return torch.bincount(active.features, minlength=N_FEATURES)


def test_woken_features_are_chosen_as_often_as_asked_and_no_other_bias_moves() -> None:
    weights, family = weights_of(), TopK(6, N_FEATURES, D, {})
    weights["b_enc"][:5] = -50.0
    weights["b_enc"][5] = 50.0  # awake already: nothing to do
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(2))
    before = weights["b_enc"].clone()
    active = topk_codes(F.linear(x, weights["encoder"], weights["b_enc"]), 6)
    assert (fired(weights, x, 6)[:5] == 0).all()
    dead.wake(weights, x, family.bar(weights, active, torch.arange(1)), torch.arange(1), 7)
    # on the seventh vector it ends level with the weakest chosen one, up to rounding
    assert int(fired(weights, x, 6)[0]) in (6, 7)
    dead.wake(weights, x, family.bar(weights, active, torch.arange(1, 6)), torch.arange(1, 6), 7)
    assert (fired(weights, x, 6)[:5] > 0).all()
    assert torch.equal(weights["b_enc"][5:], before[5:])


def test_a_woken_feature_needs_only_be_positive_where_fewer_than_k_are() -> None:
    weights, family = weights_of(), TopK(2, N_FEATURES, D, {})
    weights["b_enc"].fill_(-50.0)
    x, one = torch.randn(30, D), torch.tensor([3])
    active = topk_codes(F.linear(x, weights["encoder"], weights["b_enc"]), 2)
    dead.wake(weights, x, family.bar(weights, active, one), one, 10)
    pre = x @ weights["encoder"][3] + weights["b_enc"][3]
    assert 9 <= int((pre > 0).sum()) <= 10  # the tenth ends at zero, up to rounding
