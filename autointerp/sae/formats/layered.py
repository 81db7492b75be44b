"""The formats of cross-layer transcoders, whose files hold several source layers: several dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp.errors import InputError
from autointerp.sae.formats import circuit_tracer_clt, gemma_scope_2_clt, llamascopium_clt
from autointerp.sae.sae import Sae


@dataclass(frozen=True, slots=True)
class LayeredFormat:
    load: Callable[[Path, int], Sae]
    identity: Callable[[Path, int], tuple[dict[str, Any], list[Path]]]
    recognises: Callable[[Path], bool]


LAYERED = {
    "circuit_tracer_clt": LayeredFormat(
        circuit_tracer_clt.load, circuit_tracer_clt.identity, circuit_tracer_clt.recognises
    ),
    "llamascopium_clt": LayeredFormat(llamascopium_clt.load, llamascopium_clt.identity, llamascopium_clt.recognises),
    "gemma_scope_2_clt": LayeredFormat(
        gemma_scope_2_clt.load, gemma_scope_2_clt.identity, gemma_scope_2_clt.recognises
    ),
}


def recognised(folder: Path) -> str | None:
    """The format of a folder of source layers; None where it is none."""
    return next((name for name, format in LAYERED.items() if format.recognises(folder)), None)


def checked_layer(path: Path, format: str, source_layer: int | None) -> int:
    """The source layer to read. Raises InputError where none is named."""
    if source_layer is None:
        raise InputError(
            f"{path} is a cross-layer transcoder ({format}) with features for each of several source layers; set "
            "sae.source_layers to their number, or sae.source_layer to one of them"
        )
    return source_layer


def refuse_layer(path: Path, format: str, source_layer: int | None) -> None:
    """Raise InputError where a source layer is named for files that have none."""
    if source_layer is not None:
        raise InputError(f"{path} ({format}) has no source layers; remove sae.source_layers and sae.source_layer")
