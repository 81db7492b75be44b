"""Reads Llama Scope (OpenMOSS, version 1): `hyperparams.json` with `checkpoints/final.safetensors`, and the later
folders of Llama Scope R1-Distill, `config.json` with `sae_weights.safetensors`.

    encoder.weight [d_sae, d_in]   encoder.bias [d_sae]   decoder.weight [d_out, d_sae]   decoder.bias [d_out]
    encoder_glu.weight, encoder_glu.bias   log_jumprelu_threshold [d_sae] (R1-Distill)

They compute what Llamascopium computes (see llamascopium.py), but for one thing: version 1 set its one threshold after
the scale and the lengths of decoder rows were folded into the weights, so `jump_relu_threshold` is in the units of the
model's own vectors, for decoder rows of length one. (In the published files it grows with the average length of the
vectors that are written: .202 for 6.3, .754 for 29.1, and .104 for 3.4 of a transcoder that reads 64.) SAELens scales
it likewise, but by the input's length and without the decoder rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import DamagedError
from autointerp.sae import files
from autointerp.sae.formats import internal, llamascopium, told
from autointerp.sae.formats.load_memory import require_memory_for_safetensors
from autointerp.sae.sae import Sae

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
LATER_CONFIG, LATER_WEIGHTS = llamascopium.CONFIG, llamascopium.WEIGHTS
_MODELS = {"Llama3_1-8B-Base": "meta-llama/Llama-3.1-8B"}


def load(path: Path) -> Sae:
    """Read a folder. Raises InputError for settings that are not supported, and DamagedError for damaged files."""
    settings_path, file = located(path)
    config = internal.read_config(settings_path)
    llamascopium.check_type(config, settings_path)
    require_memory_for_safetensors(file)
    tensors = files.read_tensors(file)
    d_sae, d_in = internal.matrix_shape(tensors, "encoder.weight", file)
    d_out = internal.matrix_shape(tensors, "decoder.weight", file)[0]
    shapes = {"encoder.weight": [d_sae, d_in], "encoder.bias": [d_sae], "decoder.weight": [d_out, d_sae]}
    if config.get("use_decoder_bias", True):
        shapes["decoder.bias"] = [d_out]
    if config.get("use_glu_encoder"):
        shapes |= {"encoder_glu.weight": [d_sae, d_in], "encoder_glu.bias": [d_sae]}
    logs = config.get("act_fn") == "jumprelu" and "log_jumprelu_threshold" in tensors
    if logs:
        shapes["log_jumprelu_threshold"] = [d_sae]
    if "d_sae" in config and config["d_sae"] != d_sae:
        raise DamagedError(
            f"{file} has {d_sae} features, but {settings_path.name} says d_sae = {config['d_sae']!r:.100}"
        )
    weights = internal.checked(tensors, shapes, file, "encoder.weight")
    s_in, s_out = _scales(config, tensors, settings_path, file, d_in, d_out)
    del tensors
    threshold = None
    if logs:
        threshold = weights.pop("log_jumprelu_threshold").exp()
    elif config.get("act_fn") == "jumprelu":
        own = told.positive_number(config.get("jump_relu_threshold"), "jump_relu_threshold", settings_path)
        config |= {"sparsity_include_decoder_norm": True}
        threshold = torch.full((d_sae,), own * s_out)
    renamed = _renamed(weights)
    return llamascopium.assemble(
        renamed, config, settings_path, (s_in, s_out), threshold=threshold, metadata=_metadata(config, path)
    )


def located(path: Path) -> tuple[Path, Path]:
    """The configuration and the weights of a folder."""
    if (path / CONFIG).exists() or not (path / LATER_CONFIG).exists():
        return path / CONFIG, path / WEIGHTS
    return path / LATER_CONFIG, path / LATER_WEIGHTS


def identity(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    settings_path, file = located(path)
    config = internal.read_config(settings_path)
    files.read_header(file)
    lengths = config.get(llamascopium.NORM)
    return {key: config.get(key) for key in llamascopium.ESSENTIAL} | {"lengths": lengths}, [file]


def recognises(path: Path) -> bool:
    """Whether a folder has this layout."""
    if not path.is_dir():
        return False
    settings_path, file = located(path)
    if not settings_path.exists() or not file.exists():
        return False
    return {"encoder.weight", "decoder.weight"} <= files.read_header(file).keys()


def _scales(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, file: Path, d_in: int, d_out: int
) -> tuple[float, float]:
    """(s_in, s_out), from the average lengths in the configuration or, later, in the weights."""
    lengths = config.get(llamascopium.NORM)
    if config.get("norm_activation", "dataset-wise") != "dataset-wise":
        return 1.0, 1.0
    if isinstance(lengths, dict):
        name = f"{llamascopium.NORM}.{{}}".format
        return (
            math.sqrt(d_in) / told.positive_number(lengths.get("in"), name("in"), path),
            math.sqrt(d_out) / told.positive_number(lengths.get("out"), name("out"), path),
        )
    kept = {name: t for name, t in tensors.items() if name.startswith(llamascopium.NORM)}
    both = {"W_E": tensors["encoder.weight"].T, "W_D": tensors["decoder.weight"].T}
    return llamascopium.scales_of(config, kept | both, file)


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under version 2's names, its matrices turned."""
    names = {"encoder": "E", "decoder": "D", "encoder_glu": "E_glu"}
    found = {}
    for name in list(weights):
        part, kind = name.split(".")
        tensor = weights.pop(name)
        found[f"{'W' if kind == 'weight' else 'b'}_{names[part]}"] = (
            tensor.T.contiguous() if tensor.ndim == 2 else tensor
        )
    return found


def _metadata(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    named = told.in_path(r"^(?:.*--)?(Llama3_1-8B-Base)-L", path)
    facts = told.known(model_name=_MODELS[named[1]] if named else None)
    if (path / CONFIG).exists():  # trained with top_k, and converted to a threshold that keeps so many active
        return facts | {"prepend_bos": True, "context_size": 1024} | told.declared(l0=config.get("top_k"))
    return facts
