"""Gemma Scope 2's params.safetensors, from its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.dictionary_files import D_IN, D_SAE, check, parts, random, thresholds, vectors, write

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import detect, load_sae, sae_sha256
from autointerp.sae.sae import Sae

FOLDER = "gemma-scope-2-270m-pt/{}/layer_5_width_{}_l0_medium{}"


def tensors(**others: torch.Tensor) -> dict[str, torch.Tensor]:
    p = parts()
    named = {"w_enc": p["W_enc"], "w_dec": p["W_dec"], "b_enc": p["b_enc"], "b_dec": p["b_dec"]}
    return named | {"threshold": thresholds()} | others


def saved(root: Path, kind: str = "resid_post", ending: str = "", config: Any = None, **others: torch.Tensor) -> Path:
    folder = root / FOLDER.format(kind, "20", ending)
    write(folder / "params.safetensors", tensors(**others), config, "config.json")
    return folder


def computed(sae: Sae, more: Any = 0.0) -> None:
    x, p = vectors(), parts()
    pre = x.double() @ p["W_enc"].double() + p["b_enc"].double()  # b_dec is not subtracted
    check(sae, x, pre * (pre > thresholds()), p["W_dec"], p["b_dec"], more)


@pytest.mark.parametrize("kind, hook, output", [
    ("resid_post", "blocks.5.hook_resid_post", None),
    ("resid_post_all", "blocks.5.hook_resid_post", None),
    ("attn_out", "blocks.5.attn.hook_z", None),
    ("mlp_out_all", "blocks.5.hook_mlp_out", None),
    ("transcoder", "blocks.5.mlp.hook_in", "blocks.5.hook_mlp_out"),
])  # fmt: skip
def test_names_tell_what_no_config_does(kind: str, hook: str, output: str | None, tmp_path: Path) -> None:
    folder = saved(tmp_path, kind)
    sae = load_sae(folder)
    computed(sae)
    computed(load_sae(folder / "params.safetensors"))
    assert detect(folder) == detect(folder / "params.safetensors") == "gemma_scope_2"
    assert sae.metadata["hook_name"] == hook and sae.metadata.get("hook_name_out") == output
    assert sae.metadata["model_name"] == "google/gemma-3-270m" and sae.metadata["prepend_bos"] is True
    assert sae.architecture == ("jumprelu_transcoder" if output else "jumprelu")
    assert "declared" not in sae.metadata  # "medium" is no number


def test_the_config_tells_model_hooks_and_l0(tmp_path: Path) -> None:
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b-it",
        "hf_hook_point_in": "model.layers.9.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.9.post_feedforward_layernorm.output",
        "affine_connection": True,
        "l0": 60,
    }
    skip = random(D_IN, D_IN, seed=8)
    folder = saved(tmp_path, "transcoder_all", "_affine", config, affine_skip_connection=skip)
    sae = load_sae(folder)
    computed(sae, vectors().double() @ skip.double())  # x A, and not x A^T
    assert sae.metadata == {
        "model_name": "google/gemma-3-1b-it",
        "hook_name": "blocks.9.mlp.hook_in",
        "hook_name_out": "blocks.9.hook_mlp_out",
        "prepend_bos": True,
        "context_size": 1024,
        "declared": {"l0": 60.0},
    }
    assert sae.architecture == "jumprelu_skip_transcoder"


def test_another_place_of_the_model_keeps_its_path(tmp_path: Path) -> None:
    folder = saved(tmp_path, config={"hf_hook_point_in": "model.layers.2.input_layernorm.output", "l0": "many"})
    assert load_sae(folder).metadata["hook_name"] == "model.layers.2.input_layernorm.output"
    assert "declared" not in load_sae(folder).metadata


def test_what_the_folder_is_called_decides_no_number(tmp_path: Path) -> None:
    assert sae_sha256(saved(tmp_path)) == sae_sha256(saved(tmp_path / "b", "attn_out"))
    assert sae_sha256(saved(tmp_path / "c", threshold=thresholds() * 2)) != sae_sha256(saved(tmp_path))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    skip = random(D_IN, D_IN, seed=8)
    with pytest.raises(
        DamagedError, match="has affine_skip_connection, but config.json says affine_connection = False"
    ):
        load_sae(saved(tmp_path, config={"affine_connection": False}, affine_skip_connection=skip))
    with pytest.raises(InputError, match="architecture 'topk' is not supported; supported: jump_relu"):
        load_sae(saved(tmp_path / "b", config={"architecture": "topk"}))
    wide = tmp_path / FOLDER.format("resid_post", "16k", "")
    write(wide / "params.safetensors", tensors())
    with pytest.raises(InputError, match=f"has {D_SAE} features, but its folder is named width_16k"):
        load_sae(wide)
    with pytest.raises(DamagedError, match="threshold holds NaN"):
        load_sae(saved(tmp_path / "c", threshold=thresholds() * float("nan")))
    with pytest.raises(DamagedError, match=r"threshold has shape \[3\]"):
        load_sae(saved(tmp_path / "d", threshold=torch.ones(3)))
    crosscoder = tmp_path / "gemma-scope-2-1b-pt" / "crosscoder" / "layer_1_2_3_4"
    write(crosscoder / "params.safetensors", tensors())
    with pytest.raises(InputError, match="crosscoders of Gemma Scope 2 .* are not read: .* not documented"):
        load_sae(crosscoder)
    layered = saved(tmp_path / "e", w_dec=random(D_SAE, 3, D_IN, seed=1))
    with pytest.raises(InputError, match="one layer of a cross-layer transcoder"):
        load_sae(layered / "params.safetensors", "gemma_scope_2")


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "params.safetensors").write_bytes((1 << 30).to_bytes(8, "little") + b"{" * 100)
    with pytest.raises(DamagedError, match="fewer than its header claims"):
        load_sae(folder)
