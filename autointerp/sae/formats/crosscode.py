"""Reads crosscode's crosscoders, transcoders and SAEs: `model_cfg.yaml` and `model.pt`.

    _W_enc_XiDiL [models, hooks, d, d_sae]   _W_dec_LXoDo [d_sae, models, hooks, d]   b_enc_L [d_sae]
    _b_dec_XoDo [models, hooks, d]   is_folded []   W_skip_DPD [d, hooks, d]   _activation_fn.log_threshold_L [d_sae]

Both biases may be absent, and so may models and hooks: a cross-layer transcoder reads one vector, [d, d_sae], and
writes [d_sae, hooks, d]. Hooks of one model stand side by side, then those of the next. b_dec is not subtracted from
the input. A crosscoder is trained on scaled activations, and only one into whose weights these scales were folded can
read a model's own; the file does not keep the scales of one that is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import internal, restricted, yaml_config
from autointerp.sae.sae import Sae

CONFIG, WEIGHTS = "model_cfg.yaml", "model.pt"
_ENCODER, _DECODER, _B_ENC, _B_DEC = "_W_enc_XiDiL", "_W_dec_LXoDo", "b_enc_L", "_b_dec_XoDo"
_SKIPS = ("W_skip_DPD", "W_skip_DD")


def load(folder: Path) -> Sae:
    """Read the folder. Raises InputError for an activation function that is not supported and for weights into which no
    scale was folded, and DamagedError."""
    path, weights = folder / CONFIG, folder / WEIGHTS
    config, state = yaml_config.read(path), restricted.read_pt(weights)
    if not isinstance(state, dict):
        raise DamagedError(f"{weights} holds {type(state).__name__}, not the tensors of a crosscoder")
    encoder, decoder = (_at_least_a_matrix(state, name, weights) for name in (_ENCODER, _DECODER))
    read, written, d_sae = list(encoder.shape[:-1]), list(decoder.shape[1:]), encoder.shape[-1]
    shapes = {_ENCODER: [*read, d_sae], _DECODER: [d_sae, *written]}
    shapes |= {name: shape for name, shape in ((_B_ENC, [d_sae]), (_B_DEC, written)) if name in state}
    skip = next((name for name in _SKIPS if name in state), None)
    if skip is not None:
        shapes[skip] = [*read, *written]
    t = internal.checked(state, shapes, weights, f"{_ENCODER} or {_DECODER}")
    if not bool(_flag(state, weights)):
        raise InputError(
            f"{weights} was saved before the scales of the activations were folded into its weights, and does not hold "
            "them; save what `with_folded_scaling_factors` returns"
        )
    W_enc, W_dec = t[_ENCODER].reshape(-1, d_sae), t[_DECODER].reshape(d_sae, -1)
    k, threshold = _choice(config, state, d_sae, path, weights)
    return internal.build(
        W_enc,
        t.get(_B_ENC, torch.zeros(d_sae)),
        W_dec,
        t[_B_DEC].flatten() if _B_DEC in t else torch.zeros(W_dec.shape[1]),
        k=k,
        threshold=threshold,
        b_pre=torch.zeros(len(W_enc)),
        W_skip=None if skip is None else t[skip].reshape(len(W_enc), -1),
        relu=k is None,  # its TopK keeps the k largest, below 0 too
        architecture="crosscoder" if read == written else "crosscoder_transcoder",
        metadata=_metadata(config, written, k),
    )


def identity(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    config = yaml_config.read(folder / CONFIG)
    return {"activation_fn": repr(config.get("activation_fn"))}, [folder / WEIGHTS]


def recognises(folder: Path) -> bool:
    return (folder / CONFIG).exists() and (folder / WEIGHTS).exists()


def _at_least_a_matrix(state: dict[str, Any], name: str, path: Path) -> Tensor:
    found = state.get(name)
    if not isinstance(found, Tensor) or not 2 <= found.ndim <= 4 or 0 in found.shape:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise DamagedError(f"{path}: {name} should have two to four dimensions, but is {shape}")
    return found


def _flag(state: dict[str, Any], path: Path) -> Tensor:
    found = state.get("is_folded")
    if not isinstance(found, Tensor) or found.numel() != 1:
        raise DamagedError(f"{path} lacks is_folded, which says whether its weights are for a model's own activations")
    return found


def _choice(
    config: dict[str, Any], state: dict[str, Any], d_sae: int, path: Path, weights: Path
) -> tuple[int | None, Tensor | None]:
    """(k, threshold), one of them None."""
    told = config.get("activation_fn")
    name = told.get("classname") if isinstance(told, dict) else None
    settings = told.get("cfg") if isinstance(told, dict) else None
    if name == "ReLUActivation":
        return None, torch.zeros(d_sae)
    if name in ("AnthropicSTEJumpReLUActivation", "JumpReLUActivationFunction"):
        log = "_activation_fn.log_threshold_L"
        return None, internal.checked(state, {log: [d_sae]}, weights, "_W_enc_XiDiL")[log].exp()
    if name == "TopkActivation":
        return internal.positive_int(settings if isinstance(settings, dict) else {}, "k", path), None
    if name == "BatchTopkActivation":
        raise InputError(
            f"{path}: BatchTopkActivation keeps the largest activations of a batch and saves no threshold for single "
            "tokens; such crosscoders are not supported"
        )
    raise InputError(f"{path}: the activation function {name!r} is not supported; ReLU, JumpReLU and Topk are")


def _metadata(config: dict[str, Any], written: list[int], k: int | None) -> dict[str, Any]:
    n_parts = 1
    for n in written[:-1]:
        n_parts *= n
    found: dict[str, Any] = {"parts": n_parts}
    if isinstance(config.get("n_models"), int):
        found["models"] = config["n_models"]
    return found if k is None else found | {"declared": {"l0": float(k)}}
