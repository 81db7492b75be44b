"""Reads circuit-tracer's cross-layer transcoders: two files for each source layer i of L.

    W_enc_i.safetensors   W_enc_i [d_sae, d], b_enc_i [d_sae], b_dec_i [d]; JumpReLU: threshold_i [d_sae], else ReLU
    W_dec_i.safetensors   W_dec_i [d_sae, L - i, d]

b_dec is not subtracted from the input. circuit-tracer puts a BOS before every text and leaves no feature active on the
first position. BOS tokens never count here, so texts have to begin with one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from autointerp.config import JOINED
from autointerp.errors import InputError
from autointerp.sae.formats import cross_layer, yaml_config
from autointerp.sae.formats.cross_layer import Source, Tensors
from autointerp.sae.sae import Sae

CONFIG = "config.yaml"
_HOOKS = {"input": "hook_resid_mid", "output": "hook_mlp_out"}
"""Where it reads and writes in each layer, unless its configuration says otherwise."""


def load(folder: Path, layer: int) -> Sae:
    """One source layer. Raises InputError where the folder does not have it, or where features are chosen jointly over
    all layers; and DamagedError."""
    n_layers = _n_layers(folder)
    cross_layer.check_layer(layer, n_layers, folder)
    encoder, decoder = (Tensors(file) for file in _files(folder, layer))
    if f"b_enc_{layer}" not in encoder:
        raise InputError(
            f"{encoder.path} has no b_enc_{layer}. Cross-Layer-TopK transcoders have no biases: they keep the largest "
            "activations of all layers together, so whether a feature is active depends on the features of all other "
            "layers, and one layer cannot be read alone; that is not supported"
        )
    d_sae, width = encoder.shape(f"W_enc_{layer}", None, None)
    threshold = torch.zeros(d_sae)
    if f"threshold_{layer}" in encoder:
        threshold = encoder.get(f"threshold_{layer}", d_sae)
    return Source(
        layer,
        n_layers,
        W_enc=encoder.get(f"W_enc_{layer}", d_sae, width).T.contiguous(),
        b_enc=encoder.get(f"b_enc_{layer}", d_sae),
        decoder=decoder.get(f"W_dec_{layer}", d_sae, n_layers - layer, width),
        b_dec=encoder.get(f"b_dec_{layer}", width),
        threshold=threshold,
        metadata=_metadata(folder, layer, n_layers),
    ).sae()


def identity(folder: Path, layer: int) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    n_layers = _n_layers(folder)
    cross_layer.check_layer(layer, n_layers, folder)
    return {"source_layer": layer, "source_layers": n_layers}, list(_files(folder, layer))


def recognises(folder: Path) -> bool:
    return (folder / "W_enc_0.safetensors").exists()


def _n_layers(folder: Path) -> int:
    """The number of source layers. Raises InputError where one is missing between others."""
    found = {int(m[1]) for file in folder.iterdir() if (m := re.fullmatch(r"W_enc_(\d{1,4})\.safetensors", file.name))}
    missing = sorted(set(range(max(found, default=0) + 1)) - found)
    if missing:
        raise InputError(f"{folder} has no W_enc_{missing[0]}.safetensors; every source layer has such a file")
    return len(found)


def _files(folder: Path, layer: int) -> tuple[Path, Path]:
    return folder / f"W_enc_{layer}.safetensors", folder / f"W_dec_{layer}.safetensors"


def _metadata(folder: Path, layer: int, n_layers: int) -> dict[str, Any]:
    config = yaml_config.read(folder / CONFIG) if (folder / CONFIG).exists() else {}
    read, written = (config.get(f"feature_{side}_hook", hook) for side, hook in _HOOKS.items())
    targets = (f"blocks.{target}.{written}" for target in range(layer, n_layers))
    found = {
        "prepend_bos": True,
        "hook_name": f"blocks.{layer}.{read}",
        "hook_name_out": JOINED.join(targets),
    }
    return found | ({"model_name": config["model_name"]} if "model_name" in config else {})
