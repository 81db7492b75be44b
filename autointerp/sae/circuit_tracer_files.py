"""Writes transcoders as circuit-tracer reads a set of them: one `layer_N.safetensors` a layer.

    W_enc [d_sae, d]   b_enc [d_sae]   W_dec [d_sae, d]   b_dec [d]
    activation_function.threshold [d_sae]   where it is JumpReLU; without it the activation is ReLU
    W_skip [d, d]                           used as x W_skip^T, so ours transposed

Nothing is subtracted from the input, and JumpReLU with a threshold below 0 lets values below 0 through. Its loader
knows no choice of k: a file of a TopK transcoder would be taken for ReLU, and many more features would be active than
k. So those are refused.
"""

from __future__ import annotations

from pathlib import Path

import torch

from autointerp.errors import InputError
from autointerp.sae.files import read_tensors, write_tensors
from autointerp.sae.formats import internal
from autointerp.sae.sae import Sae


class SetFiles:
    """The files of one set, layer by layer; `finish` makes them fit each other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first: tuple[str, int, int] | None = None
        """Name, width and number of features of the first one."""
        self._files: dict[Path, bool] = {}
        """Whether each has a skip matrix."""

    def add(self, layer: int, name: str, sae: Sae) -> None:
        """Writes one transcoder. Raises InputError for what circuit-tracer has no form for, and DiskFullError."""
        _check_form(name, sae)
        first, d_in, d_sae = self._first = self._first or (name, sae.d_in, sae.d_sae)
        if (sae.d_in, sae.d_sae) != (d_in, d_sae):
            raise InputError(
                f"all transcoders of a set have the same sizes, but {first} has {d_sae:,} features of width {d_in} and "
                f"{name} has {sae.d_sae:,} of {sae.d_in}"
            )
        tensors = {
            "W_enc": sae.W_enc.T,
            "b_enc": internal.b_enc_without_pre_bias(sae),
            "W_dec": internal.file_W_dec(sae),
            "b_dec": sae.b_dec,
        }
        assert sae.threshold is not None
        if not sae.relu or bool(sae.threshold.any()):
            tensors["activation_function.threshold"] = sae.threshold
        if sae.W_skip is not None:
            tensors["W_skip"] = sae.W_skip.T
        path = self._folder / f"layer_{layer}.safetensors"
        write_tensors(path, {key: tensor.float() for key, tensor in tensors.items()})
        self._files[path] = sae.W_skip is not None

    def finish(self) -> None:
        """Where some transcoders have a skip matrix, gives the others one of zeros: circuit-tracer asks the first one
        whether all have it."""
        if not any(self._files.values()):
            return
        for path in (path for path, has_skip in self._files.items() if not has_skip):
            tensors = read_tensors(path)
            d = len(tensors["b_dec"])
            write_tensors(path, {**tensors, "W_skip": torch.zeros(d, d)})


def _check_form(name: str, sae: Sae) -> None:
    if sae.k is not None:
        raise InputError(
            f"{name} is a TopK transcoder (k = {sae.k}), and circuit-tracer's files hold ReLU and JumpReLU: it would "
            "read this one as ReLU, with other activations. Export it to sparsify, or train one with architecture "
            "batchtopk or jumprelu"
        )
    is_jump = sae.threshold is not None and sae.pursuit is None and sae.W_glu is None
    if not is_jump:  # a JumpReLU of circuit-tracer lets values below 0 through, too
        internal.check_plain(sae, "circuit-tracer")
    if sae.normalize != "none":
        raise InputError(f"{name} scales each input vector by itself ({sae.normalize}), which circuit-tracer cannot")
    if sae.d_in != sae.d_out:
        raise InputError(
            f"{name} reads {sae.d_in} and writes {sae.d_out} numbers; in circuit-tracer both are the width of the model"
        )
