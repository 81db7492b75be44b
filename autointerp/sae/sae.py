"""The sparse autoencoder or transcoder: encode a vector of activations into a few active features, decode them.

    u = norm(x)      pre = (u - b_pre) W_enc + b_enc      f = act(pre)      y_hat = f W_dec + b_dec + u W_skip

An SAE reconstructs what it reads (b_pre is b_dec). A transcoder reconstructs another module's activations (b_pre is 0,
and y_hat may have the skip term). Whatever its family in training, a finished dictionary chooses in one of three ways:

    k features           f = relu(pre), the k largest of a row
    above a threshold    f_i = pre_i where pre_i > max(threshold_i, 0): ReLU (thresholds of 0), JumpReLU, BatchTopK and
                         Matryoshka in inference, and Gated, whose gate is a threshold on its magnitude
    matching pursuit     one after the other (see pursuit.py)

W_dec has unit rows, so a feature's activation is the length of what it adds to the reconstruction, and activations can
be compared between features. Thresholds are scaled along with the rows. A choice of k cannot be, so `row_norms` keeps
the rows' original norms:

    f_i = topk(relu(pre))_i * row_norms_i

`normalize` is for dictionaries that scale each input vector by its own numbers; f is then in the scaled units.

Some dictionaries choose without a ReLU (`relu=False`). Of the values that they choose, those below 0 are part of y_hat
too, but a feature counts as active, and has an activation, only where its value is positive. `completed` adds the rest.
A gated linear unit (`W_glu`) multiplies pre by sigmoid((u - b_pre) W_glu + b_glu).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autointerp.errors import InputError
from autointerp.sae import codes
from autointerp.sae.codes import SparseCodes
from autointerp.sae.long_vectors import is_ordinary, saved_limit
from autointerp.sae.pursuit import Pursuit, pursue

Normalize = Literal["none", "layer_norm", "constant_norm"]
_LAYER_NORM_EPS = 1e-5
INPUT_SCALE = "input_scale"
"""In the metadata: the number by which the file's dictionary multiplies what it reads (and an SAE what it writes),
where its reader has folded one into the weights."""
GATED_BY_NORM = "gated_by_norm"
"""In the metadata: whether the file's dictionary chooses features by the pre-activation times their row's length."""


class Sae(nn.Module):
    """A trained SAE or transcoder. Shapes: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_out], b_dec [d_out].

    Exactly one of `k`, `threshold` [d_sae] and `pursuit` is given and says how features are chosen. `b_pre` [d_in] is
    b_dec by default; `W_skip` is [d_in, d_out], `W_glu` [d_in, d_sae] and `b_glu` [d_sae]. `architecture` only names
    the family in which it was trained. Raises InputError when the shapes, k or the threshold do not fit together.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_pre: Tensor
    threshold: Tensor | None
    row_norms: Tensor | None
    W_skip: Tensor | None
    W_glu: Tensor | None
    b_glu: Tensor | None
    file_norms: Tensor | None

    def __init__(
        self,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        *,
        k: int | None = None,
        threshold: Tensor | None = None,
        architecture: str = "topk",
        row_norms: Tensor | None = None,
        b_pre: Tensor | None = None,
        W_skip: Tensor | None = None,
        normalize: Normalize = "none",
        relu: bool = True,
        pursuit: Pursuit | None = None,
        W_glu: Tensor | None = None,
        b_glu: Tensor | None = None,
    ) -> None:
        super().__init__()
        optional = {"b_pre": b_pre, "W_skip": W_skip, "threshold": threshold, "W_glu": W_glu, "b_glu": b_glu}
        _check_shapes(W_enc, b_enc, W_dec, b_dec, {name: t for name, t in optional.items() if t is not None})
        d_sae = W_enc.shape[1]
        if [k is None, threshold is None, pursuit is None].count(False) != 1:
            raise InputError("an SAE chooses its features either by k, by thresholds or by pursuit; give one of them")
        if k is not None and not 1 <= k <= d_sae:
            raise InputError(f"k = {k} features cannot be active in an SAE of {d_sae}")
        self.architecture, self.k, self.normalize = architecture, k, normalize
        self.relu, self.pursuit = relu, pursuit
        self.metadata: dict[str, Any] = {}
        """What the file of a loaded SAE says about model and hook point, how long a vector it was trained on
        (long_vectors.LIMIT), which L0 and FVU it declares (formats/declared.py), and by which conventions it was
        brought into this form (readings.py)."""
        for name, value in (("W_enc", W_enc), ("b_enc", b_enc), ("W_dec", W_dec), ("b_dec", b_dec)):
            self.register_buffer(name, value.detach().contiguous())
        self.register_buffer("b_pre", self.b_dec if b_pre is None else b_pre.detach())
        if threshold is not None:
            threshold = threshold.detach().clamp_min(0) if relu else threshold.detach()
        self.register_buffer("threshold", threshold)
        self.register_buffer("row_norms", row_norms)
        self.register_buffer("W_skip", None if W_skip is None else W_skip.detach())
        self.register_buffer("W_glu", None if W_glu is None else W_glu.detach())
        self.register_buffer("b_glu", None if b_glu is None else b_glu.detach())
        self.register_buffer("file_norms", None, persistent=False)  # lengths of the decoder rows in the file, if known

    @property
    def longest(self) -> float | None:
        """No feature is active on a vector that is longer; None: there is no limit. Raises DamagedError where the file
        names something else than a length."""
        return saved_limit(self.metadata)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    def normalized(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(u, scale, mean) with x = u * scale + mean, for x [..., d_in]; scale and mean are [..., 1] or None."""
        x = x.to(self.W_enc.dtype)
        if self.normalize == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            scale = x.std(-1, keepdim=True) + _LAYER_NORM_EPS
            return (x - mean) / scale, scale, mean
        if self.normalize == "constant_norm":
            scale = x.norm(dim=-1, keepdim=True) / math.sqrt(self.d_in)
            return x / scale, scale, None
        return x, None, None

    def pre_activations(self, u: Tensor) -> Tensor:
        """(u - b_pre) W_enc + b_enc for normalised vectors u [..., d_in], times its gate where there is one:
        [..., d_sae]."""
        pre = (u - self.b_pre) @ self.W_enc + self.b_enc
        if self.W_glu is None or self.b_glu is None:
            return pre
        return pre * torch.sigmoid((u - self.b_pre) @ self.W_glu + self.b_glu)

    def encode(self, x: Tensor) -> Tensor:
        """The activations [..., d_sae], zero where a feature is silent. Differentiable in x. For many vectors use
        `encode_sparse`, which does not keep the dense matrix."""
        activations = self._dense(self.normalized(x)[0])
        if self.longest is not None:
            activations = activations * is_ordinary(x, self.longest).unsqueeze(-1)
        return activations if self.row_norms is None else activations * self.row_norms

    def _dense(self, u: Tensor) -> Tensor:
        """`encode` before the lengths of the decoder's rows and of the vectors count."""
        if self.pursuit is not None:
            return self._pursued(u.reshape(-1, self.d_in), self.pursuit).reshape(*u.shape[:-1], self.d_sae)
        pre = self.pre_activations(u)
        if self.threshold is not None:
            found = pre * (pre > self.threshold)
            return found if self.relu else found.relu()
        assert self.k is not None
        value, index = pre.topk(self.k, dim=-1, sorted=False)
        zeros = torch.zeros(*u.shape[:-1], self.d_sae, dtype=value.dtype, device=u.device)
        return zeros.scatter(-1, index, value.relu())

    def _pursued(self, u: Tensor, rule: Pursuit) -> Tensor:
        rows = self.W_dec if self.row_norms is None else self.W_dec * self.row_norms.unsqueeze(1)
        return pursue(u - self.b_pre, self.W_enc, rows, rule)

    @torch.no_grad()
    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """The positive activations of x [n, d_in] (any float dtype), ordered by row. Raises InputError when the width
        is not d_in."""
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise InputError(f"the SAE reads vectors of {self.d_in} numbers, not a tensor of shape {list(x.shape)}")
        if len(x) == 0:
            none = torch.zeros(0, dtype=torch.int64, device=x.device)
            return SparseCodes(none, none, torch.zeros(0, device=x.device), 0)
        blocks = codes.row_blocks(x, self.d_sae)
        active = codes.join([self._chosen(self.normalized(block)[0]) for block in blocks])
        if self.longest is not None:
            kept = is_ordinary(x, self.longest)[active.rows]
            if not bool(kept.all()):
                rows, features, values = active.rows[kept], active.features[kept], active.values[kept]
                active = dataclasses.replace(active, rows=rows, features=features, values=values)
        if self.row_norms is None:
            return active
        values = active.values * self.row_norms[active.features]
        kept = values > 0  # a decoder row of zeros makes its activation 0
        return dataclasses.replace(active, rows=active.rows[kept], features=active.features[kept], values=values[kept])

    def _chosen(self, u: Tensor) -> SparseCodes:
        if self.pursuit is not None:
            return codes.threshold_codes(self._pursued(u, self.pursuit), torch.zeros((), device=u.device))
        pre = self.pre_activations(u)
        if self.threshold is not None:
            return codes.threshold_codes(pre, self.threshold if self.relu else self.threshold.clamp_min(0))
        assert self.k is not None
        return codes.topk_codes(pre, self.k)

    def decode(self, activations: Tensor) -> Tensor:
        """f W_dec + b_dec for dense activations [..., d_sae]: [..., d_out]. `reconstruct` adds the rest of y_hat."""
        return activations @ self.W_dec + self.b_dec

    def decode_sparse(self, sparse: SparseCodes) -> Tensor:
        """f W_dec + b_dec for sparse codes: [n_rows, d_out]."""
        return codes.decode(sparse, self.W_dec) + self.b_dec

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> tuple[Tensor, SparseCodes]:
        """y_hat [n, d_out] for x [n, d_in], in the units of what is reconstructed, and the codes it was made from."""
        active = self.encode_sparse(x)
        return self.completed(self.decode_sparse(active), x), active

    def completed(self, decoded: Tensor, x: Tensor) -> Tensor:
        """y_hat from `decoded`: adds what x gives besides its activations (the skip term, and chosen values below 0)
        and undoes each vector's own scaling."""
        if self.W_skip is None and self.normalize == "none" and self.relu:
            return decoded
        u, scale, mean = self.normalized(x)
        if self.W_skip is not None:
            decoded = decoded + u @ self.W_skip
        if not self.relu:
            decoded = decoded + self._below_zero(u, x)
        if scale is not None:
            decoded = decoded * scale
        return decoded if mean is None else decoded + mean

    def _below_zero(self, u: Tensor, x: Tensor) -> Tensor:
        """What the chosen values below 0 add to the reconstruction: [..., d_out]."""
        blocks = codes.row_blocks(u.reshape(-1, self.d_in), self.d_sae)
        found = [self._negative(self.pre_activations(block)) for block in blocks]
        added = torch.cat(found).reshape(*u.shape[:-1], self.d_out)
        return added if self.longest is None else added * is_ordinary(x, self.longest).unsqueeze(-1)

    def _negative(self, pre: Tensor) -> Tensor:
        if self.threshold is not None:
            return (pre * (pre > self.threshold)).clamp_max(0) @ self.W_dec
        assert self.k is not None
        return codes.decode_negative(pre, self.k, self.row_norms, self.W_dec)

    def forward(self, x: Tensor) -> Tensor:
        """y_hat [..., d_out] for x [..., d_in]."""
        return self.completed(self.decode(self.encode(x)), x)


def _check_shapes(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, optional: dict[str, Tensor]) -> None:
    given = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec} | optional
    good = W_enc.ndim == 2 and W_dec.ndim == 2
    if good:
        (d_in, d_sae), d_out = W_enc.shape, W_dec.shape[1]
        expected = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
        expected |= {"b_pre": (d_in,), "W_skip": (d_in, d_out), "threshold": (d_sae,)}
        expected |= {"W_glu": (d_in, d_sae), "b_glu": (d_sae,)}
        good = all(tuple(tensor.shape) == expected[name] for name, tensor in given.items())
        good = good and (d_in == d_out or "b_pre" in given) and ("W_glu" in given) == ("b_glu" in given)
    if not good:
        listed = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in given.items())
        raise InputError(
            f"the SAE's tensors do not fit together: {listed}; expected W_enc [d_in, d_sae], b_enc [d_sae], "
            "W_dec [d_sae, d_out], b_dec [d_out], and b_pre [d_in] where d_in is not d_out"
        )
