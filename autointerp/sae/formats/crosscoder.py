"""Reads the crosscoders of science-of-finetuning's fork of dictionary_learning: a .pt, or config.json and
model.safetensors.

    encoder.weight [L, d, d_sae]  encoder.bias [d_sae]  decoder.weight [L, d_sae, d]  decoder.bias [L, d]

L layers or models are read side by side. A CrossCoder uses ReLU. A BatchTopKCrossCoder also has `k` and `threshold` []:
a feature is active where relu(pre) times the norm of what it writes is above the threshold, and
`code_normalization_id` says which norm that is. Files without it are older than the choice: it was the sum over L. With
`activation_mean` and `activation_std` [L, d] that are not NaN, the crosscoder reads and writes normalised vectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import DamagedError, InputError
from autointerp.sae import files
from autointerp.sae.formats import internal, restricted
from autointerp.sae.formats.load_memory import require_memory_for_safetensors
from autointerp.sae.sae import GATED_BY_NORM, Sae

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_COMPILED = "_orig_mod."
_SUM, _WHOLE, _MIXED, _NONE, _DECOUPLED = range(1, 6)
_EPS = 1e-8


def load(path: Path) -> Sae:
    """Read a folder or the file itself. Raises InputError where features are chosen in a way that is not supported, and
    DamagedError."""
    weights = located(path)
    state = _state(weights)
    n_parts, width, d_sae = _shape(state, weights)
    shapes: dict[str, list[int]] = {
        "encoder.weight": [n_parts, width, d_sae], "encoder.bias": [d_sae],
        "decoder.weight": [n_parts, d_sae, width], "decoder.bias": [n_parts, width],
    }  # fmt: skip
    t = internal.checked(state, shapes, weights, "encoder.weight")
    threshold, metadata = torch.zeros(d_sae), _metadata(weights, n_parts)
    trained_as, norms = "crosscoder", None
    if "threshold" in state:
        threshold, norms = _threshold(state, t["decoder.weight"], weights)
        trained_as = "batchtopk_crosscoder"
        if isinstance(state.get("k"), Tensor) and state["k"].numel() == 1:
            metadata["declared"] = {"l0": float(state["k"])}
    W_enc = t["encoder.weight"].reshape(n_parts * width, d_sae)
    W_dec = t["decoder.weight"].permute(1, 0, 2).reshape(d_sae, n_parts * width)
    b_dec, b_pre = t["decoder.bias"].flatten(), torch.zeros(n_parts * width)
    normalised = _normalisation(state, n_parts, width, weights)
    if normalised is not None:  # it reads (x - mean) * scale and writes y / undo + mean
        mean, scale, undo = normalised
        W_enc, b_pre = W_enc * scale[:, None], mean
        W_dec, b_dec = W_dec / undo, b_dec / undo + mean
    if norms is not None:
        metadata[GATED_BY_NORM] = True
    sae = internal.build(
        W_enc, t["encoder.bias"], W_dec, b_dec, threshold=threshold, b_pre=b_pre, architecture=trained_as,
        metadata=metadata,
    )  # fmt: skip
    if norms is not None:
        sae.file_norms = norms
    return sae


def located(path: Path) -> Path:
    """The weights file of a folder."""
    if not path.is_dir():
        return path
    if (path / WEIGHTS).exists():
        return path / WEIGHTS
    found = sorted(p for p in path.iterdir() if p.suffix in (".pt", ".pth"))
    if len(found) != 1:
        raise InputError(f"{path} holds {len(found)} .pt files and no {WEIGHTS}; name one of them")
    return found[0]


def identity(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    weights = located(path)
    if not weights.exists():
        raise InputError(f"there is no file {weights}")
    return {}, [weights]


def recognises(state: Any) -> bool:
    """Whether `state`, from a .pt, has a crosscoder's tensors: matrices for each of several layers or models."""
    if not isinstance(state, dict):
        return False
    found = state.get("encoder.weight", state.get(f"{_COMPILED}encoder.weight"))
    return isinstance(found, Tensor) and found.ndim == 3


def recognises_folder(folder: Path) -> bool:
    """Whether the folder's model.safetensors is one."""
    if not (folder / WEIGHTS).exists():
        return False
    entry = files.read_header(folder / WEIGHTS).get("encoder.weight")
    shape = entry.get("shape") if isinstance(entry, dict) else None
    return isinstance(shape, list) and len(shape) == 3


def _state(weights: Path) -> dict[str, Any]:
    if weights.suffix == ".safetensors":
        require_memory_for_safetensors(weights)
        state: Any = files.read_tensors(weights)
    else:
        state = restricted.read_pt(weights)
    if not isinstance(state, dict) or not state:
        raise InputError(f"{weights} holds {type(state).__name__}, not the tensors of a crosscoder")
    return {str(name).removeprefix(_COMPILED): tensor for name, tensor in state.items()}  # torch.compile adds it


