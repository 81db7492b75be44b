"""Reads the cross-layer transcoders of Gemma Scope 2: one safetensors file for each source layer, which stands in the
name of the file or of its folder (`layer_3_width_...`).

    w_enc [d, d_sae]   b_enc, threshold [d_sae]   w_dec [d_sae, n_layers, d]   b_dec [d]   affine_skip_connection [d, d]

w_dec has a row for every layer of the model, of which those before the source layer mean nothing. The number of layers
is that of w_dec: it is not the highest layer number, which is one less. JumpReLU; b_dec is not subtracted from the
input; every text began with a BOS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import cross_layer, internal
from autointerp.sae.formats.cross_layer import Source, Tensors
from autointerp.sae.sae import Sae

CONFIG = "config.json"
_LAYER = re.compile(r"(?:^|[^a-z])layer_(\d{1,3})(?!\d)")


def load(folder: Path, layer: int) -> Sae:
    """One source layer. Raises InputError where the folder does not have it, and DamagedError."""
    tensors = Tensors(_file(folder, layer))
    d_sae, n_layers, width = tensors.shape("w_dec", None, None, None)
    cross_layer.check_layer(layer, n_layers, folder)
    skip = "affine_skip_connection"
    return Source(
        layer,
        n_layers,
        W_enc=tensors.get("w_enc", width, d_sae),
        b_enc=tensors.get("b_enc", d_sae),
        decoder=tensors.get("w_dec", d_sae, n_layers, width)[:, layer:],
        b_dec=tensors.get("b_dec", width),
        threshold=tensors.get("threshold", d_sae),
        W_skip=tensors.get(skip, width, width) if skip in tensors else None,
        metadata=_metadata(tensors.path),
    ).sae()


def identity(folder: Path, layer: int) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    return {"source_layer": layer}, [_file(folder, layer)]


def recognises(folder: Path) -> bool:
    """Whether the first file that names a layer writes several."""
    first = next(_named(folder), None)
    try:
        return first is not None and len(Tensors(first[1]).shapes.get("w_dec", ())) == 3
    except (InputError, DamagedError):  # whatever it is, its own reader will say what is wrong with it
        return False


def layers_of(folder: Path) -> dict[int, Path]:
    """The file of each source layer. Raises InputError where a layer has two."""
    found: dict[int, Path] = {}
    for layer, file in _named(folder):
        if layer in found:
            raise InputError(f"{folder} has two files for layer {layer}: {found[layer]} and {file}; name one folder")
        found[layer] = file
    return found


def _named(folder: Path) -> Iterator[tuple[int, Path]]:
    """The files whose name, or whose folder's name, has a layer."""
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]):
        named = _LAYER.search(file.stem) or (_LAYER.search(file.parent.name) if file.parent != folder else None)
        if named is not None:
            yield int(named[1]), file


def _file(folder: Path, layer: int) -> Path:
    found = layers_of(folder)
    if layer not in found:
        listed = ", ".join(map(str, sorted(found))) or "none"
        raise InputError(f"{folder} has no file for source layer {layer} (it has: {listed})")
    return found[layer]


def _metadata(file: Path) -> dict[str, Any]:
    path = next((p for p in (file.with_suffix(".json"), file.parent / CONFIG) if p.exists()), None)
    config = internal.read_config(path) if path is not None else {}
    found: dict[str, Any] = {"prepend_bos": True}
    if isinstance(config.get("model_name"), str):
        found["model_name"] = config["model_name"]
    if isinstance(config.get("l0"), (int, float)):
        found["declared"] = {"l0": float(config["l0"])}
    return found
