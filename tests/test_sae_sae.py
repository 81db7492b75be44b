"""Encoding and decoding with a finished SAE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from autointerp.errors import InputError
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
