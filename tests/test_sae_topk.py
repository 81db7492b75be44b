"""The hand-written step against autograd on the same loss, and the fast choice of features against torch.topk."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from autointerp.sae import codes, topk
from autointerp.sae.codes import topk_codes


def dense_topk(pre: Tensor, k: int) -> Tensor:
    values, index = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, index, values.relu())


def weights_of(d_sae: int, d_in: int, seed: int = 0) -> topk.TopkWeights:
    g = torch.Generator().manual_seed(seed)
    return topk.TopkWeights(
        encoder=torch.randn(d_sae, d_in, generator=g),
        b_enc=torch.randn(d_sae, generator=g) * 0.3,
        decoder=F.normalize(torch.randn(d_sae, d_in, generator=g), dim=1),
        b_dec=torch.randn(d_in, generator=g),
    )


def reference(
    weights: topk.TopkWeights, x: Tensor, k: int, variance: float, auxk: topk.AuxK | None
) -> tuple[Tensor, topk.TopkWeights]:
    """The loss of topk.py's docstring, written down densely, and autograd's gradients of it."""
    encoder, b_enc, decoder, b_dec = (t.clone().requires_grad_() for t in weights.named().values())
    pre = (x - b_dec) @ encoder.T + b_enc
    x_hat = dense_topk(pre, k) @ decoder + b_dec
    loss = (x - x_hat).square().sum() / (len(x) * variance)
    if auxk is not None:
        e = (x - x_hat).detach()
        e_hat = dense_topk(pre[:, auxk.dead], min(auxk.k, len(auxk.dead))) @ decoder[auxk.dead]
        loss = loss + auxk.alpha * (e - e_hat).square().sum() / (e - e.mean(0)).square().sum()
    loss.backward()
    grads = [t.grad for t in (encoder, b_enc, decoder, b_dec)]
    assert all(g is not None for g in grads)
    return loss.detach(), topk.TopkWeights(*grads)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.data())
def test_topk_codes_are_relu_of_topk(n: int, d_sae: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, d_sae))
    pre = torch.randn(n, d_sae, generator=torch.Generator().manual_seed(n * 1000 + d_sae))
    sparse = topk_codes(pre, k)
    assert torch.equal(sparse.dense(d_sae), dense_topk(pre, k))
    assert (sparse.values > 0).all()
    key = sparse.rows * d_sae + sparse.features
    assert torch.equal(key, key.sort().values)  # ordered by row, then by feature


@pytest.mark.parametrize("k", [1, 3, 8])
def test_ties_go_to_the_lower_feature_and_never_exceed_k(k: int) -> None:
    g = torch.Generator().manual_seed(k)
    pre = torch.randint(-2, 3, (50, 96), generator=g).float()  # few distinct values: ties everywhere
    pre[7] = 1.0
    sparse = topk_codes(pre, k)
    for row in range(len(pre)):
        mine = sparse.features[sparse.rows == row].tolist()
        best = sorted(range(96), key=lambda i: (-float(pre[row, i]), i))[:k]
        assert mine == sorted(i for i in best if pre[row, i] > 0)


def test_rows_without_positive_entries_and_with_nan_give_no_codes() -> None:
    pre = torch.randn(5, 64)
    pre[1] = -1.0
    pre[3] = float("nan")
    sparse = topk_codes(pre, 4)
    assert sparse.row_starts().tolist() == [0, 4, 4, 8, 8]
    assert sparse.values.isfinite().all()
    assert topk_codes(torch.full((3, 8), -1.0), 2).rows.numel() == 0


def test_device_path_gives_the_same_codes() -> None:
    pre = torch.randn(20, 200, dtype=torch.float64)  # anything but float32 on CPU goes through torch.topk
    slow, fast = topk_codes(pre, 7), topk_codes(pre.float(), 7)
    assert torch.equal(slow.rows, fast.rows) and torch.equal(slow.features, fast.features)
    assert torch.equal(slow.values, fast.values)


def test_blocks_of_rows_join_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of(64, 16)
    x = torch.randn(37, 16)
    whole = topk.encode(weights, x, 5)
    monkeypatch.setattr(codes, "_MIN_ROWS", 10)
    monkeypatch.setattr(codes, "_BLOCK_CPU", 640)
    parts = topk.encode(weights, x, 5)
    assert torch.equal(whole.rows, parts.rows) and torch.equal(whole.features, parts.features)
    assert parts.n_rows == 37
    torch.testing.assert_close(whole.values, parts.values)


@pytest.mark.parametrize("n_dead, k_aux", [(0, 8), (5, 8), (30, 8)], ids=["none dead", "dense auxk", "sparse auxk"])
def test_step_equals_autograd(n_dead: int, k_aux: int) -> None:
    weights = weights_of(96, 24)
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(5)) * 2
    weights.b_enc[:n_dead] = -30.0 if n_dead == 5 else weights.b_enc[:n_dead] - 3
    dead = torch.arange(n_dead)
    weights.b_enc[dead[::2]] += 2.5 if n_dead == 30 else 29.0  # some of them answer, some do not
    auxk = topk.AuxK(dead, k_aux, 1 / 32) if n_dead else None
    result = topk.step_gradients(weights, x, 6, 24.0, auxk)
    loss, expected = reference(weights, x, 6, 24.0, auxk)
    torch.testing.assert_close(result.loss, loss)
    for name, gradient in result.gradients.named().items():
        torch.testing.assert_close(gradient, expected.named()[name], atol=1e-6, rtol=1e-4, msg=name)
    active = dense_topk((x - weights.b_dec) @ weights.encoder.T + weights.b_enc, 6) > 0
    assert torch.equal(result.fired, active.sum(0))
    if n_dead:
        assert float(result.auxiliary) > 0


@pytest.mark.parametrize("n_dead", [6, 40])
def test_auxk_reaches_the_encoder_rows_of_dead_features(n_dead: int) -> None:
    weights = weights_of(96, 24)
    # the dead ones are positive on many vectors but always outdone by the others: they never fire
    weights.encoder[:n_dead] *= 0.05
    weights.b_enc[n_dead:] += 4
    weights.b_enc[:n_dead] = 0
    x = torch.randn(128, 24, generator=torch.Generator().manual_seed(1)) + weights.b_dec
    without = topk.step_gradients(weights, x, 6, 24.0)
    assert (without.fired[:n_dead] == 0).all()
    assert (without.gradients.encoder[:n_dead] == 0).all()
    auxk = topk.AuxK(torch.arange(n_dead), 12, 1 / 32)
    result = topk.step_gradients(weights, x, 6, 24.0, auxk)
    _, expected = reference(weights, x, 6, 24.0, auxk)
    assert (result.gradients.encoder[:n_dead].norm(dim=1) > 0).all()
    assert (result.gradients.decoder[:n_dead].norm(dim=1) > 0).all()
    torch.testing.assert_close(result.gradients.encoder, expected.encoder, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(result.gradients.b_dec, expected.b_dec, atol=1e-6, rtol=1e-4)
    # and what the live features learn is left alone
    assert torch.equal(result.gradients.decoder[n_dead:], without.gradients.decoder[n_dead:])


def test_auxk_of_a_perfect_reconstruction_is_zero_not_nan() -> None:
    weights = weights_of(8, 4)
    x = weights.b_dec.expand(5, 4).clone()
    weights.b_enc.fill_(-1.0)  # nothing fires and b_dec alone is exact
    result = topk.step_gradients(weights, x, 2, 1.0, topk.AuxK(torch.arange(8), 2, 1 / 32))
    assert float(result.loss) == 0.0
    assert all(bool((g == 0).all()) for g in result.gradients.named().values())


def test_woken_features_are_chosen_as_often_as_asked_and_no_other_bias_moves() -> None:
    weights = weights_of(96, 24)
    weights.b_enc[:5] = -50.0
    weights.b_enc[5] = 50.0  # awake already: nothing to do
    x = torch.randn(200, 24, generator=torch.Generator().manual_seed(2)) + weights.b_dec
    before, step = weights.b_enc.clone(), topk.step_gradients(weights, x, 6, 24.0)
    assert (step.fired[:5] == 0).all()
    topk.wake(weights, x, step.active, 6, torch.arange(1), 7)
    # on the seventh vector it ends level with the weakest chosen one, up to rounding
    assert int(topk.step_gradients(weights, x, 6, 24.0).fired[0]) in (6, 7)
    topk.wake(weights, x, step.active, 6, torch.arange(1, 6), 7)
    assert (topk.step_gradients(weights, x, 6, 24.0).fired[:5] > 0).all()
    assert torch.equal(weights.b_enc[5:], before[5:])


def test_a_woken_feature_needs_only_be_positive_where_fewer_than_k_are() -> None:
    weights = weights_of(8, 4)
    weights.b_enc.fill_(-50.0)
    x = torch.randn(30, 4)
    topk.wake(weights, x, topk.step_gradients(weights, x, 2, 4.0).active, 2, torch.tensor([3]), 10)
    pre = (x - weights.b_dec) @ weights.encoder[3] + weights.b_enc[3]
    assert 9 <= int((pre > 0).sum()) <= 10  # the tenth ends at zero, up to rounding


def test_projection_leaves_nothing_along_the_row_and_the_rest_alone() -> None:
    decoder = F.normalize(torch.randn(10, 6), dim=1)
    gradient = torch.randn(10, 6)
    projected = gradient.clone()
    topk.project(projected, decoder)
    torch.testing.assert_close((projected * decoder).sum(1), torch.zeros(10), atol=1e-6, rtol=0)
    along = (gradient * decoder).sum(1, keepdim=True) * decoder
    torch.testing.assert_close(projected + along, gradient)


def test_rows_become_unit_and_a_zero_row_stays_finite() -> None:
    decoder = torch.randn(4, 3) * 5
    decoder[2] = 0
    topk.normalise_rows(decoder)
    torch.testing.assert_close(decoder.norm(dim=1), torch.tensor([1.0, 1.0, 0.0, 1.0]))