def _shape(state: dict[str, Any], path: Path) -> tuple[int, int, int]:
    encoder, decoder = state.get("encoder.weight"), state.get("decoder.weight")
    if not (isinstance(encoder, Tensor) and isinstance(decoder, Tensor) and encoder.ndim == decoder.ndim == 3):
        present = ", ".join(sorted(state)) or "nothing"
        raise DamagedError(f"{path} lacks encoder.weight and decoder.weight of three dimensions (it holds: {present})")
    if len(encoder) != len(decoder):
        raise InputError(
            f"{path} reads {len(encoder)} layers or models and writes {len(decoder)}, and does not say which of them "
            "it reads; such crosscoders are not supported"
        )
    n_parts, width, d_sae = encoder.shape
    return int(n_parts), int(width), int(d_sae)


def _threshold(state: dict[str, Any], decoder: Tensor, path: Path) -> tuple[Tensor, Tensor | None]:
    """[d_sae]: the pre-activation above which each feature is active, and the norm by which the tool multiplies
    pre-activations before it compares them; None where it compares them as they are."""
    told = state.get("code_normalization_id")
    rule = _SUM if told is None else int(told) if isinstance(told, Tensor) and told.numel() == 1 else 0
    found = state["threshold"]
    if rule == _DECOUPLED or (isinstance(found, Tensor) and found.numel() > 1):
        raise InputError(
            f"{path} has a threshold for each layer or model (code normalisation DECOUPLED), so one feature may be "
            "active in one of them and silent in another; such crosscoders are not supported"
        )
    if rule == _MIXED:
        raise InputError(f"{path}: code normalisation MIXED mixes two norms by weights that the file does not hold")
    if rule not in (_SUM, _WHOLE, _NONE):
        raise InputError(f"{path}: code_normalization_id is {told}; 1, 2 and 4 are known")
    threshold = internal.checked({"threshold": found.reshape(())}, {"threshold": []}, path, "its class")["threshold"]
    if float(threshold) < 0:
        raise InputError(
            f"{path}: the threshold is {float(threshold):g}, so training never set it; train longer, or set it to the "
            "least scaled activation that should count"
        )
    per_part = decoder.norm(dim=2)
    norms = {_SUM: per_part.sum(0), _WHOLE: per_part.norm(dim=0), _NONE: torch.ones(decoder.shape[1])}[rule]
    # A feature that writes nothing never reaches a threshold above 0.
    scaled = torch.where(norms > 0, threshold / norms, torch.finfo(torch.float32).max if float(threshold) else 0.0)
    return scaled, None if rule == _NONE else norms


def _normalisation(state: dict[str, Any], n_parts: int, width: int, path: Path) -> tuple[Tensor, Tensor, Tensor] | None:
    """(mean, factor of what is read, divisor of what is written), each [L * d]; None where nothing is normalised."""
    names = ("activation_mean", "activation_std")
    held = [state.get(name) for name in names]
    if all(h is None for h in held) or any(isinstance(h, Tensor) and bool(h.isnan().any()) for h in held):
        return None  # the tool saves NaN where there is none
    t = internal.checked(state, {name: [n_parts, width] for name in names}, path, "encoder.weight")
    mean, std = t["activation_mean"], t["activation_std"]
    scale_name = "activation_global_scale"
    if scale_name not in state:
        raise InputError(
            f"{path} normalises activations but has no {scale_name}, without which it is not known whether each layer "
            "is scaled as a whole or each number by itself; save it with a newer version of the tool"
        )
    scale = internal.checked(state, {scale_name: [n_parts]}, path, "encoder.weight")[scale_name]
    rms = state.get("target_rms")
    wanted = (float(rms) if isinstance(rms, Tensor) and rms.numel() == 1 else 1.0) / (std.square().sum(1) + _EPS).sqrt()
    if torch.allclose(scale, wanted, rtol=1e-3):
        columns = scale.repeat_interleave(width)
        return mean.flatten(), columns, columns + _EPS
    if torch.equal(scale, torch.ones_like(scale)):
        columns = 1 / (std.flatten() + _EPS)
        return mean.flatten(), columns, columns
    raise InputError(f"{path}: {scale_name} is {scale.tolist()[:4]}, which does not follow from activation_std")


def _metadata(weights: Path, n_parts: int) -> dict[str, Any]:
    path = weights.parent / CONFIG
    config = internal.read_config(path) if path.exists() else {}
    trainer = config.get("trainer")
    told = trainer if isinstance(trainer, dict) else config
    found = {"parts": n_parts, "model_name": told.get("lm_name"), "hook_layer": told.get("layer")}
    return {key: value for key, value in found.items() if value is not None}
