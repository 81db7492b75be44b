"""Evaluates cross-layer transcoders as a whole.

One source layer alone reconstructs nothing, so its own figures of reconstruction would be meaningless. They are left
out, and those of all source layers together stand in their place: the same ones for each source layer, with names that
begin with `clt_`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autointerp.config import SaeConfig
from autointerp.errors import InputError
from autointerp.evaluate.part_sums import KEPT
from autointerp.evaluate.structural import StructuralResult
from autointerp.model.hooks import Hookpoint
from autointerp.sae.whole_clt import WholeClt
from autointerp.stages.session import Session, loaded_sae

Row = Mapping[str, Any]
RECONSTRUCTION = frozenset(
    {"fvu", "explained_variance", "mse", "cosine", "l2_ratio", "relative_bias", "error_norm_share", "fvu_all_tokens"}
)
"""The figures that say nothing of one source layer."""
Measure = Callable[[WholeClt, Hookpoint, Hookpoint], StructuralResult]
"""Evaluates a transcoder that reads and writes these hookpoints."""


def of_source_layer(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that say something of one source layer: how often its features are active, and how they are directed."""
    per_part = tuple(f"{name} [" for name in KEPT)
    return [row for row in rows if row["metric"] not in RECONSTRUCTION and not row["metric"].startswith(per_part)]


class WholeClts:
    """The cross-layer transcoders of a configuration, each of which is evaluated once."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._found: dict[tuple[str | None, str], StructuralResult | InputError] = {}

    def result(self, sae: SaeConfig, measure: Measure, text: str) -> StructuralResult | InputError:
        """The figures of the transcoder that `sae` is a source layer of, on the text of that name; or why there are
        none."""
        key = sae.path, text
        if key not in self._found:
            try:
                self._found[key] = measure(*self._whole(sae))
            except InputError as error:  # source layers that are missing, or too little memory for all of them
                self._found[key] = error
        return self._found[key]

    def _whole(self, sae: SaeConfig) -> tuple[WholeClt, Hookpoint, Hookpoint]:
        """The transcoder, and what it reads and writes. Raises InputError where a source layer has no table, or where
        the layers do not write the same hookpoints."""
        tables = {
            one.source_layer: one
            for one in self.session.config.sae
            if one.path == sae.path and one.format == sae.format and one.source_layer is not None
        }
        first = loaded_sae(self.session, sae)[0]
        n = int(first.metadata["source_layers"])
        missing = [layer for layer in range(n) if layer not in tables]
        if missing:
            raise InputError(
                f"{sae.dictionary} is one of {n} source layers, and no [[sae]] table is for layer {missing[0]}; set "
                f"sae.source_layers = {n}"
            )
        points = [self.session.points(tables[layer]) for layer in range(n)]
        read = Hookpoint.joined([point for point, _ in points])
        written = points[0][1] or points[0][0]
        for layer, (_, output) in enumerate(points):
            if output is None or output.parts != written.parts[layer:]:
                raise InputError(
                    f"{tables[layer].dictionary} writes {output}, and not what {tables[0].dictionary} writes from "
                    f"layer {layer} on; the hookpoints of one cross-layer transcoder must be the same in all its tables"
                )
        return WholeClt([loaded_sae(self.session, tables[layer])[0] for layer in range(n)]), read, written
