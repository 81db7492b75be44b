"""A cross-layer transcoder as a whole: all its source layers, whose sum is its reconstruction.

One source layer alone reconstructs nothing: what stands at layer j is explained by the features of all layers up to j.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from autointerp.errors import InputError
from autointerp.sae.codes import SparseCodes
from autointerp.sae.sae import Sae


class Dictionary(Protocol):
    """What a reconstruction is measured of: an SAE, a transcoder, or a cross-layer transcoder as a whole."""

    @property
    def d_in(self) -> int: ...
    @property
    def d_sae(self) -> int: ...
    @property
    def d_out(self) -> int: ...
    @property
    def longest(self) -> float | None: ...
    @property
    def device(self) -> torch.device: ...
    def reconstruct(self, x: Tensor) -> tuple[Tensor, SparseCodes]:
        """y_hat [n, d_out] of x [n, d_in], and the codes it was made from."""
        ...


class WholeClt:
    """Reads what all source layers read, side by side, and writes what all target layers hold, side by side. Feature f
    of source layer i is number i * d_sae + f. Raises InputError where the layers are not those of one transcoder."""

    def __init__(self, sources: Sequence[Sae]) -> None:
        """`sources`: the source layers in their order, all of them."""
        self.sources = tuple(sources)
        n, first = len(self.sources), self.sources[0]
        self._width_out = first.d_out // n
        for layer, sae in enumerate(self.sources):
            same = (sae.d_in, sae.d_sae, sae.d_out) == (first.d_in, first.d_sae, (n - layer) * self._width_out)
            if not same or sae.metadata.get("source_layer") != layer:
                raise InputError(
                    f"source layer {layer} of {n} reads {sae.d_in} and writes {sae.d_out} numbers, and layer 0 reads "
                    f"{first.d_in} and writes {first.d_out}; they are not the layers of one transcoder"
                )

    @property
    def d_in(self) -> int:
        return sum(sae.d_in for sae in self.sources)

    @property
    def d_sae(self) -> int:
        return sum(sae.d_sae for sae in self.sources)

    @property
    def d_out(self) -> int:
        return self.sources[0].d_out

    @property
    def longest(self) -> float | None:
        return None  # no tool that trains them has a limit

    @property
    def device(self) -> torch.device:
        return self.sources[0].device

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> tuple[Tensor, SparseCodes]:
        y_hat = torch.zeros(len(x), self.d_out, device=x.device)
        found: list[SparseCodes] = []
        for layer, (sae, read) in enumerate(zip(self.sources, x.split(self.sources[0].d_in, dim=1), strict=True)):
            part, active = sae.reconstruct(read)
            y_hat[:, layer * self._width_out :] += part
            found.append(active)
        rows = torch.cat([active.rows for active in found])
        features = torch.cat([c.features + layer * self.sources[0].d_sae for layer, c in enumerate(found)])
        order = torch.argsort(rows, stable=True)
        values = torch.cat([active.values for active in found])
        return y_hat, SparseCodes(rows[order], features[order], values[order], len(x))
