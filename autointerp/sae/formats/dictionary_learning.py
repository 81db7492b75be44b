"""Reads dictionary_learning's files: a folder with `ae.pt` (a state_dict) and `config.json`, or a .pt by itself.

    class                     tensors                                                        f(x)
    AutoEncoder               bias, encoder.weight/.bias, decoder.weight                     relu(W (x - bias) + c)
    AutoEncoderNew            encoder.weight/.bias, decoder.weight/.bias                     relu(W x + c)
    GatedAutoEncoder          decoder_bias, encoder.weight, r_mag, gate_bias, mag_bias, ...  gated
    AutoEncoderTopK           b_dec, encoder.*, decoder.weight, k                            the k largest
    BatchTopKSAE              as AutoEncoderTopK, and threshold                              above the threshold
    MatryoshkaBatchTopKSAE    W_enc, b_enc, W_dec, b_dec, k, threshold, group_sizes          above the threshold
    JumpReluAutoEncoder       W_enc, b_enc, W_dec, b_dec, threshold [d_sae]                  above them, of x itself

encoder.weight is [d_sae, d_in], decoder.weight [d_in, d_sae], W_enc [d_in, d_sae], W_dec [d_sae, d_in].
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import DamagedError, InputError, nearest
from autointerp.sae.formats import internal, restricted
from autointerp.sae.sae import INPUT_SCALE, Sae

CONFIG, WEIGHTS = "config.json", "ae.pt"

State = dict[str, Any]


def load(path: Path) -> Sae:
    """Read the SAE. Raises InputError when its class is unknown or cannot be told from the file, and DamagedError when
    a file is damaged."""
    weights, config = located(path)
    return from_state(restricted.read_pt(weights), weights, config)


def from_state(state: Any, weights: Path, config: dict[str, Any]) -> Sae:
    """The Sae from the content of the .pt file."""
    norm_factor = 1.0
    if isinstance(state, dict) and "ae" in state:  # a run's backup, which is written under the same name
        norm_factor = _backup_factor(state, weights)
        state = state["ae"]
    if not isinstance(state, dict) or not state:
        raise InputError(
            f"{weights} holds {type(state).__name__}, not a state_dict; it is not a dictionary_learning file"
        )
    trainer = config.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    name = trainer.get("dict_class") or _class_by_keys(state, weights)
    if not isinstance(name, str) or name not in _READERS:
        raise InputError(
            f"{weights}: dict_class {name!r} is not supported.{nearest(str(name), _READERS)} "
            f"Supported: {', '.join(_READERS)}"
        )
    parts = _READERS[name](state, weights, trainer)
    if norm_factor != 1.0:
        for key in ("b_enc", "b_dec", "threshold", "b_pre"):
            if parts.get(key) is not None:
                parts[key] = parts[key] * norm_factor
    sae = internal.build(**parts, architecture=_TRAINED_AS[name], metadata=_metadata(config, trainer))
    if norm_factor != 1.0:
        sae.metadata[INPUT_SCALE] = 1 / norm_factor
    return sae


def located(path: Path) -> tuple[Path, dict[str, Any]]:
    """The weights file and the configuration ({} if there is none) of a folder or a .pt. The configuration of a
    checkpoint is one folder above it."""
    weights = path if path.is_file() else path / WEIGHTS
    if path.is_dir() and not weights.exists():
        found = sorted(p for p in path.iterdir() if p.suffix in (".pt", ".pth"))
        if len(found) != 1:
            raise InputError(f"{path} holds {len(found)} .pt files and no {WEIGHTS}; name one of them")
        weights = found[0]
    folders = [weights.parent, *([weights.parent.parent] if weights.parent.name == "checkpoints" else [])]
    for folder in folders:
        if (folder / CONFIG).exists():
            return weights, internal.read_config(folder / CONFIG)
    return weights, {}


def identity(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    weights, config = located(path)
    trainer = config.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    if not weights.exists():
        raise InputError(f"there is no file {weights}")
    return {"dict_class": trainer.get("dict_class"), "k": trainer.get("k")}, [weights]


def recognises(state: Any) -> bool:
    """Whether `state` has the keys of one of the classes."""
    state = state.get("ae", state) if isinstance(state, dict) else state
    return isinstance(state, dict) and ("encoder.weight" in state or {"W_enc", "W_dec"} <= state.keys())


def _class_by_keys(state: State, path: Path) -> str:
    if "group_sizes" in state:
        return "MatryoshkaBatchTopKSAE"
    if "r_mag" in state:
        return "GatedAutoEncoder"
    if "W_enc" in state:
        return "JumpReluAutoEncoder"
    if "bias" in state:
        return "AutoEncoder"
    if "decoder.bias" in state:
        return "AutoEncoderNew"
    if "encoder.weight" in state and "k" in state:
        # TopK and BatchTopK save the same tensors, but only TopK works without the threshold
        if "threshold" not in state or float(_one_threshold(state, path)) < 0:
            return "AutoEncoderTopK"
        raise InputError(
            f"{path} may be AutoEncoderTopK (the k largest of a row) or BatchTopKSAE (above a threshold): both save "
            f'these tensors. Put {CONFIG} beside it: {{"trainer": {{"dict_class": "BatchTopKSAE"}}}}'
        )
    present = ", ".join(sorted(map(str, state))) or "nothing"
    raise InputError(f"{path} is none of {', '.join(_READERS)} (it holds: {present})")


def _backup_factor(state: State, path: Path) -> float:
    """The factor by which the biases of a backup are still scaled: a run on scaled activations scales them back only in
    the file that it saves at the end."""
    factor = state.get("norm_factor")
    factor = factor.item() if isinstance(factor, Tensor) and factor.numel() == 1 else factor
    factor = 1.0 if factor is None else factor
    if not isinstance(factor, (int, float)) or not 0 < factor < float("inf"):
        raise DamagedError(f"{path}: norm_factor is {factor!r}, not a positive number")
    return float(factor)


def _linear(state: State, path: Path, extra: dict[str, str]) -> dict[str, Tensor]:
    """The weights of a class made of nn.Linear. `extra` names the tensors besides encoder and decoder, and the width of
    each."""
    d_sae, d_in = internal.matrix_shape(state, "encoder.weight", path)
    widths = {"d_in": d_in, "d_sae": d_sae}
    shapes = {"encoder.weight": [d_sae, d_in], "decoder.weight": [d_in, d_sae]}
    shapes |= {name: [widths[width]] for name, width in extra.items()}
    weights = internal.checked(state, shapes, path, "encoder.weight")
    weights["W_enc"], weights["W_dec"] = (weights[f"{n}.weight"].T.contiguous() for n in ("encoder", "decoder"))
    return weights


def _autoencoder(state: State, path: Path, trainer: dict[str, Any]) -> dict[str, Any]:
    t = _linear(state, path, {"encoder.bias": "d_sae", "bias": "d_in"})
    return _parts(t, b_enc=t["encoder.bias"], b_dec=t["bias"], threshold=torch.zeros_like(t["encoder.bias"]))


def _autoencoder_new(state: State, path: Path, trainer: dict[str, Any]) -> dict[str, Any]:
    t = _linear(state, path, {"encoder.bias": "d_sae", "decoder.bias": "d_in"})
    b_dec = t["decoder.bias"]
    zeros = torch.zeros_like(t["encoder.bias"])
    return _parts(t, b_enc=t["encoder.bias"], b_dec=b_dec, threshold=zeros, b_pre=torch.zeros_like(b_dec))


def _gated(state: State, path: Path, trainer: dict[str, Any]) -> dict[str, Any]:
    t = _linear(state, path, {"decoder_bias": "d_in", "r_mag": "d_sae", "mag_bias": "d_sae", "gate_bias": "d_sae"})
    gated = internal.gated_as_threshold(t["W_enc"], t["r_mag"], t["mag_bias"], t["gate_bias"])
    t["W_enc"], b_enc, threshold = gated
    return _parts(t, b_enc=b_enc, b_dec=t["decoder_bias"], threshold=threshold)


def _topk(state: State, path: Path, trainer: dict[str, Any]) -> dict[str, Any]:
    t = _linear(state, path, {"encoder.bias": "d_sae", "b_dec": "d_in"})
    return _parts(t, b_enc=t["encoder.bias"], b_dec=t["b_dec"], k=_k(state, path, trainer))


def _batch_topk(state: State, path: Path, trainer: dict[str, Any]) -> dict[str, Any]:
    t = _linear(state, path, {"encoder.bias": "d_sae", "b_dec": "d_in"})
    threshold = _set_threshold(state, path).expand_as(t["encoder.bias"]).clone()
    return _parts(t, b_enc=t["encoder.bias"], b_dec=t["b_dec"], threshold=threshold)


def _matryoshka(state: State, path: Path, trainer: dict[str, Any]) -> dict[str, Any]:
    t = _matrices(state, path, {})
    threshold = _set_threshold(state, path).expand_as(t["b_enc"]).clone()
    return _parts(t, b_enc=t["b_enc"], b_dec=t["b_dec"], threshold=threshold)


def _jumprelu(state: State, path: Path, trainer: dict[str, Any]) -> dict[str, Any]:
    t = _matrices(state, path, {"threshold": "d_sae"})
    zeros = torch.zeros_like(t["b_dec"])
    return _parts(t, b_enc=t["b_enc"], b_dec=t["b_dec"], threshold=t["threshold"], b_pre=zeros)


def _matrices(state: State, path: Path, extra: dict[str, str]) -> dict[str, Tensor]:
    d_in, d_sae = internal.matrix_shape(state, "W_enc", path)
    shapes = {"W_enc": [d_in, d_sae], "b_enc": [d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in]}
    shapes |= {name: [d_sae] for name in extra}
    return internal.checked(state, shapes, path, "W_enc")


def _parts(tensors: dict[str, Tensor], **others: Any) -> dict[str, Any]:
    return {"W_enc": tensors["W_enc"], "W_dec": tensors["W_dec"], **others}


def _k(state: State, path: Path, trainer: dict[str, Any]) -> int:
    k = state.get("k", trainer.get("k"))
    if isinstance(k, Tensor) and k.numel() == 1:
        k = k.item()
    return internal.positive_int({"k": k}, "k", path)


def _one_threshold(state: State, path: Path) -> Tensor:
    if isinstance(state.get("threshold"), Tensor) and state["threshold"].shape == (1,):
        state = state | {"threshold": state["threshold"].squeeze(0)}
    return internal.checked(state, {"threshold": []}, path, "its class")["threshold"]


def _set_threshold(state: State, path: Path) -> Tensor:
    threshold = _one_threshold(state, path)
    if float(threshold) < 0:
        raise InputError(
            f"{path}: the threshold is {float(threshold):g}, so training never set it (it does from step 1000 on); "
            "train longer, or set it to the least activation that should count"
        )
    return threshold


def _metadata(config: dict[str, Any], trainer: dict[str, Any]) -> dict[str, Any]:
    """Model and hook point from the configuration, under SAELens's names."""
    buffer = config.get("buffer")
    found = {
        "model_name": trainer.get("lm_name"),
        "hook_layer": trainer.get("layer"),
        "submodule_name": trainer.get("submodule_name"),
        "context_size": buffer.get("ctx_len") if isinstance(buffer, dict) else None,
    }
    named = re.fullmatch(r"(resid_post|mlp_out|attn_out|resid_pre)_layer_(\d+)", str(found["submodule_name"]))
    if named:
        found["hook_name"] = f"blocks.{named[2]}.hook_{named[1]}"
    return {key: value for key, value in found.items() if value is not None}


_READERS: dict[str, Callable[[State, Path, dict[str, Any]], dict[str, Any]]] = {
    "AutoEncoder": _autoencoder,
    "AutoEncoderNew": _autoencoder_new,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
}
_TRAINED_AS = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "matryoshka_batchtopk",
    "JumpReluAutoEncoder": "jumprelu",
}
