"""Reads and writes SAELens's folders with `cfg.json` and `sae_weights.safetensors`; reads layouts before version 6 too.

    W_enc [d_in, d_sae]   b_enc [d_sae]   W_dec [d_sae, d_out]   b_dec [d_out]
    jumprelu      threshold [d_sae] (training checkpoints of old: log_threshold)
    batchtopk     topk_threshold [], in training checkpoints only; a finished one is saved as jumprelu
    gated         b_gate, b_mag, r_mag [d_sae] instead of b_enc
    skip_*        W_skip [d_out, d_in]
    abstopk       the k largest by their size, with their signs: a feature and its opposite are two things to label, so
                  it is read as twice as many features, i and i + d_sae, of which the second is the first's opposite
    matching_pursuit  W_dec and b_dec only (see pursuit.py)

Before version 6 the configuration was flat, named the activation function instead of the architecture, and could have a
factor per feature by which activations are multiplied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from autointerp.errors import DamagedError, InputError
from autointerp.sae import files
from autointerp.sae.formats import internal
from autointerp.sae.formats.load_memory import require_memory_for_safetensors
from autointerp.sae.formats.saelens_config import BATCHTOPK, JUMPRELU, RELU, TOPK, upgraded
from autointerp.sae.long_vectors import limit_in
from autointerp.sae.pursuit import Pursuit
from autointerp.sae.sae import GATED_BY_NORM, INPUT_SCALE, Normalize, Sae

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
VERSION = "6.54.12"
"""The version of SAELens whose layout is written and tested. SAELens reads it to know the format."""

_MOST_STEPS = 100_000
_NORMALIZE = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
_NORMALIZE_BACK = {ours: theirs for theirs, ours in _NORMALIZE.items()}
# The settings that decide the numbers; the rest of cfg.json says where the SAE came from. The first are hashed even if
# absent, the others only if present, because stores hold digests from before those were known.
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
_ALSO_ESSENTIAL = (
    "d_out",
    "activation_fn_str",
    "activation_fn",
    "activation_fn_kwargs",
    "finetuning_scaling_factor",
    "residual_threshold",
    "max_iterations",
    "stop_on_duplicate_support",
)


def load(folder: Path) -> Sae:
    """Read the SAE. Raises InputError when the architecture or a setting is not supported, and DamagedError when a file
    is cut short, lacks tensors, or holds NaN or infinite numbers."""
    path = folder / CONFIG
    config = upgraded(internal.read_config(path), path)
    architecture, metadata = config["architecture"], internal.told_by_file(config["metadata"])
    normalize = config.get("normalize_activations") or "none"
    scale = _input_scale(folder, path) if normalize == "expected_average_only_in" else None
    if scale is None and (not isinstance(normalize, str) or normalize not in _NORMALIZE):
        raise InputError(
            f"{path}: normalize_activations {normalize!r} is not supported: fold it into the weights in SAELens "
            "(save_inference_model of the training run) and load that"
        )
    transcoder = "transcoder" in architecture
    if transcoder and normalize != "none":
        raise InputError(f"{path}: normalize_activations {normalize!r} is not supported for transcoders")
    k = internal.positive_int(config, "k", path) if architecture in TOPK else None
    require_memory_for_safetensors(folder / WEIGHTS)
    tensors = files.read_tensors(folder / WEIGHTS)
    weights = _weights(tensors, config, folder / WEIGHTS, path)
    encoder = _Encoder(weights, architecture)
    file_norms = weights["W_dec"].norm(dim=1)
    if config.get("rescale_acts_by_decoder_norm") and architecture in (*TOPK, *BATCHTOPK):
        encoder.multiply_by(file_norms)
        weights["W_dec"] = weights["W_dec"] / _positive(file_norms).unsqueeze(1)
        metadata = metadata | {GATED_BY_NORM: True}
    if "scaling_factor" in weights:  # a feature adds its activation times its factor
        weights["W_dec"] = weights["W_dec"] * weights["scaling_factor"].unsqueeze(1)
    if scale is not None:  # the SAE in the file reads scale * x and writes scale * x_hat
        weights["b_dec"], metadata = weights["b_dec"] / scale, metadata | {INPUT_SCALE: scale}
        if architecture != "matching_pursuit":  # whose activations grow with x
            encoder.W_enc, weights["W_dec"] = encoder.W_enc * scale, weights["W_dec"] / scale
    minus_b_dec = config.get("apply_b_dec_to_input", True) and not transcoder
    if architecture == "abstopk":
        encoder.add_opposites()
        weights["W_dec"] = torch.cat([weights["W_dec"], -weights["W_dec"]])
        file_norms = file_norms.repeat(2)
        metadata = metadata | {"opposite_features": config["d_sae"]}
    pursuit = _pursuit(config, path, scale or 1.0) if architecture == "matching_pursuit" else None
    if pursuit is not None and not minus_b_dec:  # then the tied decoder leaves b_dec out, too
        weights["b_dec"] = torch.zeros_like(weights["b_dec"])
    trained_as = metadata.get("training_architecture")
    if config.get("reshape_activations") == "hook_z":
        metadata = metadata | {"reshape_activations": "hook_z"}
    sae = internal.build(
        encoder.W_enc,
        encoder.b_enc,
        weights["W_dec"],
        weights["b_dec"],
        k=k,
        threshold=encoder.threshold,
        b_pre=None if minus_b_dec else torch.zeros(config["d_in"]),
        W_skip=weights["W_skip"].T.contiguous() if "W_skip" in weights else None,
        normalize="none" if scale is not None else cast(Normalize, _NORMALIZE[normalize]),
        pursuit=pursuit,
        architecture=trained_as if isinstance(trained_as, str) and not transcoder else architecture,
        metadata=metadata,
    )
    if GATED_BY_NORM in sae.metadata:  # the rows had lost their lengths by then
        sae.file_norms = file_norms
    return sae


def save(sae: Sae, folder: Path, metadata: dict[str, Any]) -> None:
    """Write the SAE. `metadata` becomes the metadata in cfg.json, with the family in which the SAE was trained. The
    configuration is written last. Raises InputError for a TopK transcoder, since SAELens has no class for it, and
    DiskFullError."""
    internal.check_plain(sae, "SAELens")
    transcoder = internal.is_transcoder(sae)
    architecture = _architecture_there(sae)
    if transcoder and sae.normalize != "none":
        raise InputError(f"SAELens has no form for a transcoder with inputs scaled by {sae.normalize}")
    minus_b_dec = not transcoder and internal.same_pre_bias(sae)
    tensors = {
        "W_enc": sae.W_enc,
        "b_enc": sae.b_enc if minus_b_dec else internal.b_enc_without_pre_bias(sae),
        "W_dec": internal.file_W_dec(sae),
        "b_dec": sae.b_dec,
    }
    if "jumprelu" in architecture and sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip.T
    facts = {key: value for key, value in metadata.items() if key != "reshape_activations"}
    # SAELens splits heads itself, but only under its own name of that hook
    by_heads = metadata.get("reshape_activations") == "hook_z" and str(facts.get("hook_name", "")).endswith("_z")
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": minus_b_dec,
        "normalize_activations": _NORMALIZE_BACK[sae.normalize],
        "reshape_activations": "hook_z" if by_heads else "none",
        "metadata": {
            "sae_lens_training_version": None,
            "training_architecture": sae.architecture,
            **facts,
            "sae_lens_version": VERSION,  # the version of this layout, not the one that first saved the SAE
        },
    }
    if sae.k is not None:
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if transcoder:
        config["d_out"] = sae.d_out
    files.write_tensors(folder / WEIGHTS, {name: tensor.float() for name, tensor in tensors.items()})
    internal.write_config(folder / CONFIG, config)


def identity(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and files that decide the numbers."""
    config = internal.read_config(folder / CONFIG)
    files.read_header(folder / WEIGHTS)
    settings = {key: config.get(key) for key in _ESSENTIAL}
    settings |= {key: config[key] for key in _ALSO_ESSENTIAL if config.get(key) is not None}
    settings |= limit_in(config.get("metadata"))
    scaled = config.get("normalize_activations") in ("expected_average_only_in", True)
    return settings, [folder / WEIGHTS, *([folder / SCALER] if scaled and (folder / SCALER).exists() else [])]


