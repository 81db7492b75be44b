"""What one forward pass changes so that each row's feature has its value: the edit of steering.py."""

from __future__ import annotations

import torch
from torch import Tensor

from autointerp.errors import InputError
from autointerp.model.hooks import Hookpoint
from autointerp.sae.sae import Sae


class Clamp:
    """Feature b clamped to value b in row b of a batch, at the positions of `counted` [B, T] (bool, on CPU).

    `read` is told once what the dictionary reads; then `written` gives what stands at each part of the hookpoint where
    it writes.
    """

    def __init__(self, sae: Sae, counted: Tensor, features: Tensor, values: Tensor) -> None:
        self.sae, self.n_tokens = sae, counted.numel()
        self.token = counted.flatten().nonzero()[:, 0]
        row, device = self.token // counted.shape[1], sae.W_enc.device
        self.feature, self.value = features[row].to(device), values[row].to(device)
        self._added: Tensor | None = None

    @property
    def is_empty(self) -> bool:
        return not len(self.token)

    @property
    def has_read(self) -> bool:
        return self._added is not None

    def read(self, x: Tensor) -> None:
        """x [B * T, d_in]: what the dictionary reads at every position."""
        device = self.sae.W_enc.device
        inputs = x[self.token.to(x.device)].to(device)
        activation = self.sae.encode_sparse(inputs).at(torch.arange(len(self.token), device=device), self.feature)
        push = self.value - activation
        scale = self.sae.normalized(inputs)[1]
        if scale is not None:
            push = push * scale[:, 0]
        self._added = push[:, None] * self.sae.W_dec[self.feature]

    def written(self, y: Tensor, columns: tuple[int, int], state: Tensor | None = None) -> Tensor:
        """y [B * T, d] with the feature's part in these columns of what the dictionary writes added. Where `state`
        [B * T, d] is given, it is added to that, and what stands in y at the positions that count is replaced."""
        assert self._added is not None
        added = self._added[:, slice(*columns)].to(y.device)
        token = self.token.to(y.device)
        start = y[token] if state is None else state.to(y.device)[token]
        out = y.clone()
        out[token] = (start.to(torch.promote_types(y.dtype, added.dtype)) + added).to(y.dtype)
        return out


def per_token(activation: Tensor, n_tokens: int, hookpoint: Hookpoint) -> Tensor:
    """[n_tokens, d] of an activation [B, T, d] (or [B * T, d], of experts and the like)."""
    if activation.ndim < 2 or activation.shape[:-1].numel() != n_tokens:
        raise InputError(f"hookpoint {hookpoint} does not carry one vector per token but {list(activation.shape)}")
    return activation.reshape(n_tokens, -1)
