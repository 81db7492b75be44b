"""Sparse codes: which features are active on which vector and how strongly, and the vectors that they decode to.

Only `topk_codes` and `threshold_codes` depend on how an SAE chooses its active features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_SMALLEST = np.float32(np.finfo(np.float32).tiny)
# Elements of one block of pre-activations. On CPU a block (2 MB) should stay in the cache between the product and the
# selection; elsewhere this bounds memory (256 MB).
_BLOCK_CPU, _BLOCK_DEVICE, _MIN_ROWS = 1 << 19, 1 << 26, 128


@dataclass(frozen=True, slots=True)
class SparseCodes:
    """The positive activations of `n_rows` vectors, ordered by row and, within a row, by feature."""

    rows: Tensor
    """[n] int64: the vector of each activation."""
    features: Tensor
    """[n] int64: the feature of each activation."""
    values: Tensor
    """[n] float32: the activations, all above 0."""
    n_rows: int

    def row_starts(self) -> Tensor:
        """Where each row's entries begin, [n_rows] int64."""
        return starts(self.rows, self.n_rows)

    def at(self, rows: Tensor, features: Tensor) -> Tensor:
        """The activations of `features` [m] on vectors `rows` [m] (both int64): [m] float32, 0 where silent."""
        if not len(self.values):
            return torch.zeros(rows.shape, device=self.values.device)
        keys, wanted = (self.rows << 32) + self.features, (rows << 32) + features  # ascending, as the entries are
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where(keys[place] == wanted, self.values[place], 0.0)

    def dense(self, d_sae: int) -> Tensor:
        """The codes as a dense matrix [n_rows, d_sae], with zeros where features are silent."""
        out = torch.zeros(self.n_rows, d_sae, device=self.values.device)
        return out.index_put_((self.rows, self.features), self.values)


def starts(sorted_groups: Tensor, n_groups: int) -> Tensor:
    """Where each group begins in `sorted_groups` ([n] int64, each 0..n_groups-1): [n_groups] int64."""
    return F.pad(torch.bincount(sorted_groups, minlength=n_groups).cumsum(0), (1, 0))[:-1]


def weighted_sums(vectors: Tensor, index: Tensor, weights: Tensor, group_starts: Tensor) -> Tensor:
    """For each group, the sum over its entries j of weights[j] * vectors[index[j]]: [n_groups, d]. An empty group gives
    zeros."""
    if index.numel() == 0:
        return vectors.new_zeros(len(group_starts), vectors.shape[1])
    return F.embedding_bag(index, vectors, group_starts, per_sample_weights=weights, mode="sum")


def decode(codes: SparseCodes, W_dec: Tensor) -> Tensor:
    """f @ W_dec, without the decoder's bias: [n_rows, d_out]. It reads only the active rows of W_dec [d_sae, d_out]."""
    return weighted_sums(W_dec, codes.features, codes.values, codes.row_starts())


def decode_negative(pre: Tensor, k: int, row_norms: Tensor | None, W_dec: Tensor) -> Tensor:
    """What those of the k largest entries of each row of `pre` [n, d_sae] decode to that are below 0: [n, d_out].
    Most rows have more than k positive entries, and give zeros."""
    values, features = pre.topk(k, dim=-1, sorted=False)
    rows = (values < 0).any(dim=-1).nonzero().squeeze(-1)
    values, features = values[rows].clamp_max(0), features[rows]
    if row_norms is not None:
        values = values * row_norms[features]
    zeros = torch.zeros(len(pre), W_dec.shape[1], dtype=W_dec.dtype, device=W_dec.device)
    if not len(rows):
        return zeros
    return zeros.index_copy(0, rows, F.embedding_bag(features, W_dec, per_sample_weights=values, mode="sum"))


