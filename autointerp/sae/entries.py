"""Autograd over the few (vector, feature) pairs that take part in a training step.

A family of SAEs chooses pairs from the pre-activations. All that follows reads only those pairs, and no gradient of
shape [batch, d_sae] is made. If more than DENSE_SHARE of all pairs take part, as in the first steps of the families
with a penalty, the dense products are used instead, which give the same numbers faster.

    pre = pre_activations(pairs, ...)     the chosen pre-activations [n], with gradients to the encoder and biases
    x_hat = decode(pairs, acts, decoder)  [n_rows, d_out], with gradients to acts and decoder
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.sae import codes
from autointerp.sae.codes import SparseCodes

DENSE_SHARE = 0.12
"""Measured on CPU at d = 256, d_sae = 2,048, where gathering rows costs about eight times as much per number."""


class Pairs:
    """The chosen pairs of one batch, ordered by row and then feature. The order that the backward pass needs is sorted
    once and kept."""

    def __init__(self, rows: Tensor, features: Tensor, n_rows: int, d_sae: int) -> None:
        self.rows, self.features, self.n_rows, self.d_sae = rows, features, n_rows, d_sae

    @classmethod
    def of(cls, active: SparseCodes, d_sae: int) -> Pairs:
        return cls(active.rows, active.features, active.n_rows, d_sae)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def row_starts(self) -> Tensor:
        """Where each row's pairs begin, [n_rows] int64."""
        return codes.starts(self.rows, self.n_rows)

    @cached_property
    def counts(self) -> Tensor:
        """The number of vectors on which each feature was chosen, [d_sae] int64."""
        return torch.bincount(self.features, minlength=self.d_sae)

    @cached_property
    def _by_feature(self) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs sorted by feature: (order, rows in that order, where each feature's pairs begin)."""
        # torch sorts narrow keys by radix sort
        key = self.features.to(torch.int16 if self.d_sae <= 1 << 15 else torch.int32)
        order = key.argsort(stable=True)
        return order, self.rows[order], F.pad(self.counts.cumsum(0), (1, 0))[:-1]

    @property
    def is_dense(self) -> bool:
        return len(self) > DENSE_SHARE * self.n_rows * self.d_sae

    def matrix(self, values: Tensor) -> Tensor:
        """A matrix [n_rows, d_sae] with `values` at the pairs and zeros elsewhere."""
        dense = values.new_zeros(self.n_rows * self.d_sae)
        dense[self.rows * self.d_sae + self.features] = values
        return dense.view(self.n_rows, self.d_sae)

    def sums_by_row(self, values: Tensor, vectors: Tensor) -> Tensor:
        """For each row, the sum over its pairs of values * vectors[feature]: [n_rows, d]."""
        if self.is_dense:
            return self.matrix(values) @ vectors
        return codes.weighted_sums(vectors, self.features, values, self.row_starts)

    def sums_by_feature(self, values: Tensor, vectors: Tensor) -> Tensor:
        """For each feature, the sum over its pairs of values * vectors[row]: [d_sae, d]."""
        if self.is_dense:
            return self.matrix(values).T @ vectors
        order, rows, begin = self._by_feature
        return codes.weighted_sums(vectors, rows, values[order], begin)

    def products(self, by_row: Tensor, by_feature: Tensor) -> Tensor:
        """For each pair, the dot product by_row[row] . by_feature[feature]: [n]."""
        if len(self) == 0:
            return by_row.new_zeros(0)
        if self.is_dense:
            return (by_row @ by_feature.T).view(-1)[self.rows * self.d_sae + self.features]
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            by_row.contiguous(), by_feature, self.features, self.row_starts, self.rows, 0
        )


class _PreActivations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, pairs: Pairs, centred: Tensor, encoder: Tensor, b_enc: Tensor, b_pre: Tensor
    ) -> Tensor:
        ctx.pairs = pairs
        ctx.save_for_backward(centred, encoder)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_pre,), pairs = grads, ctx.pairs
        centred, encoder = ctx.saved_tensors
        d_encoder = pairs.sums_by_feature(d_pre, centred) if ctx.needs_input_grad[3] else None
        d_b_enc = torch.zeros_like(encoder[:, 0]).index_add_(0, pairs.features, d_pre)
        d_b_pre = d_b_enc.neg() @ encoder if ctx.needs_input_grad[5] else None
        return None, None, None, d_encoder, d_b_enc, d_b_pre


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, decoder: Tensor, pairs: Pairs) -> Tensor:
        ctx.pairs = pairs
        ctx.save_for_backward(values, decoder)
        return pairs.sums_by_row(values, decoder)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_out,), pairs = grads, ctx.pairs
        values, decoder = ctx.saved_tensors
        d_values = pairs.products(d_out, decoder) if ctx.needs_input_grad[0] else None
        d_decoder = pairs.sums_by_feature(values, d_out) if ctx.needs_input_grad[1] else None
        return d_values, d_decoder, None


def pre_activations(
    pairs: Pairs, values: Tensor, centred: Tensor, encoder: Tensor, b_enc: Tensor, b_pre: Tensor
) -> Tensor:
    """`values` [n], which are the pairs' entries of centred @ encoder.T + b_enc, with gradients to encoder [d_sae,
    d_in], b_enc [d_sae] and b_pre [d_in]. `centred` = x - b_pre [n_rows, d_in] is held constant."""
    out: Tensor = _PreActivations.apply(values, pairs, centred, encoder, b_enc, b_pre)
    return out


def decode(pairs: Pairs, values: Tensor, decoder: Tensor) -> Tensor:
    """f @ decoder [n_rows, d_out], where f has the activations `values` [n] at the pairs; decoder is [d_sae, d_out]."""
    out: Tensor = _Decode.apply(values, decoder, pairs)
    return out
