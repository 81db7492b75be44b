"""How well a dictionary reconstructs each part of a joined hookpoint by itself.

The figures of all parts together are mostly those of the part with the longest vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from autointerp.evaluate.document_sums import Metric
from autointerp.evaluate.reconstruction import Reconstruction
from autointerp.model.hooks import Hookpoint, part_columns
from autointerp.model.load import LoadedModel
from autointerp.sae.codes import SparseCodes

KEPT = ("fvu", "cosine")


class PartSums:
    """Sums over the tokens of each part, from which `fvu [PART]` and `cosine [PART]` come. Without parts, nothing."""

    def __init__(self, loaded: LoadedModel, point: Hookpoint) -> None:
        spans = part_columns(loaded, point) if point.others else []
        self._parts = [(part, span, Reconstruction(1)) for part, span in zip(point.parts, spans, strict=False)]

    def add(self, split: str, documents: Sequence[str], window: Tensor, y: Tensor, y_hat: Tensor) -> None:
        """The tokens of one batch; see `Reconstruction.add`."""
        none = torch.zeros(0, dtype=torch.int64, device=y.device)
        silent = SparseCodes(none, none, torch.zeros(0, device=y.device), len(y))
        for _, (begin, end), sums in self._parts:
            sums.add(split, documents, window, y[:, begin:end], y_hat[:, begin:end], silent)

    def metrics(self, split: str | None, seed: int) -> list[Metric]:
        """The figures of one split, or of all together (None)."""
        return [
            replace(metric, metric=f"{metric.metric} [{part}]")
            for part, _, sums in self._parts
            for metric in sums.metrics(split, seed)
            if metric.metric in KEPT
        ]
