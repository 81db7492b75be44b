"""Reads Goodfire's .pt and .pth: encoder_linear.weight [d_sae, d_in], encoder_linear.bias [d_sae],
decoder_linear.weight [d_in, d_sae], decoder_linear.bias [d_in].

ReLU, and the decoder's bias is not subtracted from the input. Model and layer stand only in the file's name,
Llama-3.3-70B-Instruct-SAE-l50.pt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from autointerp.errors import InputError
from autointerp.sae.formats import internal, restricted, told
from autointerp.sae.sae import Sae

_L0 = {"Llama-3.3-70B-Instruct-SAE-l50": 121, "Llama-3.1-8B-Instruct-SAE-l19": 91}
"""The L0 that the cards of the two published dictionaries state."""


def load(path: Path) -> Sae:
    """Read the file, or a folder that holds one. Raises InputError for another kind of file, and DamagedError when it
    is damaged."""
    file = located(path)
    state = restricted.read_pt(file)
    if not recognises(state):
        raise InputError(f"{file} holds no encoder_linear.weight, so it is not one of Goodfire's")
    d_sae, d_in = internal.matrix_shape(state, "encoder_linear.weight", file)
    shapes = {
        "encoder_linear.weight": [d_sae, d_in],
        "encoder_linear.bias": [d_sae],
        "decoder_linear.weight": [d_in, d_sae],
        "decoder_linear.bias": [d_in],
    }
    weights = internal.checked(state, shapes, file, "encoder_linear.weight")
    del state
    named = told.in_path(r"^(Llama-[\w.-]+)-SAE-l(\d+)", file)
    return internal.build(
        weights.pop("encoder_linear.weight").T.contiguous(),
        weights["encoder_linear.bias"],
        weights.pop("decoder_linear.weight").T.contiguous(),
        weights["decoder_linear.bias"],
        threshold=torch.zeros(d_sae),
        b_pre=torch.zeros(d_in),
        architecture="standard",
        metadata=told.known(
            model_name=f"meta-llama/{named[1]}" if named else None,
            hook_name=f"blocks.{named[2]}.hook_resid_post" if named else None,
        )
        | told.declared(l0=_L0.get(named[0]) if named else None),
    )


def located(path: Path) -> Path:
    """The file itself, or the only one in a folder."""
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
    return isinstance(state, Mapping) and {"encoder_linear.weight", "decoder_linear.weight"} <= state.keys()
