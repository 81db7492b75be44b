"""Reads Gemma Scope's `params.npz`: W_enc [d_in, d_sae], b_enc and threshold [d_sae], W_dec [d_sae, d_out], b_dec
[d_out].

These are JumpReLU SAEs, and b_dec is not subtracted from the input. The oldest files say w_enc and w_dec. Nothing in
the file tells an SAE from a transcoder, or from an SAE of the embedding, which is in other units: only the folder's
name tells the latter.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from autointerp.errors import InputError
from autointerp.sae.formats import internal, restricted
from autointerp.sae.sae import INPUT_SCALE, Sae

WEIGHTS = "params.npz"
_OLD_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec"}


def load(path: Path) -> Sae:
    """Read a folder or the .npz itself. Raises InputError when there is no file, and DamagedError when it is
    damaged."""
    file = located(path)
    arrays = {_OLD_NAMES.get(name, name): array for name, array in restricted.read_npz(file).items()}
    d_in, d_sae = internal.matrix_shape(arrays, "W_enc", file)
    d_out = internal.matrix_shape(arrays, "W_dec", file)[1]
    shapes = {"W_enc": [d_in, d_sae], "b_enc": [d_sae], "threshold": [d_sae], "W_dec": [d_sae, d_out], "b_dec": [d_out]}
    weights = internal.checked(arrays, shapes, file, "W_enc")
    del arrays
    metadata: dict[str, Any] = {"prepend_bos": True}  # all of them were trained on documents that begin with a BOS
    if _of_the_embedding(file):  # trained on the embedding's rows before Gemma multiplies them by sqrt(d_in)
        weights["W_enc"] /= math.sqrt(d_in)
        weights["W_dec"] *= math.sqrt(d_in)
        metadata |= {"hook_name": "hook_embed", INPUT_SCALE: 1 / math.sqrt(d_in)}
    return internal.build(  # which drops each matrix as soon as it has scaled it
        weights.pop("W_enc"),
        weights["b_enc"],
        weights.pop("W_dec"),
        weights["b_dec"],
        threshold=weights["threshold"],
        b_pre=torch.zeros(d_in),
        architecture="jumprelu",
        metadata=metadata,
    )


def located(path: Path) -> Path:
    """The .npz of a folder: params.npz, or the only one with these arrays."""
    if not path.is_dir():
        return path
    found = [path / WEIGHTS] if (path / WEIGHTS).exists() else [p for p in sorted(path.glob("*.npz")) if recognises(p)]
    if len(found) != 1:
        raise InputError(
            f"{path} holds no {WEIGHTS}, and {len(found)} other .npz files with such arrays; name the file"
        )
    return found[0]


def identity(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    file = located(path)
    if not file.exists():
        raise InputError(f"there is no file {file}")
    return {"embedding": _of_the_embedding(file)}, [file]


def recognises(path: Path) -> bool:
    """Whether an .npz holds these arrays."""
    names = {_OLD_NAMES.get(name, name) for name in restricted.npz_names(path)}
    return {"W_enc", "W_dec", "threshold"} <= names


def _of_the_embedding(file: Path) -> bool:
    return any(part.startswith("embedding") for part in file.absolute().parts[:-1])
