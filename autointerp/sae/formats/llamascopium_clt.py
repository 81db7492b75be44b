"""Reads Llamascopium's cross-layer transcoders: `config.json` (sae_type "clt") and `sae_weights.safetensors`.

    W_E [L, d, d_sae]   b_E [L, d_sae]   W_D.j [j + 1, d_sae, d] by target layer j   b_D.j [d]
    activation_function.log_jumprelu_threshold [L, d_sae]   dataset_average_activation_norm.HOOK []

With s = sqrt(d) / the dataset's average norm at a hook (1 where `norm_activation` is "inference"), and the norm n of
all that a feature of source i writes (1 without `sparsity_include_decoder_norm`):

    f = act((s_in x W_E_i + b_E_i) n) / n        y_hat_j = (sum over i of f W_D.j_i + b_D.j) / s_out,j
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.config import JOINED
from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import cross_layer, internal
from autointerp.sae.formats.cross_layer import Source, Tensors
from autointerp.sae.sae import GATED_BY_NORM, Sae

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
_THRESHOLD = "activation_function.log_jumprelu_threshold"
_ESSENTIAL = (
    "act_fn", "top_k", "norm_activation", "sparsity_include_decoder_norm", "use_decoder_bias", "hook_points_in",
    "hook_points_out",
)  # fmt: skip
_JOINT = ("layertopk", "batchlayertopk")


def load(folder: Path, layer: int) -> Sae:
    """One source layer. Raises InputError where it does not exist, or where the activation function or a setting is not
    supported; and DamagedError."""
    config, path = internal.read_config(folder / CONFIG), folder / CONFIG
    act = _activation_function(config, path)
    tensors = Tensors(folder / WEIGHTS)
    n_layers, width, d_sae = tensors.shape("W_E", None, None, None)
    cross_layer.check_layer(layer, n_layers, folder)
    s_in = _scale(tensors, config, path, "hook_points_in", layer, width)
    W_enc = tensors.get("W_E", n_layers, width, d_sae, index=layer) * s_in
    b_enc = tensors.get("b_E", n_layers, d_sae, index=layer)
    targets = range(layer, n_layers)
    decoder = torch.stack([tensors.get(f"W_D.{j}", j + 1, d_sae, width, index=layer) for j in targets], dim=1)
    s_out = torch.tensor([_scale(tensors, config, path, "hook_points_out", j, width) for j in targets])
    norms, with_norms = torch.ones(d_sae), bool(config.get("sparsity_include_decoder_norm", True))
    if with_norms:
        norms = decoder.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    decoder = decoder / s_out[:, None]
    b_dec = torch.zeros(width)
    if config.get("use_decoder_bias", True):
        b_dec = tensors.get(f"b_D.{layer}", width) / s_out[0]
    k: int | None = None
    threshold: Tensor | None = torch.zeros(d_sae)
    if act == "jumprelu":
        threshold = tensors.get(_THRESHOLD, n_layers, d_sae, index=layer).exp() / norms
    elif act == "topk":  # the largest are chosen after the multiplication by the norms
        k, threshold = internal.positive_int(config, "top_k", path), None
        W_enc, b_enc, decoder = W_enc * norms, b_enc * norms, decoder / norms[:, None, None]
    metadata = _metadata(config, layer) | ({GATED_BY_NORM: True} if with_norms else {})
    sae = Source(layer, n_layers, W_enc, b_enc, decoder, b_dec, threshold, k, metadata=metadata).sae()
    if with_norms:
        sae.file_norms = norms
    return sae


def identity(folder: Path, layer: int) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    config = internal.read_config(folder / CONFIG)
    return {"source_layer": layer, **{name: config.get(name) for name in _ESSENTIAL}}, [folder / WEIGHTS]


def recognises(folder: Path) -> bool:
    """Whether the folder holds one. Raises InputError for a crosscoder of the same tool."""
    if not (folder / CONFIG).exists() or not (folder / WEIGHTS).exists():
        return False
    kind = internal.read_config(folder / CONFIG).get("sae_type")
    if kind == "crosscoder":
        raise InputError(
            f"{folder} is a crosscoder of Llamascopium. It compares a feature with its threshold at each hook point "
            "apart, so one feature may be active at one and silent at another; such crosscoders are not supported"
        )
    return kind == "clt"


def _activation_function(config: dict[str, Any], path: Path) -> str:
    act = str(config.get("act_fn", "relu")).lower()
    if act in _JOINT:
        raise InputError(
            f"{path}: act_fn {act!r} keeps the largest activations of all layers together, so whether a feature is "
            "active depends on the features of all other layers, and one layer cannot be read alone; not supported"
        )
    if act == "batchtopk":
        raise InputError(
            f"{path}: act_fn 'batchtopk' keeps the largest activations of a batch and saves no threshold for single "
            "tokens; convert the transcoder to jumprelu with the tool that trained it, and load that"
        )
    if act not in ("relu", "jumprelu", "topk"):
        raise InputError(f"{path}: act_fn {act!r} is not supported; relu, jumprelu and topk are")
    return act


def _scale(tensors: Tensors, config: dict[str, Any], path: Path, key: str, layer: int, width: int) -> float:
    """By what the activations of a layer's hook are multiplied before they are read or compared."""
    norm = config.get("norm_activation", "dataset-wise")
    if norm == "inference":
        return 1.0
    if norm != "dataset-wise":
        raise InputError(f"{path}: norm_activation {norm!r} is not supported; 'dataset-wise' and 'inference' are")
    hooks = config.get(key)
    if not isinstance(hooks, list) or layer >= len(hooks):
        raise DamagedError(f"{path}: {key} names no hook for layer {layer}")
    average = float(tensors.get(f"dataset_average_activation_norm.{hooks[layer]}"))
    if not 0 < average < math.inf:
        raise DamagedError(f"{tensors.path}: the average activation norm at {hooks[layer]} is {average}")
    return math.sqrt(width) / average


def _metadata(config: dict[str, Any], layer: int) -> dict[str, Any]:
    hooks = config.get("hook_points_in")
    found: dict[str, Any] = {}
    if isinstance(hooks, list) and layer < len(hooks):
        found["hook_name"] = str(hooks[layer])
    written = config.get("hook_points_out")
    if isinstance(written, list) and layer < len(written):
        found["hook_name_out"] = JOINED.join(map(str, written[layer:]))
    if str(config.get("act_fn")).lower() == "topk":
        found["declared"] = {"l0": float(config.get("top_k", 50))}
    return found
