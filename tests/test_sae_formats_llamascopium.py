"""Llama Scope's and Llamascopium's folders, from their layouts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.dictionary_files import D_IN, D_OUT, D_SAE, check, parts, random, thresholds, top, vectors, write
from torch import Tensor

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import detect, load_sae, sae_sha256
from autointerp.sae.readings import with_reading
from autointerp.sae.sae import Sae
from autointerp.sae_reading import Reading

HOOK, OTHER = "blocks.8.hook_resid_post", "blocks.8.hook_mlp_out"
THRESHOLD, NORM = "activation_function.log_jumprelu_threshold", "dataset_average_activation_norm"


def config(**changes: Any) -> dict[str, Any]:
    settings = {
        "sae_type": "sae",
        "d_model": D_IN,
        "expansion_factor": D_SAE / D_IN,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "top_k": 4,
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "use_decoder_bias": True,
    }
    return settings | changes


def tensors(**others: Tensor | None) -> dict[str, Tensor]:
    p = parts()
    named: dict[str, Tensor | None] = {
        "W_E": p["W_enc"],
        "b_E": p["b_enc"],
        "W_D": p["W_dec"],
        "b_D": p["b_dec"],
        THRESHOLD: thresholds().log(),
        f"{NORM}.{HOOK}": torch.tensor(3.5),
        f"{NORM}.{OTHER}": torch.tensor(0.8),
    }
    return {name: t for name, t in (named | others).items() if t is not None}


def saved(folder: Path, changes: dict[str, Any] | None = None, **others: Tensor | None) -> Path:
    write(folder / "sae_weights.safetensors", tensors(**others), config(**(changes or {})), "config.json")
    return folder


def scales(output: float = 3.5) -> tuple[float, float]:
    return math.sqrt(D_IN) / 3.5, math.sqrt(D_OUT) / output


def pre(s_in: float, x: Tensor) -> Tensor:
    p = parts()
    return s_in * x.double() @ p["W_enc"].double() + p["b_enc"].double()


def norms() -> Tensor:
    return parts()["W_dec"].double().norm(dim=1)


def reads(sae: Sae, values: Tensor, s_out: float, x: Tensor | None = None) -> None:
    p = parts()
    check(sae, vectors() if x is None else x, values, p["W_dec"].double() / s_out, p["b_dec"].double() / s_out)


def test_jumprelu_counts_decoder_rows_and_scaled_vectors(tmp_path: Path) -> None:
    sae = load_sae(saved(tmp_path))
    (s_in, s_out), x = scales(), vectors()
    values = pre(s_in, x)
    reads(sae, values * (values * norms() > thresholds()), s_out)
    assert detect(tmp_path) == "llamascopium" and sae.architecture == "jumprelu"
    assert sae.metadata["hook_name"] == HOOK and "hook_name_out" not in sae.metadata
    assert "declared" not in sae.metadata  # top_k says nothing of a jumprelu
    plain = load_sae(saved(tmp_path / "b", {"sparsity_include_decoder_norm": False}))
    reads(plain, values * (values > thresholds()), s_out)
    assert sae_sha256(tmp_path) != sae_sha256(tmp_path / "b")


def test_a_transcoder_is_scaled_by_what_it_writes(tmp_path: Path) -> None:
    sae = load_sae(saved(tmp_path, {"hook_point_out": OTHER}))
    s_in, s_out = scales(0.8)
    values = pre(s_in, vectors())
    reads(sae, values * (values * norms() > thresholds()), s_out)
    assert sae.metadata["hook_name_out"] == OTHER and sae.architecture == "jumprelu_transcoder"


@pytest.mark.parametrize("with_norms", [True, False])
def test_topk_is_among_activations_times_decoder_rows(with_norms: bool, tmp_path: Path) -> None:
    changes = {"act_fn": "topk", "sparsity_include_decoder_norm": with_norms}
    sae = load_sae(saved(tmp_path, changes, **{THRESHOLD: None}))
    s_in, s_out = scales()
    rows = norms() if with_norms else torch.ones(D_SAE, dtype=torch.float64)
    reads(sae, top((pre(s_in, vectors()) * rows).clamp_min(0), 4) / rows, s_out)
    assert sae.metadata["declared"] == {"l0": 4.0} and sae.k == 4


def test_a_gated_linear_unit_multiplies_pre_activations(tmp_path: Path) -> None:
    W_glu, b_glu = random(D_IN, D_SAE, seed=11), random(D_SAE, seed=12)
    sae = load_sae(saved(tmp_path, {"use_glu_encoder": True}, W_E_glu=W_glu, b_E_glu=b_glu))
    (s_in, s_out), x = scales(), vectors()
    values = pre(s_in, x) * torch.sigmoid(s_in * x.double() @ W_glu.double() + b_glu.double())
    reads(sae, values * (values * norms() > thresholds()), s_out)


def test_scales_of_one_and_of_each_vector(tmp_path: Path) -> None:
    x = vectors()
    folded = load_sae(saved(tmp_path, {"norm_activation": "inference"}, **{f"{NORM}.{HOOK}": None}))
    values = pre(1.0, x)
    reads(folded, values * (values * norms() > thresholds()), 1.0)
    each = load_sae(saved(tmp_path / "b", {"norm_activation": "token-wise"}))
    unit = x / x.norm(dim=1, keepdim=True) * math.sqrt(D_IN)
    values = pre(1.0, unit)
    chosen = values * (values * norms() > thresholds())
    torch.testing.assert_close(each.encode(x), (chosen * norms()).float(), rtol=1e-5, atol=1e-5)
    y = (chosen @ parts()["W_dec"].double() + parts()["b_dec"]) * (x.norm(dim=1, keepdim=True) / math.sqrt(D_IN))
    torch.testing.assert_close(each(x), y.float(), rtol=1e-5, atol=1e-5)


def test_relu_and_no_decoder_bias(tmp_path: Path) -> None:
    changes = {"act_fn": "relu", "use_decoder_bias": False}
    sae = load_sae(saved(tmp_path, changes, **{THRESHOLD: None, "b_D": None}))
    s_in, s_out = scales()
    p = parts()
    check(sae, vectors(), pre(s_in, vectors()).clamp_min(0), p["W_dec"].double() / s_out, torch.zeros(D_OUT))


def test_batchtopk_keeps_no_threshold_and_one_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='keeps no threshold .*put it into config.json as "jump_relu_threshold"'):
        load_sae(saved(tmp_path, {"act_fn": "batchtopk"}, **{THRESHOLD: None}))
    given = {"act_fn": "batchtopk", "jump_relu_threshold": 0.7}
    sae = load_sae(saved(tmp_path, given, **{THRESHOLD: None}))
    s_in, s_out = scales()
    values = pre(s_in, vectors())
    reads(sae, values * (values * norms() > 0.7), s_out)
    first = sae_sha256(tmp_path)
    assert sae_sha256(saved(tmp_path / "b", given | {"jump_relu_threshold": 0.8}, **{THRESHOLD: None})) != first


@pytest.mark.parametrize("changes, others, error, message", [
    ({"sae_type": "lorsa"}, {}, InputError, "'lorsa' is not read as an SAE: .* reads all earlier"),
    ({"sae_type": "molt"}, {}, InputError, "'molt' is not read as an SAE: .* adds a matrix"),
    ({"sae_type": "other"}, {}, InputError, "'other' is not read as an SAE"),
    ({"norm_activation": "batch-wise"}, {}, InputError, "by the lengths of the other vectors of its batch"),
    ({"norm_activation": "token-wise", "hook_point_out": OTHER}, {}, InputError, "that it is to reconstruct"),
    ({"act_fn": "tanh"}, {}, InputError, "act_fn 'tanh' is not supported"),
    ({"act_fn": ["relu"]}, {}, InputError, r"act_fn \['relu'\] is not supported"),
    ({"sae_type": ["sae"]}, {}, InputError, r"sae_type \['sae'\] is not read as an SAE"),
    ({"norm_activation": ["dataset-wise"]}, {}, InputError, r"norm_activation .* is not supported: it is not known"),
    ({"hook_point_in": ["a"]}, {}, InputError, "must be a positive number, not None"),
    ({"top_k": "5", "act_fn": "topk"}, {}, InputError, "top_k must be a positive whole number, not '5'"),
    ({"act_fn": "jumprelu"}, {THRESHOLD: None}, InputError, "neither .* nor jump_relu_threshold is there"),
    ({}, {f"{NORM}.{HOOK}": torch.tensor(0.0)}, InputError, "must be a positive number, not 0.0"),
    ({}, {f"{NORM}.{HOOK}": None}, InputError, "must be a positive number, not None"),
    ({}, {"W_D": torch.ones(3, D_OUT)}, DamagedError, r"W_D has shape \[3, 6\], but W_E says \[20, 6\]"),
    ({}, {"b_E": torch.full((D_SAE,), math.inf)}, DamagedError, "b_E holds NaN or infinite"),
])  # fmt: skip
def test_what_is_not_supported_is_named(
    changes: dict[str, Any], others: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        load_sae(saved(tmp_path, changes, **others))


def llama_scope(folder: Path, changes: dict[str, Any], lengths: tuple[float, float] = (3.5, 3.5)) -> Path:
    p = parts()
    hyperparams = config(
        d_sae=D_SAE, jump_relu_threshold=0.2, top_k=50, **{NORM: {"in": lengths[0], "out": lengths[1]}}
    )
    hyperparams = {key: value for key, value in (hyperparams | changes).items() if key != "sae_type"}
    write(folder / "checkpoints" / "final.safetensors", {
        "encoder.weight": p["W_enc"].T,
        "encoder.bias": p["b_enc"],
        "decoder.weight": p["W_dec"].T,
        "decoder.bias": p["b_dec"],
    })  # fmt: skip
    write(folder / "unused.safetensors", {"x": torch.ones(1)}, hyperparams, "hyperparams.json")
    return folder


@pytest.mark.parametrize("output", [3.5, 0.8])
def test_the_threshold_of_llama_scope_is_in_the_units_of_what_is_written(output: float, tmp_path: Path) -> None:
    """Not in scaled units: it is compared with what a feature adds to the reconstruction."""
    hooks = {"hook_point_in": "blocks.8.ln2.hook_normalized", "hook_point_out": OTHER} if output != 3.5 else {}
    folder = llama_scope(tmp_path / "Llama3_1-8B-Base-L8R-8x", hooks, (3.5, output))
    sae = load_sae(folder)
    s_in, s_out = scales(output)
    values = pre(s_in, vectors())
    reads(sae, values * (values * norms() / s_out > 0.2), s_out)
    assert detect(folder) == "llama_scope"
    assert sae.metadata["declared"] == {"l0": 50.0} and sae.metadata["prepend_bos"] is True
    assert sae.metadata["model_name"] == "meta-llama/Llama-3.1-8B"
    assert sae.metadata["hook_name"] == hooks.get("hook_point_in", HOOK)
    assert sae.metadata.get("hook_name_out") == hooks.get("hook_point_out")


def test_r1_distill_has_a_threshold_for_each_feature_in_scaled_units(tmp_path: Path) -> None:
    p = parts()
    weights = {
        "encoder.weight": p["W_enc"].T,
        "encoder.bias": p["b_enc"],
        "decoder.weight": p["W_dec"].T,
        "decoder.bias": p["b_dec"],
        "log_jumprelu_threshold": thresholds().log(),
        f"{NORM}.{HOOK}": torch.tensor(3.5),
    }
    write(tmp_path / "sae_weights.safetensors", weights, config(), "config.json")
    sae = load_sae(tmp_path)
    s_in, s_out = scales()
    values = pre(s_in, vectors())
    reads(sae, values * (values * norms() > thresholds()), s_out)
    assert detect(tmp_path) == "llama_scope" and "declared" not in sae.metadata


def test_llama_scope_with_settings_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jump_relu_threshold must be a positive number, not 'much'"):
        load_sae(llama_scope(tmp_path, {"jump_relu_threshold": "much"}))
    with pytest.raises(InputError, match="dataset_average_activation_norm.out must be a positive number, not 0"):
        load_sae(llama_scope(tmp_path, {NORM: {"in": 3.5, "out": 0}}))
    with pytest.raises(DamagedError, match=f"has {D_SAE} features, but hyperparams.json says d_sae = 7"):
        load_sae(llama_scope(tmp_path, {"d_sae": 7}))


@pytest.mark.parametrize("act", ["topk", "jumprelu"])
@pytest.mark.parametrize("written", [HOOK, OTHER])
def test_the_readings_of_the_gate_are_what_the_other_setting_says(act: str, written: str, tmp_path: Path) -> None:
    here = {"act_fn": act, "hook_point_out": written}
    gated = load_sae(saved(tmp_path / "a", here))
    plain = load_sae(saved(tmp_path / "b", here | {"sparsity_include_decoder_norm": False}))
    x = vectors()
    for sae, other, gate in ((gated, plain, "without_norm"), (plain, gated, "with_norm")):
        read = with_reading(sae, Reading(gate=gate))
        torch.testing.assert_close(read(x), other(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(read.encode(x), other.encode(x), rtol=1e-4, atol=1e-4)


def test_a_row_of_zeros_is_silent_under_any_threshold(tmp_path: Path) -> None:
    W_dec = parts()["W_dec"].clone()
    W_dec[0] = 0
    sae = load_sae(saved(tmp_path, W_D=W_dec, **{THRESHOLD: torch.full((D_SAE,), 8.0).log()}))
    assert not bool(sae.encode(vectors())[:, 0].any())
