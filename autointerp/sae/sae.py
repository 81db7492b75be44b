"""The sparse autoencoder: encode a vector of activations into a few active features, decode them again.

    pre = (x - b_dec) W_enc + b_enc      f = act(pre)      x_hat = f W_dec + b_dec

Everything is in raw-input units (no scaling of x before or after) and W_dec has unit rows, so a feature's activation
is the length of what it adds to the reconstruction, and activations can be compared between features. A dictionary
trained without unit rows chooses its k features before that scaling; `row_norms` keeps what its rows measured:

    f_i = topk(relu(pre))_i * row_norms_i
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from autointerp.errors import InputError
from autointerp.sae import codes
from autointerp.sae.codes import SparseCodes

ARCHITECTURES = ("topk",)


class Sae(nn.Module):
    """A trained SAE. Shapes: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_out], b_dec [d_out] (= d_in here).

    Raises InputError where the shapes, the architecture or k do not fit together.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    row_norms: Tensor | None

    def __init__(
        self,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        *,
        k: int,
        architecture: str = "topk",
        row_norms: Tensor | None = None,
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise InputError(f"SAE architecture {architecture!r} is not known; known: {', '.join(ARCHITECTURES)}")
        shapes = {"W_enc": W_enc.shape, "b_enc": b_enc.shape, "W_dec": W_dec.shape, "b_dec": b_dec.shape}
        good = W_enc.ndim == 2 and W_dec.shape == W_enc.shape[::-1]
        if not (good and b_enc.shape == W_enc.shape[1:] and b_dec.shape == W_dec.shape[1:]):
            listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise InputError(
                f"the SAE's tensors do not fit together: {listed}; expected W_enc [d_in, d_sae], b_enc [d_sae], "
                "W_dec [d_sae, d_in], b_dec [d_in]"
            )
        if not 1 <= k <= W_enc.shape[1]:
            raise InputError(f"k = {k} features cannot be active in an SAE of {W_enc.shape[1]}")
        self.architecture, self.k = architecture, k
        self.metadata: dict[str, Any] = {}
        """Of a loaded SAE: what its file says about model and hook point."""
        for name, value in (("W_enc", W_enc), ("b_enc", b_enc), ("W_dec", W_dec), ("b_dec", b_dec)):
            self.register_buffer(name, value.detach().contiguous())
        self.register_buffer("row_norms", row_norms)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    def pre_activations(self, x: Tensor) -> Tensor:
        """(x - b_dec) W_enc + b_enc for x [..., d_in]: [..., d_sae]."""
        return (x.to(self.W_enc.dtype) - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        """Activations [..., d_sae], zero where a feature is silent. Differentiable in x; for many vectors use
        `encode_sparse`, which never makes the dense matrix."""
        value, index = self.pre_activations(x).topk(self.k, dim=-1, sorted=False)
        zeros = torch.zeros(*x.shape[:-1], self.d_sae, dtype=value.dtype, device=x.device)
        activations = zeros.scatter(-1, index, value.relu())
        return activations if self.row_norms is None else activations * self.row_norms

    @torch.no_grad()
    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """The positive activations of x [n, d_in] (any float dtype), in the order of rows. Raises InputError where the
        width is not d_in."""
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise InputError(f"the SAE reads vectors of {self.d_in} numbers, not a tensor of shape {list(x.shape)}")
        if len(x) == 0:
            none = torch.zeros(0, dtype=torch.int64, device=x.device)
            return SparseCodes(none, none, torch.zeros(0, device=x.device), 0)
        blocks = codes.row_blocks(x, self.d_sae)
        active = codes.join([codes.topk_codes(self.pre_activations(block), self.k) for block in blocks])
        if self.row_norms is None:
            return active
        values = active.values * self.row_norms[active.features]
        kept = values > 0  # a row of zeros decodes to nothing
        return dataclasses.replace(active, rows=active.rows[kept], features=active.features[kept], values=values[kept])

    def decode(self, activations: Tensor) -> Tensor:
        """x_hat of dense activations [..., d_sae]: [..., d_out]."""
        return activations @ self.W_dec + self.b_dec

    def decode_sparse(self, sparse: SparseCodes) -> Tensor:
        """x_hat of sparse codes: [n_rows, d_out]."""
        return codes.decode(sparse, self.W_dec) + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """x_hat of x [..., d_in]."""
        return self.decode(self.encode(x))
