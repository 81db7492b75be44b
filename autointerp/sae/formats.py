"""SAEs on disk. Saved as SAELens v6: a folder with `cfg.json` and `sae_weights.safetensors`, which SAELens opens.

Whatever a file's own conventions, the Sae that comes out is in raw-input units with unit decoder rows.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import DamagedError, InputError
from autointerp.sae import files
from autointerp.sae.sae import Sae

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SAELENS_VERSION = "6.54.12"
"""The version of SAELens whose layout is written and tested against; SAELens reads it to know the format."""
_MAX_CONFIG_BYTES = 1_000_000
_UNIT_TOLERANCE = 1e-4
# What decides the numbers; the rest of cfg.json is about where the SAE came from.
_ESSENTIAL = (
    "architecture",
    "d_in",
    "d_sae",
    "k",
    "apply_b_dec_to_input",
    "rescale_acts_by_decoder_norm",
    "normalize_activations",
    "reshape_activations",
)


def save_saelens(sae: Sae, folder: Path, metadata: dict[str, Any]) -> None:
    """Write `sae` to `folder`. `metadata` goes into cfg.json's metadata: model_name, hook_name (the module's path in
    the Hugging Face model), context_size, prepend_bos and whatever else should stay with it (JSON-able).

    The configuration is written last, so a folder with a cfg.json is complete. Raises DiskFullError.
    """
    # a dictionary whose choice of features was made before its rows were scaled is written the way it came
    W_dec = sae.W_dec if sae.row_norms is None else sae.W_dec * sae.row_norms.unsqueeze(1)
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": W_dec, "b_dec": sae.b_dec}
    config = {
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": sae.k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": SAELENS_VERSION, "sae_lens_training_version": None, **metadata},
    }
    text = json.dumps(config, indent=2)
    files.write_tensors(folder / WEIGHTS, {name: tensor.float() for name, tensor in tensors.items()})
    files.write_atomically(folder / CONFIG, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def load_sae(path: Path, format: str = "auto") -> Sae:
    """The SAE in folder `path`, on CPU in float32, with cfg.json's metadata in `Sae.metadata`.

    Raises InputError for a folder that is not there or not of this format, and for architectures and settings that are
    not supported; DamagedError for files that are cut short, lack tensors, or hold NaN or infinite numbers.
    """
    if format not in ("auto", "saelens"):
        raise InputError(f"SAE format {format!r} is not known; known: auto, saelens")
    if not path.is_dir():
        raise InputError(f"there is no SAE folder {path}; check [[sae]].path")
    if not (path / CONFIG).exists():
        present = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise InputError(f"{path} holds no {CONFIG}, so it is not an SAE in SAELens format (it holds: {present})")
    config = _read_config(path / CONFIG)
    k = _check_supported(config, path / CONFIG)
    weights = _read_weights(path / WEIGHTS, config)
    sae = _in_our_units(weights, config, k)
    metadata = config.get("metadata")
    sae.metadata = metadata if isinstance(metadata, dict) else {}
    return sae


def sae_sha256(folder: Path) -> str:
    """Of the weights file and of what in cfg.json decides the numbers. Raises what `load_sae` raises."""
    config = _read_config(folder / CONFIG)
    digest = hashlib.sha256(json.dumps({key: config.get(key) for key in _ESSENTIAL}, sort_keys=True).encode())
    files.read_header(folder / WEIGHTS)
    with (folder / WEIGHTS).open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise DamagedError(f"{path} is larger than 1 MB; that is no SAE configuration")
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedError(f"{path} is damaged: not JSON ({error}); copy it again") from None
    if not isinstance(config, dict):
        raise DamagedError(f"{path} is damaged: expected a table, found {type(config).__name__}")
    return config


def _check_supported(config: dict[str, Any], path: Path) -> int:
    """k, or an InputError that names what is not supported."""
    architecture = config.get("architecture")
    if architecture is None:
        raise InputError(f"{path} names no architecture: SAELens before version 6 wrote it; save it anew there")
    if architecture != "topk":
        raise InputError(f"{path}: architecture {architecture!r} is not supported yet; supported: topk")
    if config.get("normalize_activations", "none") not in ("none", None):
        raise InputError(
            f"{path}: normalize_activations {config['normalize_activations']!r} is not supported; "
            "fold the scaling into the weights (SAELens: save_inference_model) and load that"
        )
    if config.get("finetuning_scaling_factor"):
        raise InputError(f"{path}: finetuning_scaling_factor is not supported; fold it into the weights first")
    k = config.get("k")
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InputError(f"{path}: k must be a positive whole number, not {k!r}")
    return k


def _read_weights(path: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """W_enc, b_enc, W_dec, b_dec in float32, complete, of the shapes that cfg.json promises, and finite."""
    tensors = files.read_tensors(path)
    d_in, d_sae = config.get("d_in"), config.get("d_sae")
    shapes = {"W_enc": [d_in, d_sae], "b_enc": [d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in]}
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise DamagedError(f"{path} lacks {', '.join(missing)} (it holds: {', '.join(sorted(tensors)) or 'nothing'})")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if list(tensor.shape) != shape:
            raise DamagedError(f"{path}: {name} has shape {list(tensor.shape)}, but {CONFIG} says {shape}")
        if not tensor.is_floating_point():
            raise DamagedError(f"{path}: {name} holds {tensor.dtype}, not floating-point numbers")
        if not bool(tensor.isfinite().all()):
            raise DamagedError(f"{path}: {name} holds NaN or infinite numbers")
    factor = tensors.get("scaling_factor")
    if factor is not None and not torch.allclose(factor.float(), torch.ones_like(factor.float())):
        raise InputError(f"{path}: a scaling_factor other than 1 is not supported; fold it into the weights first")
    return {name: tensors[name].float() for name in shapes}


def _in_our_units(weights: dict[str, Tensor], config: dict[str, Any], k: int) -> Sae:
    W_enc, b_enc, W_dec, b_dec = (weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    if not config.get("apply_b_dec_to_input", True):
        b_enc = b_enc + b_dec @ W_enc  # x W_enc + b_enc = (x - b_dec) W_enc + (b_enc + b_dec W_enc)
    norms = W_dec.norm(dim=1)
    row_norms = None
    if config.get("rescale_acts_by_decoder_norm"):  # the file's pre-activations are multiplied by the norms
        W_enc, b_enc = W_enc * norms, b_enc * norms
    elif not bool(((norms - 1).abs() < _UNIT_TOLERANCE).all()):
        row_norms = norms
    if row_norms is not None or config.get("rescale_acts_by_decoder_norm"):
        W_dec = W_dec / norms.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    return Sae(W_enc, b_enc, W_dec, b_dec, k=k, row_norms=row_norms)
