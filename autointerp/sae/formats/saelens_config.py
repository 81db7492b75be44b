"""The configuration in SAELens's cfg.json, of any version, in the form of version 6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autointerp.errors import InputError, nearest
from autointerp.sae.formats import internal

TOPK = ("topk", "abstopk")
BATCHTOPK = ("batchtopk", "matryoshka_batchtopk", "matryoshka")
JUMPRELU = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder")
RELU = ("standard", "transcoder", "skip_transcoder")
ARCHITECTURES = (*RELU, *TOPK, *BATCHTOPK, *JUMPRELU, "gated", "matching_pursuit")
_UNREADABLE = {
    "temporal": "its novel codes are codes of what attention over all earlier tokens of the text leaves of a vector, "
    "and an SAE here reads one vector at a time",
}
# The keys of a flat configuration that version 6 keeps as metadata.
_METADATA = (
    "model_name",
    "hook_name",
    "hook_layer",
    "hook_head_index",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "context_size",
    "seqpos_slice",
    "dataset_path",
    "neuronpedia_id",
    "sae_lens_version",
    "sae_lens_training_version",
)
_OLD_NAMES = {"hook_point": "hook_name", "hook_point_layer": "hook_layer", "hook_point_head_index": "hook_head_index"}


def upgraded(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """A configuration of any version in the form of version 6, with a known architecture and checked sizes."""
    flat = not isinstance(config.get("metadata"), dict)
    config = _from_flat(config, path) if flat else dict(config)
    architecture = config.get("architecture")
    if architecture is None:
        raise InputError(f"{path} names no architecture; known: {', '.join(ARCHITECTURES)}")
    if isinstance(architecture, str) and architecture in _UNREADABLE:
        raise InputError(f"{path}: architecture {architecture!r} is not read: {_UNREADABLE[architecture]}")
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{path}: architecture {architecture!r} is not supported.{nearest(str(architecture), ARCHITECTURES)} "
            f"Supported: {', '.join(ARCHITECTURES)}"
        )
    internal.positive_int(config, "d_in", path)
    internal.positive_int(config, "d_sae", path)
    return config


def _from_flat(config: dict[str, Any], path: Path) -> dict[str, Any]:
    new = {_OLD_NAMES.get(key, key): value for key, value in config.items()}
    activation = new.get("activation_fn_str") or new.get("activation_fn") or "relu"
    architecture = new.get("architecture") or "standard"
    if activation == "topk":
        kwargs = new.get("activation_fn_kwargs")
        new["k"] = kwargs.get("k") if isinstance(kwargs, dict) and "k" in kwargs else new.get("k")
        architecture = "topk"
    elif activation != "relu" and architecture != "topk":
        raise InputError(f"{path}: the activation function {activation!r} is not supported; supported: relu, topk")
    if isinstance(new.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if new["normalize_activations"] else "none"
    hook_name = str(new.get("hook_name") or "")
    new.setdefault("reshape_activations", "hook_z" if "hook_z" in hook_name else "none")
    new.setdefault("prepend_bos", True)  # what SAELens did before this was an option
    if "d_sae" not in new and isinstance(new.get("expansion_factor"), int) and isinstance(new.get("d_in"), int):
        new["d_sae"] = new["expansion_factor"] * new["d_in"]
    new["architecture"] = architecture
    new["metadata"] = {key: new[key] for key in _METADATA if new.get(key) is not None}
    return new
