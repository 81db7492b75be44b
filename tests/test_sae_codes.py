"""The fast choice of features against torch.topk."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autointerp.sae.codes import threshold_codes, topk_codes


def dense_topk(pre: Tensor, k: int) -> Tensor:
    values, index = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, index, values.relu())


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


def test_single_activations_are_those_of_the_dense_matrix() -> None:
    pre = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    pre[[0, 7, 29]] = -1.0
    rows, features = (t.flatten() for t in torch.meshgrid(torch.arange(30), torch.arange(50), indexing="ij"))
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(1))
    rows, features = rows[order], features[order]
    for sparse in (topk_codes(pre, 4), threshold_codes(pre, torch.zeros(50)), topk_codes(-pre.abs(), 4)):
        assert torch.equal(sparse.at(rows, features), sparse.dense(50)[rows, features])


def test_device_path_gives_the_same_codes() -> None:
    pre = torch.randn(20, 200, dtype=torch.float64)  # anything but float32 on CPU goes through torch.topk
    slow, fast = topk_codes(pre, 7), topk_codes(pre.float(), 7)
    assert torch.equal(slow.rows, fast.rows) and torch.equal(slow.features, fast.features)
    assert torch.equal(slow.values, fast.values)


def test_thresholds_choose_what_lies_above_them_on_both_paths() -> None:
    pre, threshold = torch.randn(30, 50), torch.linspace(0, 1, 50)
    expected = pre * (pre > threshold)
    for given_pre in (pre, pre.double()):
        sparse = threshold_codes(given_pre, threshold.to(given_pre.dtype))
        torch.testing.assert_close(sparse.dense(50), expected)
