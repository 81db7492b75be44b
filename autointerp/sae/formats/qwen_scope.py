"""Reads Qwen-Scope's `layerN.sae.pt`: W_enc [d_sae, d_in], b_enc [d_sae], W_dec [d_in, d_sae], b_dec [d_in].

TopK without a ReLU, as its card computes it; b_dec is not subtracted from the input. The layer stands only in the
file's name, and k only in the repository's: SAE-Res-Qwen3-1.7B-Base-W32K-L0_50. A config.json beside the file that
holds {"k": 50} tells it, too. JumpReluAutoEncoder of dictionary_learning has the same names, but its matrices are
turned, and it has thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import InputError
from autointerp.sae.formats import internal, restricted, told
from autointerp.sae.sae import Sae

CONFIG, ENDING = "config.json", ".sae.pt"
_NAMES = {"W_enc", "W_dec", "b_enc", "b_dec"}
_REPOSITORY = r"SAE-Res-(.+?)-W(\d+)K-L0_(\d+)"


def load(path: Path) -> Sae:
    """Read the file, or a folder that holds one. Raises InputError where k cannot be known, and DamagedError when the
    file is damaged."""
    file = located(path)
    k = _k(file)
    state = restricted.read_pt(file)
    if not isinstance(state, Mapping) or not state.keys() >= _NAMES:
        raise InputError(f"{file} does not hold {', '.join(sorted(_NAMES))}, so it is not one of Qwen-Scope's")
    d_sae, d_in = internal.matrix_shape(state, "W_enc", file)
    named = told.in_path(_REPOSITORY, file)
    if named and int(named[2]) * 1024 != d_sae:
        raise InputError(f"{file} has {d_sae} features, but its folder is named W{named[2]}K; put the right file there")
    shapes = {"W_enc": [d_sae, d_in], "b_enc": [d_sae], "W_dec": [d_in, d_sae], "b_dec": [d_in]}
    weights = internal.checked(state, shapes, file, "W_enc")
    del state
    layer = told.in_path(r"^layer(\d+)\.sae\.pt$", file)
    return internal.build(
        weights.pop("W_enc").T.contiguous(),
        weights["b_enc"],
        weights.pop("W_dec").T.contiguous(),
        weights["b_dec"],
        k=k,
        relu=False,
        b_pre=torch.zeros(d_in),
        architecture="topk",
        metadata=told.known(
            model_name=f"Qwen/{named[1]}" if named else None,
            hook_name=f"blocks.{layer[1]}.hook_resid_post" if layer else None,
        )
        | told.declared(l0=k),
    )


def located(path: Path) -> Path:
    """The file itself, or the only one of a folder, whose files are one for each layer."""
    if not path.is_dir():
        return path
    found = sorted(p for p in path.iterdir() if p.name.endswith((".pt", ".pth")))
    if len(found) != 1:
        raise InputError(f"{path} holds {len(found)} .pt files, one for each layer; name the file of one layer")
    return found[0]


def identity(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    file = located(path)
    if not file.exists():
        raise InputError(f"there is no file {file}")
    return {"k": _k(file)}, [file]


def recognises(state: Any) -> bool:
    """Whether `state` is such a dictionary: the same names as others use, but the encoder's rows are the features."""
    if not isinstance(state, Mapping) or not state.keys() >= _NAMES or {"threshold", "group_sizes"} & state.keys():
        return False
    W_enc, b_enc = state["W_enc"], state["b_enc"]
    if not isinstance(W_enc, Tensor) or not isinstance(b_enc, Tensor) or W_enc.ndim != 2 or b_enc.ndim != 1:
        return False
    return W_enc.shape[0] == b_enc.shape[0]


def _k(file: Path) -> int:
    named = told.in_path(_REPOSITORY, file)
    if named:
        return int(named[3])
    config = internal.read_config(file.parent / CONFIG) if (file.parent / CONFIG).exists() else {}
    if "k" in config:
        return internal.positive_int(config, "k", file.parent / CONFIG)
    raise InputError(
        f"{file} does not say how many features are active at once: only the name of its repository does "
        f'(SAE-Res-...-W32K-L0_50); keep the file in a folder of that name, or put {CONFIG} beside it: {{"k": 50}}'
    )
