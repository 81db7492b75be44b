"""Reads Llamascopium 2 (OpenMOSS; formerly lm-saes): `config.json` and `sae_weights.safetensors`.

    W_E [d_in, d_sae]   b_E [d_sae]   W_D [d_sae, d_out]   b_D [d_out]   W_E_glu [d_in, d_sae]   b_E_glu [d_sae]
    activation_function.log_jumprelu_threshold [d_sae]   dataset_average_activation_norm.<hook> []

With s = sqrt(d) / the average length of the vectors at a hook (norm_activation dataset-wise):

    pre = (s_in x W_E + b_E) * sigmoid(s_in x W_E_glu + b_E_glu)
    f_i = act(pre_i |W_D_i|) / |W_D_i|                  without |W_D_i| where sparsity_include_decoder_norm is false
    y = (f W_D + b_D) / s_out

`token-wise` scales each vector by its own length. `inference` scales nothing, for a file in which the scale is folded.
Thresholds belong to the scaled vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import InputError, nearest
from autointerp.sae import files
from autointerp.sae.formats import internal, told
from autointerp.sae.formats.load_memory import require_memory_for_safetensors
from autointerp.sae.sae import Normalize, Sae

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
THRESHOLD = "activation_function.log_jumprelu_threshold"
NORM = "dataset_average_activation_norm"
ACTIVATIONS = ("relu", "jumprelu", "topk")
# The settings that decide the numbers. d_model and expansion_factor follow from the tensors.
ESSENTIAL = (
    "act_fn",
    "top_k",
    "norm_activation",
    "sparsity_include_decoder_norm",
    "hook_point_in",
    "hook_point_out",
    "jump_relu_threshold",
    "use_glu_encoder",
    "use_decoder_bias",
)
_OTHERS = {
    "lorsa": "low-rank sparse attention reads all earlier tokens of a text, and an SAE here reads one vector at a time",
    "molt": "a mixture of linear transforms adds a matrix, and not one direction, for each active feature",
}


def load(path: Path) -> Sae:
    """Read a folder. Raises InputError for another type of dictionary and for settings that are not supported, and
    DamagedError for damaged files."""
    settings_path, file = path / CONFIG, path / WEIGHTS
    config = internal.read_config(settings_path)
    check_type(config, settings_path)
    require_memory_for_safetensors(file)
    tensors = files.read_tensors(file)
    d_in, d_sae = internal.matrix_shape(tensors, "W_E", file)
    d_out = internal.matrix_shape(tensors, "W_D", file)[1]
    shapes = {"W_E": [d_in, d_sae], "b_E": [d_sae], "W_D": [d_sae, d_out]}
    if config.get("use_decoder_bias", True):
        shapes["b_D"] = [d_out]
    if config.get("use_glu_encoder"):
        shapes |= {"W_E_glu": [d_in, d_sae], "b_E_glu": [d_sae]}
    logs = tensors.get(THRESHOLD)
    if config.get("act_fn") == "jumprelu" and logs is not None:
        shapes[THRESHOLD] = [] if logs.ndim == 0 else [d_sae]
    scales = scales_of(config, tensors, file)
    weights = internal.checked(tensors, shapes, file, "W_E")
    del tensors
    return assemble(weights, config, settings_path, scales)


def identity(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    config = internal.read_config(path / CONFIG)
    files.read_header(path / WEIGHTS)
    return {key: config.get(key) for key in ESSENTIAL}, [path / WEIGHTS]


def recognises(path: Path) -> bool:
    """Whether a folder holds such tensors, or another type of dictionary of this tool, which `load` refuses by name."""
    if not path.is_dir() or not (path / CONFIG).exists() or not (path / WEIGHTS).exists():
        return False
    names = files.read_header(path / WEIGHTS).keys()
    return {"W_E", "W_D"} <= names or str(internal.read_config(path / CONFIG).get("sae_type")) in _OTHERS


def check_type(config: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for what is no dictionary of one layer."""
    kind = config.get("sae_type", "sae")
    if kind == "sae":
        return
    reason = _OTHERS.get(str(kind), "it is not a dictionary that reads one place and writes one")
    raise InputError(f"{path}: sae_type {kind!r:.100} is not read as an SAE: {reason}")


def scales_of(config: Mapping[str, Any], tensors: Mapping[str, Any], file: Path) -> tuple[float, float]:
    """(s_in, s_out). The file keeps average lengths by the hook's name; both are 1 where nothing is folded."""
    if config.get("norm_activation", "dataset-wise") != "dataset-wise":
        return 1.0, 1.0
    found = []
    for side, tensor in (("hook_point_in", "W_E"), ("hook_point_out", "W_D")):
        hook = config.get(side)
        length = tensors.get(f"{NORM}.{hook}")
        value = length.item() if isinstance(length, Tensor) and length.numel() == 1 else length
        width = tensors[tensor].shape[0 if tensor == "W_E" else 1]
        found.append(math.sqrt(width) / told.positive_number(value, f"{NORM}.{hook}", file))
    return found[0], found[1]


