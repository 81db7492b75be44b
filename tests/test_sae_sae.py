"""Encoding and decoding with a finished SAE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from autointerp.errors import InputError
from autointerp.sae.long_vectors import LIMIT
from autointerp.sae.pursuit import Pursuit
from autointerp.sae.sae import Sae


def make(d_in: int = 12, d_sae: int = 80, k: int = 5, seed: int = 0, row_norms: torch.Tensor | None = None) -> Sae:
    g = torch.Generator().manual_seed(seed)
    return Sae(
        torch.randn(d_in, d_sae, generator=g),
        torch.randn(d_sae, generator=g) * 0.1,
        F.normalize(torch.randn(d_sae, d_in, generator=g), dim=1),
        torch.randn(d_in, generator=g),
        k=k,
        row_norms=row_norms,
    )


def test_sparse_and_dense_encodings_are_the_same() -> None:
    sae, x = make(), torch.randn(50, 12)
    sparse, dense = sae.encode_sparse(x), sae.encode(x)
    torch.testing.assert_close(sparse.dense(sae.d_sae), dense)
    assert (dense > 0).sum(1).max() <= sae.k
    torch.testing.assert_close(sae.decode_sparse(sparse), sae(x))
    assert sparse.rows.dtype == sparse.features.dtype == torch.int64 and sparse.values.dtype == torch.float32


def test_encoding_is_the_formula() -> None:
    sae, x = make(), torch.randn(3, 12)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    for row in range(3):
        expected = {int(i): float(pre[row, i]) for i in pre[row].argsort(descending=True)[:5] if pre[row, i] > 0}
        sparse = sae.encode_sparse(x[row : row + 1])
        assert dict(zip(sparse.features.tolist(), sparse.values.tolist(), strict=True)) == pytest.approx(expected)


def test_half_precision_input_is_computed_in_float32() -> None:
    sae, x = make(), torch.randn(20, 12).bfloat16()
    torch.testing.assert_close(sae.encode_sparse(x).values, sae.encode_sparse(x.float()).values, rtol=0, atol=0)


def test_row_norms_scale_the_activations_after_the_choice() -> None:
    norms = torch.linspace(0.0, 3.0, 80)
    plain, scaled, x = make(), make(row_norms=norms), torch.randn(30, 12)
    torch.testing.assert_close(scaled.encode(x), plain.encode(x) * norms)
    sparse = scaled.encode_sparse(x)
    torch.testing.assert_close(sparse.dense(80), scaled.encode(x))
    assert (sparse.values > 0).all()


def test_no_vectors_and_wrong_width() -> None:
    sae = make()
    empty = sae.encode_sparse(torch.zeros(0, 12))
    assert empty.n_rows == 0 and empty.values.numel() == 0
    assert sae.decode_sparse(empty).shape == (0, 12)
    with pytest.raises(InputError, match=r"vectors of 12 numbers, not a tensor of shape \[4, 11\]"):
        sae.encode_sparse(torch.zeros(4, 11))


def test_vectors_on_which_nothing_fires_decode_to_the_bias() -> None:
    sae = make()
    sae.b_enc.fill_(-100.0)
    x = torch.randn(4, 12)
    assert sae.encode_sparse(x).rows.numel() == 0
    torch.testing.assert_close(sae.decode_sparse(sae.encode_sparse(x)), sae.b_dec.expand(4, 12))


@pytest.mark.parametrize("k", [0, 81])
def test_impossible_k(k: int) -> None:
    with pytest.raises(InputError, match=f"k = {k} "):
        make(k=k)


def test_tensors_that_do_not_fit_together() -> None:
    sae = make()
    with pytest.raises(InputError, match=r"W_dec \[12, 80\]"):
        Sae(sae.W_enc, sae.b_enc, sae.W_dec.T, sae.b_dec, k=5)
    with pytest.raises(InputError, match=r"b_pre \[d_in\] where"):
        Sae(sae.W_enc, sae.b_enc, sae.W_dec[:, :7], sae.b_dec[:7], k=5)


@pytest.mark.parametrize("choice", [{}, {"k": 5, "threshold": torch.zeros(80)}])
def test_features_are_chosen_in_exactly_one_way(choice: dict[str, Any]) -> None:
    sae = make()
    with pytest.raises(InputError, match="either by k, by thresholds or by pursuit"):
        Sae(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, **choice)


def test_thresholds_are_the_formula_and_never_below_zero() -> None:
    base, x = make(), torch.randn(40, 12)
    threshold = torch.linspace(-1.0, 2.0, 80)
    sae = Sae(base.W_enc, base.b_enc, base.W_dec, base.b_dec, threshold=threshold, architecture="jumprelu")
    pre = (x - base.b_dec) @ base.W_enc + base.b_enc
    expected = pre.relu() * (pre > threshold)
    torch.testing.assert_close(sae.encode(x), expected)
    torch.testing.assert_close(sae.encode_sparse(x).dense(80), expected)


def test_a_transcoder_with_a_skip_term_reads_one_width_and_writes_another() -> None:
    base, x = make(), torch.randn(6, 12)
    W_dec, W_skip = F.normalize(torch.randn(80, 7), dim=1), torch.randn(12, 7)
    sae = Sae(base.W_enc, base.b_enc, W_dec, torch.ones(7), k=5, b_pre=torch.zeros(12), W_skip=W_skip)
    y_hat, active = sae.reconstruct(x)
    torch.testing.assert_close(y_hat, active.dense(80) @ W_dec + 1 + x @ W_skip)
    torch.testing.assert_close(sae(x), y_hat)


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm"])
def test_a_vector_scaled_by_itself_is_reconstructed_in_its_own_units(normalize: Any) -> None:
    """Five times the vector: the same activations, five times the reconstruction."""
    base, x = make(), torch.randn(20, 12)
    sae = Sae(base.W_enc, base.b_enc, base.W_dec, base.b_dec, k=5, normalize=normalize)
    torch.testing.assert_close(sae.encode(5 * x), sae.encode(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sae(5 * x), 5 * sae(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sae.reconstruct(x)[0], sae(x))


def parts(b_pre: bool = True) -> dict[str, Any]:
    base = make()
    more = {"row_norms": torch.linspace(0.3, 2.0, 80)} if b_pre else {}
    return {"W_enc": base.W_enc, "b_enc": base.b_enc, "W_dec": base.W_dec, "b_dec": base.b_dec} | more


@pytest.mark.parametrize("choice", ["k", "threshold"])
def test_without_a_relu_values_below_zero_are_written_and_are_no_activations(choice: str) -> None:
    given, x = parts(b_pre=choice == "k"), torch.randn(30, 12, generator=torch.Generator().manual_seed(1))
    norms = given.get("row_norms", torch.ones(80))
    pre = (x - given["b_dec"]) @ given["W_enc"] + given["b_enc"]
    if choice == "k":
        sae = Sae(**given, k=60, relu=False)
        chosen = torch.zeros_like(pre).scatter(1, pre.topk(60).indices, pre.topk(60).values) * norms
    else:
        sae = Sae(**given, threshold=torch.full((80,), -0.5), relu=False)
        chosen = pre * (pre > -0.5)
    assert bool((chosen < 0).any())
    y = chosen @ given["W_dec"] + given["b_dec"]
    torch.testing.assert_close(sae.encode(x), chosen.relu())
    y_hat, active = sae.reconstruct(x)
    torch.testing.assert_close(active.dense(80), chosen.relu())
    assert (active.values > 0).all()
    torch.testing.assert_close(y_hat, y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x.reshape(5, 6, 12)), y.reshape(5, 6, 12), rtol=1e-5, atol=1e-5)
    sae.metadata[LIMIT] = 1e-6  # every vector is longer
    torch.testing.assert_close(sae(x), given["b_dec"].expand(30, 12))
    with_relu = Sae(**given, **({"k": 60} if choice == "k" else {"threshold": torch.full((80,), -0.5)}))
    torch.testing.assert_close(with_relu(x), chosen.relu() @ given["W_dec"] + given["b_dec"], rtol=1e-5, atol=1e-5)


def pursued(sae: Sae, rows: torch.Tensor, x: torch.Tensor, rule: Pursuit) -> torch.Tensor:
    """One vector after the other, as the definition has it."""
    found = torch.zeros(len(x), sae.d_sae)
    for n, vector in enumerate(x):
        left, taken = vector - sae.b_pre, set[int]()
        for _ in range(rule.steps):
            scores = rows @ left
            best = int(scores.argmax())
            value = max(float(scores[best]), 0.0)
            found[n, best] += value
            left = left - value * rows[best]
            if rule.stop_at_repeat and (best in taken or value == 0):
                break
            taken.add(best)
            if rule.residual > 0 and float(left.norm()) < rule.residual:
                break
    return found


@pytest.mark.parametrize(
    "rule", [Pursuit(4, 0.0, True), Pursuit(12, 1.5, True), Pursuit(9, 0.0, False), Pursuit(12, 1.5, False)]
)
def test_matching_pursuit_takes_one_feature_after_the_other(rule: Pursuit) -> None:
    base, x = make(d_sae=30), torch.randn(25, 12, generator=torch.Generator().manual_seed(2)) * 2
    norms = torch.linspace(0.4, 1.3, 30)
    rows = base.W_dec * norms.unsqueeze(1)
    sae = Sae(rows.T, torch.zeros(30), base.W_dec, base.b_dec, pursuit=rule, row_norms=norms)
    expected = pursued(sae, rows, x, rule)
    assert len(set((expected > 0).sum(1).tolist())) > (1 if rule.steps > 4 else 0)
    torch.testing.assert_close(sae.encode(x), expected * norms, rtol=1e-4, atol=1e-5)
    y_hat, active = sae.reconstruct(x)
    torch.testing.assert_close(active.dense(30), expected * norms, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y_hat, expected @ rows + base.b_dec, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(x.reshape(5, 5, 12)).reshape(25, 12), y_hat, rtol=1e-4, atol=1e-5)
    assert sae.encode_sparse(x[:0]).n_rows == 0
    along = x[:1].clone().requires_grad_()
    sae.encode(along).sum().backward()
    assert along.grad is not None and bool(along.grad.any())


def test_a_gated_linear_unit_multiplies_the_pre_activations() -> None:
    given, x = parts(b_pre=False), torch.randn(10, 12, generator=torch.Generator().manual_seed(3))
    W_glu, b_glu = torch.randn(12, 80, generator=torch.Generator().manual_seed(4)), torch.linspace(-1, 1, 80)
    sae = Sae(**given, k=5, W_glu=W_glu, b_glu=b_glu)
    u = x - given["b_dec"]
    pre = (u @ given["W_enc"] + given["b_enc"]) * (u @ W_glu + b_glu).sigmoid()
    torch.testing.assert_close(sae.encode(x), torch.zeros_like(pre).scatter(1, *pre.topk(5)[::-1]).relu())
    torch.testing.assert_close(sae.encode_sparse(x).dense(80), sae.encode(x))
    with pytest.raises(InputError, match="W_glu"):
        Sae(**given, k=5, W_glu=W_glu)