class _Encoder:
    """W_enc, b_enc and thresholds; the thresholds are None where the k largest are chosen."""

    def __init__(self, weights: dict[str, Tensor], architecture: str) -> None:
        self.W_enc = weights["W_dec"].T.contiguous() if architecture == "matching_pursuit" else weights["W_enc"]
        self.threshold: Tensor | None = None
        if architecture == "gated":
            gated = (weights[name] for name in ("W_enc", "r_mag", "b_mag", "b_gate"))
            self.W_enc, self.b_enc, self.threshold = internal.gated_as_threshold(*gated)
            return
        self.b_enc = weights["b_enc"] if "b_enc" in weights else torch.zeros(self.W_enc.shape[1])
        if architecture in RELU:
            self.threshold = torch.zeros_like(self.b_enc)
        elif architecture in JUMPRELU:
            self.threshold = weights["threshold"]
        elif architecture in BATCHTOPK:
            self.threshold = weights["topk_threshold"].expand_as(self.b_enc).clone()

    def multiply_by(self, norms: Tensor) -> None:
        """Scale encoder and bias by the decoder's norms, as the file's SAE does with its pre-activations. The file's
        threshold is in those units already."""
        self.W_enc, self.b_enc = self.W_enc * norms, self.b_enc * norms

    def add_opposites(self) -> None:
        self.W_enc = torch.cat([self.W_enc, -self.W_enc], dim=1)
        self.b_enc = torch.cat([self.b_enc, -self.b_enc])