def assemble(
    weights: dict[str, Tensor],
    config: Mapping[str, Any],
    path: Path,
    scales: tuple[float, float],
    *,
    threshold: Tensor | None = None,
    metadata: dict[str, Any] | None = None,
) -> Sae:
    """The Sae of tensors under version 2's names. `threshold` is that of scaled vectors and counts decoder rows as the
    settings say; by default it is what the tensors or the settings tell."""
    s_in, s_out = scales
    act = config.get("act_fn", "relu")
    hooks = config.get("hook_point_in"), config.get("hook_point_out")
    W_E, b_E, W_D = weights.pop("W_E"), weights["b_E"], weights.pop("W_D")
    b_D = weights.get("b_D", torch.zeros(W_D.shape[1]))
    k = internal.positive_int(config, "top_k", path) if act == "topk" else None
    norms = W_D.norm(dim=1)
    with_norms = bool(config.get("sparsity_include_decoder_norm", True))
    if k is None:
        threshold = _threshold(weights, config, path, norms) if threshold is None else threshold
        if with_norms:  # pre * norm > threshold
            silent = torch.full_like(norms, torch.finfo(norms.dtype).max)
            threshold = torch.where(norms > 0, threshold / _positive(norms), silent)  # a row of zeros adds nothing
    elif with_norms:  # the k largest of pre * norm
        W_E, b_E, W_D = W_E * norms, b_E * norms, W_D / _positive(norms).unsqueeze(1)
    transcoder = hooks[0] != hooks[1]
    facts = told.known(
        hook_name=hooks[0],
        hook_name_out=hooks[1] if transcoder else None,
        input_scale=s_in if s_in != 1 else None,
        gated_by_norm=with_norms or None,
    ) | told.declared(l0=k)
    kind = {"relu": "standard"}.get(act, act)
    sae = internal.build(
        W_E * s_in,
        b_E,
        W_D / s_out,
        b_D / s_out,
        k=k,
        threshold=threshold,
        b_pre=torch.zeros(W_E.shape[0]),
        normalize=_normalize(config, path, transcoder),
        W_glu=weights["W_E_glu"] * s_in if "W_E_glu" in weights else None,
        b_glu=weights.get("b_E_glu"),
        architecture=f"{kind}_transcoder" if transcoder else kind,
        metadata=facts | (metadata or {}),
    )
    sae.file_norms = norms  # the rows had lost their lengths, or their units, by then
    return sae


def _threshold(weights: dict[str, Tensor], config: Mapping[str, Any], path: Path, norms: Tensor) -> Tensor:
    """The threshold of pre * norm, [d_sae]. Raises InputError where the file keeps none."""
    act = config.get("act_fn", "relu")
    if act == "relu":
        return torch.zeros_like(norms)
    if act == "jumprelu" and THRESHOLD in weights:
        return weights[THRESHOLD].exp().expand_as(norms)
    if act in ("jumprelu", "batchtopk") and "jump_relu_threshold" in config:
        value = told.positive_number(config["jump_relu_threshold"], "jump_relu_threshold", path)
        return torch.full_like(norms, value)
    if act == "batchtopk":
        raise InputError(
            f"{path}: act_fn batchtopk chooses among all vectors of a batch, and the file keeps no threshold by which "
            "one vector could be read by itself; take the least activation that training kept, on scaled vectors, and "
            f'put it into {CONFIG} as "jump_relu_threshold"'
        )
    if act == "jumprelu":
        raise InputError(f"{path}: act_fn jumprelu, but neither {THRESHOLD} nor jump_relu_threshold is there")
    raise InputError(
        f"{path}: act_fn {act!r:.100} is not supported.{nearest(str(act), ACTIVATIONS)} Supported: "
        f"{', '.join(ACTIVATIONS)}, and batchtopk with a threshold"
    )


def _normalize(config: Mapping[str, Any], path: Path, transcoder: bool) -> Normalize:
    mode = config.get("norm_activation", "dataset-wise")
    if mode in ("dataset-wise", "inference"):
        return "none"
    if mode == "token-wise" and not transcoder:
        return "constant_norm"
    why = {
        "token-wise": "a transcoder would need the length of the vector that it is to reconstruct",
        "batch-wise": "it scales a vector by the lengths of the other vectors of its batch",
    }
    raise InputError(f"{path}: norm_activation {mode!r:.100} is not supported: {why.get(str(mode), 'it is not known')}")


def _positive(norms: Tensor) -> Tensor:
    return norms.clamp_min(torch.finfo(torch.float32).tiny)