def row_blocks(x: Tensor, d_sae: int) -> Iterator[Tensor]:
    """`x` [n, d] in blocks of rows, small enough to hold a block's pre-activations at once."""
    budget = _BLOCK_CPU if x.device.type == "cpu" else _BLOCK_DEVICE
    return iter(x.split(max(_MIN_ROWS, budget // d_sae)))


def join(parts: list[SparseCodes]) -> SparseCodes:
    """Join the codes of consecutive blocks of rows."""
    if len(parts) == 1:
        return parts[0]
    rows, before = [], 0
    for part in parts:
        rows.append(part.rows + before)
        before += part.n_rows
    return SparseCodes(
        torch.cat(rows), torch.cat([p.features for p in parts]), torch.cat([p.values for p in parts]), before
    )


def topk_codes(pre: Tensor, k: int) -> SparseCodes:
    """The k largest positive entries of each row of `pre` [n, d_sae]: relu(topk(pre)) as sparse codes.

    On CPU a tie for the last place goes to the lower feature index, and a row with NaN gives no codes, or only codes
    that are right without the NaN. On other devices torch.topk decides both.
    """
    if pre.device.type == "cpu" and pre.dtype == torch.float32:
        return _topk_numpy(pre.detach().numpy(), k)
    values, features = pre.topk(k, dim=-1, sorted=False)
    features, order = features.sort(dim=-1)
    values = values.gather(-1, order)
    rows, column = (values > 0).nonzero(as_tuple=True)
    return SparseCodes(rows, features[rows, column], values[rows, column].float(), len(pre))


def threshold_codes(pre: Tensor, threshold: Tensor) -> SparseCodes:
    """The entries of `pre` [n, d_sae] above `threshold` ([d_sae] or [], 0 or more), as sparse codes."""
    if pre.device.type == "cpu" and pre.dtype == torch.float32:
        dense = pre.detach().numpy()
        flat = np.flatnonzero(dense > threshold.numpy())
        row = flat // pre.shape[1]
        column, values = flat - row * pre.shape[1], dense.reshape(-1)[flat]
        return SparseCodes(torch.from_numpy(row), torch.from_numpy(column), torch.from_numpy(values), len(pre))
    rows, features = (pre > threshold).nonzero(as_tuple=True)
    return SparseCodes(rows, features, pre[rows, features].float(), len(pre))


def _topk_numpy(pre: np.ndarray, k: int) -> SparseCodes:
    """`topk_codes` in numpy, three to four times as fast as torch.topk. The k-th largest of the maxima of ~8k groups is
    a lower bound of the k-th largest value, and only about k entries of a row reach it. numpy sorts small float rows
    with SIMD."""
    n, d_sae = pre.shape
    size = max(1, d_sae // (8 * k))
    groups = d_sae // size
    maxima = pre if size == 1 else pre[:, : size * groups].reshape(n, size, groups).max(1)
    bound = np.maximum(np.sort(maxima, axis=1)[:, groups - k], _SMALLEST)
    flat = np.flatnonzero(pre >= bound[:, None])
    values, rows = pre.reshape(-1)[flat], flat // d_sae
    counts = np.bincount(rows, minlength=n)
    if counts.max(initial=0) > k:
        keep = _largest(values, rows, counts, k)
        flat, values, rows = flat[keep], values[keep], rows[keep]
    return SparseCodes(
        torch.from_numpy(rows), torch.from_numpy(flat - rows * d_sae), torch.from_numpy(np.ascontiguousarray(values)), n
    )


def _largest(values: np.ndarray, rows: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    """The positions, ascending, of each row's k largest `values`. Of equal values the first are taken."""
    width = int(counts.max())
    column = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    padded = np.full((len(counts), width), -np.inf, np.float32)
    padded[rows, column] = values
    last = np.sort(padded, axis=1)[:, width - k]
    keep = values >= last[rows]
    tied = np.flatnonzero(np.bincount(rows[keep], minlength=len(counts)) > k)
    if len(tied):
        surplus = np.argsort(-padded[tied], axis=1, kind="stable")[:, k:]
        dropped = np.zeros((len(counts), width), dtype=bool)
        dropped[tied[:, None], surplus] = True
        keep &= ~dropped[rows, column]
    return np.flatnonzero(keep)