def _pursuit(config: dict[str, Any], path: Path, scale: float) -> Pursuit:
    """The rule by which a pursuit ends. The file's threshold is in the units of scaled inputs."""
    residual, steps = config.get("residual_threshold", 0.01), config.get("max_iterations")
    if isinstance(residual, bool) or not isinstance(residual, (int, float)) or not residual < float("inf"):
        raise InputError(f"{path}: residual_threshold must be a number, not {residual!r:.100}")
    n_steps = internal.positive_int(config, "d_in" if steps is None else "max_iterations", path)
    if n_steps > _MOST_STEPS:
        raise InputError(f"{path}: max_iterations is {n_steps}; more than {_MOST_STEPS} are not made for one vector")
    return Pursuit(
        steps=n_steps,
        residual=max(float(residual), 0.0) / scale,
        stop_at_repeat=bool(config.get("stop_on_duplicate_support", True)),
    )


def _weights(tensors: dict[str, Tensor], config: dict[str, Any], path: Path, config_path: Path) -> dict[str, Tensor]:
    """The tensors that the architecture needs, in float32. `scaling_factor` is included only if it changes anything."""
    architecture, d_in, d_sae = config["architecture"], config["d_in"], config["d_sae"]
    d_out = d_in
    if "transcoder" in architecture:
        d_out = internal.positive_int(config, "d_out", config_path)
    shapes: dict[str, list[int]] = {"W_enc": [d_in, d_sae], "b_enc": [d_sae], "W_dec": [d_sae, d_out], "b_dec": [d_out]}
    if architecture == "matching_pursuit":
        shapes = {"W_dec": shapes["W_dec"], "b_dec": shapes["b_dec"]}
    if architecture == "gated":
        del shapes["b_enc"]
        shapes |= {"b_gate": [d_sae], "b_mag": [d_sae], "r_mag": [d_sae]}
    if architecture in JUMPRELU:
        if "threshold" not in tensors and "log_threshold" in tensors:
            tensors = tensors | {"threshold": tensors["log_threshold"].exp()}
        shapes["threshold"] = [d_sae]
    if architecture in BATCHTOPK:
        if "threshold" in tensors and "topk_threshold" not in tensors:
            raise InputError(
                f"{config_path}: {architecture} with a threshold per feature; its architecture is jumprelu"
            )
        shapes["topk_threshold"] = []
    if "skip" in architecture:
        shapes["W_skip"] = [d_out, d_in]
    factor = tensors.get("scaling_factor", tensors.get("finetuning_scaling_factor"))
    if factor is not None and not torch.allclose(factor.float(), torch.ones_like(factor.float())):
        if not config.get("finetuning_scaling_factor"):
            raise InputError(
                f"{path} has a scaling_factor other than 1, and {CONFIG} does not say to use it "
                "(finetuning_scaling_factor); fold it into W_dec, or set that to true"
            )
        tensors, shapes["scaling_factor"] = tensors | {"scaling_factor": factor}, [d_sae]
    weights = internal.checked(tensors, shapes, path, CONFIG)
    if architecture in BATCHTOPK and float(weights["topk_threshold"]) <= 0:
        raise InputError(f"{path}: topk_threshold was never set, so this checkpoint is from before the first step")
    return weights


def _input_scale(folder: Path, path: Path) -> float:
    """The input factor that a training checkpoint keeps in a file beside its weights."""
    if not (folder / SCALER).exists():
        raise InputError(
            f"{path}: normalize_activations 'expected_average_only_in' multiplies inputs by a factor that is not in "
            "the file; fold it in SAELens (fold_activation_norm_scaling_factor), save again and load that"
        )
    factor = internal.read_config(folder / SCALER).get("scaling_factor")
    if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not 0 < factor < float("inf"):
        raise DamagedError(f"{folder / SCALER}: scaling_factor is {factor!r}, not a positive number")
    return float(factor)


def _architecture_there(sae: Sae) -> str:
    if not internal.is_transcoder(sae):
        if sae.threshold is None:
            return "topk"
        return "jumprelu" if bool(sae.threshold.any()) else "standard"
    if sae.threshold is None:
        raise InputError("SAELens has no class for TopK transcoders; save this one in sparsify's format")
    name = "transcoder" if sae.W_skip is None else "skip_transcoder"
    return f"jumprelu_{name}" if bool(sae.threshold.any()) else name


def _positive(norms: Tensor) -> Tensor:
    return norms.clamp_min(torch.finfo(torch.float32).tiny)
