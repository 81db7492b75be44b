"""Reads circuit-tracer's per-layer transcoders: `layer_N.safetensors`, with `config.yaml` beside it.

    W_enc [d_sae, d_in]   b_enc [d_sae]   W_dec [d_sae, d_out]   b_dec [d_out]   W_skip [d_out, d_in]
    activation_function.threshold [d_sae]: JumpReLU         k []: TopK without a ReLU

Nothing is subtracted from the input, and the skip term is x W_skip^T. A file without thresholds and without k is ReLU.
circuit-tracer silences all features at position 0 of a text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import InputError
from autointerp.sae import files
from autointerp.sae.formats import internal, told, yaml_config
from autointerp.sae.formats.load_memory import require_memory_for_safetensors
from autointerp.sae.sae import Sae

CONFIG, NAME = "config.yaml", r"layer_(\d+)\.safetensors"
_THRESHOLD = "activation_function.threshold"
_NEEDS_K = {"crv-8b-instruct-transcoders": 128}
"""Dictionaries whose files do not say that they are TopK, and which k they were trained with."""


def load(path: Path) -> Sae:
    """Read one layer's file, or a folder that holds one. Raises InputError where it is not clear how features are
    chosen, and DamagedError for damaged files."""
    file = located(path)
    config = _config(file)
    require_memory_for_safetensors(file)
    tensors = files.read_tensors(file)
    d_sae, d_in = internal.matrix_shape(tensors, "W_enc", file)
    d_out = internal.matrix_shape(tensors, "W_dec", file)[1]
    shapes = {"W_enc": [d_sae, d_in], "b_enc": [d_sae], "W_dec": [d_sae, d_out], "b_dec": [d_out]}
    shapes |= {"W_skip": [d_out, d_in]} if "W_skip" in tensors else {}
    shapes |= {_THRESHOLD: list(tensors[_THRESHOLD].shape) and [d_sae]} if _THRESHOLD in tensors else {}
    k = _k(config, tensors, file)
    weights = internal.checked(tensors, shapes, file, "W_enc")
    del tensors
    threshold = weights.get(_THRESHOLD)
    chosen: dict[str, Any] = {"k": k, "relu": False}
    if k is None:  # a threshold below 0 lets values below 0 through
        chosen = {"threshold": torch.zeros(d_sae), "relu": True}
        if threshold is not None:
            chosen = {"threshold": threshold.expand(d_sae).clone(), "relu": bool((threshold >= 0).all())}
    kind = "topk" if k is not None else "relu" if threshold is None else "jumprelu"
    return internal.build(
        weights.pop("W_enc").T.contiguous(),
        weights["b_enc"],
        weights.pop("W_dec"),
        weights["b_dec"],
        b_pre=torch.zeros(d_in),
        W_skip=weights["W_skip"].T.contiguous() if "W_skip" in weights else None,
        architecture=f"{kind}_skip_transcoder" if "W_skip" in weights else f"{kind}_transcoder",
        metadata=_metadata(config, file) | told.declared(l0=k),
        **chosen,
    )


def located(path: Path) -> Path:
    """The file itself, or the only one of a folder."""
    if not path.is_dir():
        return path
    found = sorted(p for p in path.glob("layer_*.safetensors") if re.fullmatch(NAME, p.name))
    if len(found) != 1:
        raise InputError(
            f"{path} holds {len(found)} transcoders, one for each layer; name the file of one layer, such as "
            f"{path / 'layer_0.safetensors'}"
        )
    return found[0]


def identity(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    file = located(path)
    files.read_header(file)
    config = _config(file)
    return {"activation": config.get("activation"), "k": config.get("k")}, [file]


def recognises(path: Path) -> bool:
    """Whether a file, or the files of a folder, are such transcoders."""
    if path.is_dir():
        return any(recognises(p) for p in sorted(path.glob("layer_*.safetensors"))[:1])
    if not re.fullmatch(NAME, path.name):
        return False
    names = files.read_header(path).keys()
    return {"W_enc", "W_dec", "b_enc", "b_dec"} <= names


def _k(config: dict[str, Any], tensors: dict[str, Tensor], file: Path) -> int | None:
    """How many features are chosen; None where thresholds choose them. Raises InputError where that is not told."""
    k: Any = tensors.get("k", config.get("k"))
    if isinstance(k, Tensor):
        k = k.item() if k.numel() == 1 else list(k.shape)
    activation = str(config.get("activation") or "").lower().replace("_", "")
    if _THRESHOLD in tensors:
        if activation not in ("", "jumprelu"):
            raise InputError(f"{file} has thresholds, but {CONFIG} says activation: {config['activation']!r:.100}")
        return None
    needed = told.in_path("|".join(_NEEDS_K), file)
    if k is None and (activation == "topk" or needed):
        known = f"; this one was trained with k: {_NEEDS_K[needed[0]]}" if needed else ""
        raise InputError(
            f"{file} is TopK, and neither it nor {CONFIG} says how many features are chosen{known}; put k into {CONFIG}"
        )
    if activation not in ("", "relu", "topk"):
        raise InputError(
            f"{file.parent / CONFIG}: activation {config['activation']!r:.100} is not supported, or its thresholds are "
            f"missing from {file.name}; supported: relu, topk, jumprelu"
        )
    return internal.positive_int({"k": k}, "k", file) if k is not None and activation != "relu" else None


def _metadata(config: dict[str, Any], file: Path) -> dict[str, Any]:
    layer = re.fullmatch(NAME, file.name)
    hooks = [_hook(config.get(f"feature_{side}_hook"), layer) for side in ("input", "output")]
    name = config.get("model_name")
    return told.known(model_name=name if isinstance(name, str) else None, hook_name=hooks[0], hook_name_out=hooks[1])


def _hook(name: object, layer: re.Match[str] | None) -> str | None:
    """A hook's name is given without its layer: mlp.hook_in is blocks.5.mlp.hook_in."""
    if not isinstance(name, str) or layer is None:
        return None
    return name if name.startswith("blocks.") else f"blocks.{layer[1]}.{name}"


def _config(file: Path) -> dict[str, Any]:
    path = file.parent / CONFIG
    return yaml_config.read(path) if path.exists() else {}
