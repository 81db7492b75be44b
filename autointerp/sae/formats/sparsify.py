"""Reads and writes EleutherAI's sparsify: TopK SAEs and transcoders, in a folder per hook point with `cfg.json` and
`sae.safetensors`.

    encoder.weight [d_sae, d_in]   encoder.bias [d_sae]   W_dec [d_sae, d_in]   b_dec [d_in]   W_skip [d_in, d_in]

An SAE subtracts b_dec from its input; a transcoder subtracts nothing. The skip term reads the input as it is. The
folder is named after the module's path within the base model (`hooknames.from_base_model_path`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import InputError, nearest
from autointerp.sae import files
from autointerp.sae.formats import internal
from autointerp.sae.formats.load_memory import require_memory_for_safetensors
from autointerp.sae.long_vectors import limit_in
from autointerp.sae.sae import Sae

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
# The settings that decide the numbers. multi_topk and normalize_decoder matter only in training.
_ESSENTIAL = ("activation", "d_in", "num_latents", "expansion_factor", "k", "transcode", "skip_connection", "signed")


def load(folder: Path) -> Sae:
    """Read the SAE. Raises InputError for GroupMax and signed activations, which are not supported, and DamagedError
    for damaged files."""
    path = folder / CONFIG
    config = internal.read_config(path)
    _check_supported(config, path)
    d_in, k = internal.positive_int(config, "d_in", path), internal.positive_int(config, "k", path)
    d_sae = config.get("num_latents") or d_in * internal.positive_int(config, "expansion_factor", path)
    if not isinstance(d_sae, int):
        raise InputError(f"{path}: num_latents must be a whole number, not {d_sae!r}")
    transcode, skip = bool(config.get("transcode")), bool(config.get("skip_connection"))
    shapes = {"encoder.weight": [d_sae, d_in], "encoder.bias": [d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in]}
    if skip:
        shapes["W_skip"] = [d_in, d_in]
    require_memory_for_safetensors(folder / WEIGHTS)
    weights = internal.checked(files.read_tensors(folder / WEIGHTS), shapes, folder / WEIGHTS, CONFIG)
    metadata = config.get("metadata")
    return internal.build(
        weights["encoder.weight"].T.contiguous(),
        weights["encoder.bias"],
        weights["W_dec"],
        weights["b_dec"],
        k=k,
        b_pre=torch.zeros(d_in) if transcode else None,
        W_skip=weights["W_skip"].T.contiguous() if skip else None,
        architecture="topk" if not transcode else "skip_transcoder" if skip else "transcoder",
        metadata=internal.told_by_file(metadata) if isinstance(metadata, dict) else {},
    )


def save(sae: Sae, folder: Path, metadata: dict[str, Any]) -> None:
    """Write the SAE. `metadata` is kept in cfg.json, where sparsify ignores it. The configuration is written last.
    Raises InputError for what sparsify cannot hold (thresholds, scaled inputs, a transcoder between different widths),
    and DiskFullError."""
    internal.check_plain(sae, "sparsify")
    if sae.k is None:
        raise InputError(
            f"sparsify knows TopK only, and this SAE ({sae.architecture}) chooses by thresholds; use saelens"
        )
    if sae.normalize != "none" or sae.d_in != sae.d_out:
        what = f"an SAE that reads {sae.d_in} and writes {sae.d_out} numbers, normalize {sae.normalize!r}"
        raise InputError(f"sparsify has no form for {what}; its coders read and write one width, unscaled")
    transcode = not internal.same_pre_bias(sae)
    W_dec = internal.file_W_dec(sae)
    tensors: dict[str, Tensor] = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": internal.b_enc_without_pre_bias(sae) if transcode else sae.b_enc,
        "W_dec": W_dec,
        "b_dec": sae.b_dec,
    }
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip.T
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.d_sae // sae.d_in),
        "normalize_decoder": sae.row_norms is None,
        "num_latents": sae.d_sae,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": sae.W_skip is not None,
        "transcode": transcode,
        "d_in": sae.d_in,
        "metadata": metadata,
    }
    files.write_tensors(folder / WEIGHTS, {name: tensor.float() for name, tensor in tensors.items()})
    internal.write_config(folder / CONFIG, config)


def identity(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    config = internal.read_config(folder / CONFIG)
    files.read_header(folder / WEIGHTS)
    settings = {key: config.get(key) for key in _ESSENTIAL} | limit_in(config.get("metadata"))
    return settings, [folder / WEIGHTS]


def _check_supported(config: dict[str, Any], path: Path) -> None:
    activation = config.get("activation", "topk")
    if activation == "groupmax":
        raise InputError(f"{path}: activation groupmax (the largest of each group) is not supported; supported: topk")
    if activation != "topk":
        raise InputError(
            f"{path}: activation {activation!r} is not known; supported: topk.{nearest(str(activation), ('topk',))}"
        )
    if config.get("signed"):
        raise InputError(f"{path}: signed activations, which are chosen by magnitude, are not supported")
