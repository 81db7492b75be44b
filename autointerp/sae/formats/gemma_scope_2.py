"""Reads Gemma Scope 2's folders with `params.safetensors` and, in most, `config.json`.

    w_enc [d_in, d_sae]   b_enc, threshold [d_sae]   w_dec [d_sae, d_out]   b_dec [d_out]
    affine_skip_connection [d_in, d_out], of transcoders whose folder's name ends in _affine

JumpReLU, and b_dec is not subtracted from the input. Where there is no config.json, layer, hook and model follow from
the names: gemma-scope-2-1b-pt/transcoder_all/layer_5_width_16k_l0_big_affine. A transcoder reads what the MLP reads,
after the norm's gain; Gemma Scope's first transcoders read before it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from autointerp.errors import DamagedError, InputError
from autointerp.sae import files
from autointerp.sae.formats import internal, told
from autointerp.sae.formats.load_memory import require_memory_for_safetensors
from autointerp.sae.sae import Sae

WEIGHTS, CONFIG = "params.safetensors", "config.json"
_KINDS = ("resid_post", "attn_out", "mlp_out", "transcoder")
_HOOKS = {  # by the end of the module's path in the config
    ".output": "hook_resid_post",
    ".self_attn.o_proj.input": "attn.hook_z",
    ".post_feedforward_layernorm.output": "hook_mlp_out",
    ".pre_feedforward_layernorm.output": "mlp.hook_in",
}
_BY_KIND = {
    "resid_post": ("hook_resid_post", None),
    "attn_out": ("attn.hook_z", None),
    "mlp_out": ("hook_mlp_out", None),
    "transcoder": ("mlp.hook_in", "hook_mlp_out"),
}
_WIDTHS = {"16k": 1 << 14, "65k": 1 << 16, "262k": 1 << 18, "1m": 1 << 20}


def load(path: Path) -> Sae:
    """Read a folder, or the .safetensors itself. Raises InputError when there is no file or it is another kind of
    dictionary, and DamagedError when it is damaged."""
    file = located(path)
    config = _config(file)
    require_memory_for_safetensors(file)
    tensors = files.read_tensors(file)
    d_in, d_sae = internal.matrix_shape(tensors, "w_enc", file)
    w_dec = tensors.get("w_dec")
    if w_dec is not None and w_dec.ndim == 3:
        raise InputError(f"{file} is one layer of a cross-layer transcoder: w_dec has shape {list(w_dec.shape)}")
    d_out = internal.matrix_shape(tensors, "w_dec", file)[1]
    shapes = {"w_enc": [d_in, d_sae], "b_enc": [d_sae], "threshold": [d_sae], "w_dec": [d_sae, d_out], "b_dec": [d_out]}
    skip = _has_skip(config, tensors, file)
    if skip:
        shapes["affine_skip_connection"] = [d_in, d_out]
    _check_width(file, d_sae)
    weights = internal.checked(tensors, shapes, file, "w_enc")
    del tensors
    metadata = _metadata(config, file)
    transcoder = skip or "hook_name_out" in metadata or d_in != d_out
    return internal.build(  # which drops each matrix as soon as it has scaled it
        weights.pop("w_enc"),
        weights["b_enc"],
        weights.pop("w_dec"),
        weights["b_dec"],
        threshold=weights["threshold"],
        b_pre=torch.zeros(d_in),
        W_skip=weights["affine_skip_connection"] if skip else None,
        architecture=("jumprelu_skip_transcoder" if skip else "jumprelu_transcoder") if transcoder else "jumprelu",
        metadata=metadata,
    )


def located(path: Path) -> Path:
    """The file of a folder. Raises InputError for a crosscoder, whose layout is not known."""
    if any(name.startswith("crosscoder") for name in path.absolute().parts[-3:]):
        raise InputError(
            f"{path}: the crosscoders of Gemma Scope 2 (four layers side by side) are not read: the names and the "
            "order of their tensors are not documented"
        )
    return path / WEIGHTS if path.is_dir() else path


def identity(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    file = located(path)
    files.read_header(file)
    return {}, [file]


def recognises(path: Path) -> bool:
    """Whether a folder or a .safetensors holds these tensors."""
    file = path / WEIGHTS if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.exists():
        return False
    shapes = files.read_header(file)
    return {"w_enc", "w_dec", "threshold"} <= shapes.keys()


def _config(file: Path) -> dict[str, Any]:
    path = file.parent / CONFIG
    config = internal.read_config(path) if path.exists() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise InputError(f"{path}: architecture {config['architecture']!r:.100} is not supported; supported: jump_relu")
    return config


def _has_skip(config: dict[str, Any], tensors: dict[str, Any], file: Path) -> bool:
    there = "affine_skip_connection" in tensors
    says = config.get("affine_connection")
    if isinstance(says, bool) and says != there:
        raise DamagedError(
            f"{file} {'has' if there else 'lacks'} affine_skip_connection, but {CONFIG} says affine_connection = {says}"
        )
    return there


def _check_width(file: Path, d_sae: int) -> None:
    named = told.in_path(r"^layer_\d+_width_(\w+?)_l0_", file)
    if named and _WIDTHS.get(named[1], d_sae) != d_sae:
        raise InputError(
            f"{file} has {d_sae} features, but its folder is named width_{named[1]}; put the right file there"
        )


def _metadata(config: dict[str, Any], file: Path) -> dict[str, Any]:
    folder = told.in_path(r"^layer_(\d+)_", file)
    kind = told.in_path(rf"^({'|'.join(_KINDS)})(_all)?$", file)
    hooks: tuple[str | None, str | None] = (None, None)
    if config.get("hf_hook_point_in"):
        hooks = _hook(config["hf_hook_point_in"]), _hook(config.get("hf_hook_point_out"))
    elif folder and kind:
        names = _BY_KIND[kind[1]]
        hooks = tuple(name and f"blocks.{folder[1]}.{name}" for name in names)  # type: ignore[assignment]
    return told.known(
        model_name=_model_name(config, file),
        hook_name=hooks[0],
        hook_name_out=hooks[1] if hooks[1] != hooks[0] else None,
        prepend_bos=True,
        context_size=1024,
    ) | told.declared(l0=config.get("l0"))


def _hook(path: object) -> str | None:
    """The hook's name of a module of Gemma 3, "model.layers.5.output"; the path itself where it has none."""
    if not isinstance(path, str):
        return None
    found = re.fullmatch(r"(?:[\w.]+\.)?layers\.(\d+)(\.[\w.]+)", path)
    name = _HOOKS.get(found[2]) if found else None
    return f"blocks.{found[1]}.{name}" if found and name else path


def _model_name(config: dict[str, Any], file: Path) -> str | None:
    name = config.get("model_name")
    repository = told.in_path(r"gemma-scope-2-(\w+-(?:pt|it))", file)
    if not isinstance(name, str):
        name = f"gemma-3-{repository[1]}" if repository else None
    if name is None:
        return None
    name = name.replace("-v3", "-3")
    name = name.replace("-pt", "") if "270m" in name else name  # the hub calls that base model gemma-3-270m
    return name if "/" in name else f"google/{name}"
