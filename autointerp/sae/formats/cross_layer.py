"""Cross-layer transcoders: how one source layer of any of their formats becomes a Sae.

Features of source layer i read one hookpoint of layer i and write to the hookpoints of layers i, i+1, ..., L-1:

    y_hat_j = sum over sources i <= j of f_i W_dec_i,j  +  b_dec_j  +  u_j W_skip_j

A Sae holds one source layer. It writes a joined vector, whose parts are the target layers from i on; b_dec_j and
W_skip_j belong to the source layer j itself, so that the sum over all source layers is y_hat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from autointerp.errors import DamagedError, InputError
from autointerp.sae import files
from autointerp.sae.formats import internal
from autointerp.sae.formats.load_memory import BYTES_PER_NUMBER, require_memory
from autointerp.sae.sae import Sae

ARCHITECTURE = "cross_layer_transcoder"


@dataclass(frozen=True, slots=True)
class Source:
    """One source layer, in raw-input and raw-output units."""

    layer: int
    n_layers: int
    W_enc: Tensor
    """[d, d_sae]"""
    b_enc: Tensor
    """[d_sae]"""
    decoder: Tensor
    """[d_sae, n_layers - layer, d]: what a feature writes to its own layer, then to each later one."""
    b_dec: Tensor
    """[d]: the bias of its own layer's reconstruction."""
    threshold: Tensor | None = None
    """[d_sae]; None where the k largest are chosen."""
    k: int | None = None
    W_skip: Tensor | None = None
    """[d, d]: from what is read at its own layer to what is written there."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def sae(self) -> Sae:
        d_sae, n_targets, width = self.decoder.shape
        b_dec = torch.zeros(n_targets * width)
        b_dec[:width] = self.b_dec
        W_skip = None
        if self.W_skip is not None:
            W_skip = torch.zeros(len(self.W_enc), n_targets * width)
            W_skip[:, :width] = self.W_skip
        return internal.build(
            self.W_enc,
            self.b_enc,
            self.decoder.reshape(d_sae, n_targets * width),
            b_dec,
            k=self.k,
            threshold=self.threshold,
            b_pre=torch.zeros(len(self.W_enc)),
            W_skip=W_skip,
            relu=self.threshold is None or bool((self.threshold >= 0).all()),  # below 0 lets values below 0 through
            architecture=ARCHITECTURE,
            metadata={**self.metadata, "source_layer": self.layer, "source_layers": self.n_layers},
        )


def check_layer(layer: int, n_layers: int, path: Path) -> None:
    """Raise InputError for a source layer that the files do not have."""
    if layer >= n_layers:
        raise InputError(
            f"{path} has the source layers 0 to {n_layers - 1}, so there is no layer {layer}; set sae.source_layers = "
            f"{n_layers}"
        )


class Tensors:
    """The tensors of one safetensors file, of which only those are read, whole or in part, that are asked for. A
    cross-layer transcoder may be many times as large as one of its source layers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = files.read_header(path)
        self.shapes: dict[str, list[int]] = {}
        for name, entry in header.items():
            shape = entry.get("shape") if isinstance(entry, dict) else None
            if name != "__metadata__" and isinstance(shape, list) and all(isinstance(n, int) for n in shape):
                self.shapes[name] = shape

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def shape(self, name: str, *wanted: int | None) -> list[int]:
        """The shape of a tensor, which must be as wanted, where that is a number. Raises DamagedError."""
        if name not in self.shapes:
            raise DamagedError(f"{self.path} lacks {name} (it holds: {', '.join(sorted(self.shapes)) or 'nothing'})")
        shape = self.shapes[name]
        fits = len(shape) == len(wanted) and all(w is None or n == w for n, w in zip(shape, wanted, strict=True))
        if not fits or 0 in shape:
            expected = ", ".join("any" if n is None else str(n) for n in wanted)
            raise DamagedError(f"{self.path}: {name} has shape {shape}, but [{expected}] was expected")
        return shape

    def get(self, name: str, *wanted: int | None, index: Any = ...) -> Tensor:
        """The tensor `name`, or a part of it, in float32. Raises DamagedError where it is missing, has another shape,
        or holds what is no finite number, and InputError where the memory does not suffice."""
        shape = self.shape(name, *wanted)
        n_numbers = 1
        for n in shape[1:] if isinstance(index, int) else shape:
            n_numbers *= n
        require_memory(self.path, n_numbers * BYTES_PER_NUMBER)
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                found = file.get_slice(name)[index] if shape else file.get_tensor(name)
        except (SafetensorError, ValueError, RuntimeError, IndexError) as error:
            raise DamagedError(f"{self.path} is damaged: {error}; copy it again") from error
        return internal.checked({name: found}, {name: found.shape}, self.path, "the file")[name]
