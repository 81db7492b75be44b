"""The sparse backward pass against autograd on the same loss written densely."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.sae import entries
from autointerp.sae.codes import topk_codes
from autointerp.sae.entries import Pairs


@pytest.mark.parametrize("dense_share", [0.0, 1.0], ids=["dense products", "sparse products"])
@pytest.mark.parametrize("k", [0, 1, 7])
def test_gradients_equal_those_of_the_dense_loss(k: int, dense_share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "DENSE_SHARE", dense_share)
    g = torch.Generator().manual_seed(k)
    n, d_in, d_out, d_sae = 33, 12, 9, 70
    x, y = torch.randn(n, d_in, generator=g), torch.randn(n, d_out, generator=g)

    def leaves() -> list[Tensor]:
        h = torch.Generator().manual_seed(1)
        shapes = [(d_sae, d_in), (d_sae,), (d_sae, d_out), (d_in,)]
        return [torch.randn(shape, generator=h).requires_grad_() for shape in shapes]

    encoder, b_enc, decoder, b_pre = leaves()
    pre = F.linear(x - b_pre, encoder, b_enc)
    active = topk_codes(pre.detach(), k) if k else topk_codes(torch.full_like(pre, -1.0), 1)
    chosen = active.dense(d_sae) > 0
    dense = ((pre * chosen).pow(1.5).where(chosen, torch.zeros(())) @ decoder - y).square().sum()
    dense.backward()

    ours = leaves()
    pairs = Pairs.of(active, d_sae)
    values = entries.pre_activations(pairs, active.values, x - ours[3].detach(), *ours[:2], ours[3])
    sparse = (entries.decode(pairs, values.pow(1.5), ours[2]) - y).square().sum()
    sparse.backward()
    torch.testing.assert_close(sparse, dense)
    for mine, theirs in zip(ours, (encoder, b_enc, decoder, b_pre), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-3)


def test_counts_and_products() -> None:
    pairs = Pairs(torch.tensor([0, 0, 2]), torch.tensor([1, 3, 3]), 3, 5)
    assert pairs.counts.tolist() == [0, 1, 0, 2, 0]
    by_row, by_feature = torch.randn(3, 4), torch.randn(5, 4)
    expected = [float(by_row[r] @ by_feature[f]) for r, f in ((0, 1), (0, 3), (2, 3))]
    assert pairs.products(by_row, by_feature).tolist() == pytest.approx(expected, rel=1e-5)
    assert Pairs(torch.zeros(0).long(), torch.zeros(0).long(), 3, 5).products(by_row, by_feature).numel() == 0
