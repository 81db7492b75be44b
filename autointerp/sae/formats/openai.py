"""Reads OpenAI's sparse_autoencoder: a .pt with pre_bias [d_in], latent_bias [d_sae], encoder.weight [d_sae, d_in],
decoder.weight [d_in, d_sae], and the names of the activation function and its parts.

The TopK SAEs read every vector minus its mean and divided by its standard deviation; the ReLU SAEs read it as it is.
The file does not say so: it follows from the activation function.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import InputError, nearest
from autointerp.sae.formats import internal, restricted
from autointerp.sae.sae import Sae

_ACTIVATIONS = ("ReLU", "TopK")


def load(path: Path) -> Sae:
    """Read the .pt, or a folder that holds one. Raises InputError for another activation function or another kind of
    file, and DamagedError when the file is damaged."""
    file = located(path)
    return from_state(restricted.read_pt(file), file)


def from_state(state: Any, file: Path) -> Sae:
    """The Sae from the content of the .pt file."""
    if not isinstance(state, Mapping) or not recognises(state):
        raise InputError(f"{file} holds no pre_bias and latent_bias, so it is not one of OpenAI's")
    activation = state.get("activation")
    if activation not in _ACTIVATIONS:
        raise InputError(
            f"{file}: activation {activation!r} is not supported.{nearest(str(activation), _ACTIVATIONS)} "
            f"Supported: {', '.join(_ACTIVATIONS)}"
        )
    d_sae, d_in = internal.matrix_shape(state, "encoder.weight", file)
    shapes = {"encoder.weight": [d_sae, d_in], "pre_bias": [d_in], "latent_bias": [d_sae]}
    tied = "decoder.weight" not in state and "decoder.linear.weight" in state
    if not tied:
        shapes["decoder.weight"] = [d_in, d_sae]
    weights = internal.checked(state, shapes, file, "encoder.weight")
    W_enc, b_enc = weights["encoder.weight"].T.contiguous(), weights["latent_bias"]
    topk = activation == "TopK"
    return internal.build(
        W_enc,
        b_enc,
        weights["encoder.weight"].clone() if tied else weights["decoder.weight"].T.contiguous(),
        weights["pre_bias"],
        k=_k(state, file) if topk else None,
        threshold=None if topk else torch.zeros(d_sae),
        normalize="layer_norm" if topk else "none",
        architecture="topk" if topk else "standard",
        metadata={},
    )


def located(path: Path) -> Path:
    """The .pt itself, or the only .pt in a folder."""
    if not path.is_dir():
        return path
    found = sorted(p for p in path.iterdir() if p.suffix in (".pt", ".pth"))
    if len(found) != 1:
        raise InputError(f"{path} holds {len(found)} .pt files; name one of them")
    return found[0]


def identity(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    file = located(path)
    if not file.exists():
        raise InputError(f"there is no file {file}")
    return {}, [file]


def recognises(state: Any) -> bool:
    return isinstance(state, Mapping) and {"pre_bias", "latent_bias"} <= state.keys()


def _k(state: Mapping[str, Any], file: Path) -> int:
    inner = state.get("activation_state_dict")
    inner = inner if isinstance(inner, Mapping) else {}
    after = inner.get("postact_fn", "ReLU")
    if after != "ReLU":
        raise InputError(f"{file}: TopK followed by {after} is not supported; supported: ReLU")
    k = inner.get("k")
    if isinstance(k, Tensor) and k.numel() == 1:
        k = k.item()
    return internal.positive_int({"k": k}, "k", file)
