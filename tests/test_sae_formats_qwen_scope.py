"""Qwen-Scope's layerN.sae.pt and Goodfire's .pt, from their layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.dictionary_files import D_IN, D_SAE, Runs, check, parts, thresholds, top, vectors

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import detect, load_sae, sae_sha256
from autointerp.sae.sae import Sae


def qwen(d_sae: int = D_SAE) -> dict[str, Any]:
    p = parts(d_sae=d_sae)
    state = {"W_enc": p["W_enc"].T, "W_dec": p["W_dec"].T, "b_enc": p["b_enc"], "b_dec": p["b_dec"]}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def saved(state: Any, folder: Path, name: str = "layer3.sae.pt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    return folder / name


def computed(sae: Sae, k: int) -> None:
    x, p = vectors(), parts(d_sae=sae.d_sae)
    pre = x.double() @ p["W_enc"].double() + p["b_enc"].double()  # b_dec is not subtracted
    check(sae, x, top(pre, k), p["W_dec"], p["b_dec"])


def test_k_layer_and_model_follow_from_the_names(tmp_path: Path) -> None:
    file = saved(qwen(1024), tmp_path / "models--Qwen--SAE-Res-Qwen3-1.7B-Base-W1K-L0_7" / "snapshots" / "abc")
    sae = load_sae(file)
    assert detect(file) == detect(file.parent) == "qwen_scope" and sae.k == 7
    computed(sae, 7)
    assert sae.metadata == {
        "model_name": "Qwen/Qwen3-1.7B-Base",
        "hook_name": "blocks.3.hook_resid_post",
        "declared": {"l0": 7.0},
    }
    saved(qwen(1024), file.parent, "layer4.sae.pt")
    assert load_sae(file.parent / "layer4.sae.pt").metadata["hook_name"] == "blocks.4.hook_resid_post"
    with pytest.raises(InputError, match="holds 2 .pt files, one for each layer; name the file of one layer"):
        load_sae(file.parent, "qwen_scope")


def test_values_below_zero_that_are_chosen_are_part_of_the_reconstruction(tmp_path: Path) -> None:
    """15 of 20 features are chosen, and about ten are positive. There is no ReLU."""
    file = saved(qwen(), tmp_path)
    (tmp_path / "config.json").write_text('{"k": 15}')
    sae = load_sae(file)
    computed(sae, 15)
    active = sae.encode(vectors()) > 0
    assert bool((active.sum(1) < 15).any())
    first = sae_sha256(file)
    (tmp_path / "config.json").write_text('{"k": 14}')
    assert sae_sha256(file) != first


def test_it_is_not_taken_for_a_jumprelu_of_dictionary_learning(tmp_path: Path) -> None:
    p = parts()
    with pytest.raises(InputError, match="only the name of its repository does"):
        load_sae(saved(qwen(), tmp_path / "a"))
    theirs = saved({**p, "threshold": thresholds()}, tmp_path / "b", "ae.pt")
    assert detect(theirs) == detect(theirs.parent) == "dictionary_learning"


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    named = tmp_path / "SAE-Res-Qwen3-8B-Base-W64K-L0_50"
    with pytest.raises(InputError, match=f"has {D_SAE} features, but its folder is named W64K"):
        load_sae(saved(qwen(), named))
    (tmp_path / "config.json").write_text('{"k": 0}')
    with pytest.raises(InputError, match="k must be a positive whole number, not 0"):
        load_sae(saved(qwen(), tmp_path))
    (tmp_path / "config.json").write_text('{"k": 4}')
    with pytest.raises(DamagedError, match="b_enc holds NaN"):
        load_sae(saved(qwen() | {"b_enc": torch.full((D_SAE,), float("nan"))}, tmp_path))
    with pytest.raises(DamagedError, match=r"W_dec has shape \[20, 6\], but W_enc says \[6, 20\]"):
        load_sae(saved(qwen() | {"W_dec": parts()["W_dec"]}, tmp_path))
    with pytest.raises(InputError, match="opening it would run or build"):
        load_sae(saved(qwen() | {"more": Runs()}, tmp_path))
    with pytest.raises(InputError, match="does not hold W_dec, W_enc, b_dec, b_enc"):
        load_sae(saved({"W_enc": qwen()["W_enc"]}, tmp_path), "qwen_scope")


@pytest.mark.parametrize("name, facts", [
    ("Llama-3.3-70B-Instruct-SAE-l50.pt",
     {"model_name": "meta-llama/Llama-3.3-70B-Instruct", "hook_name": "blocks.50.hook_resid_post",
      "declared": {"l0": 121.0}}),
    ("Llama-3.1-8B-Instruct-SAE-l19.pth",
     {"model_name": "meta-llama/Llama-3.1-8B-Instruct", "hook_name": "blocks.19.hook_resid_post",
      "declared": {"l0": 91.0}}),
    ("some.pt", {}),
])  # fmt: skip
def test_goodfire(name: str, facts: dict[str, Any], tmp_path: Path) -> None:
    p, x = parts(), vectors()
    state = {
        "encoder_linear.weight": p["W_enc"].T.bfloat16(),
        "encoder_linear.bias": p["b_enc"].bfloat16(),
        "decoder_linear.weight": p["W_dec"].T.bfloat16(),
        "decoder_linear.bias": p["b_dec"].bfloat16(),
    }
    p = {key: tensor.bfloat16().double() for key, tensor in p.items()}
    file = saved(state, tmp_path, name)
    assert detect(file) == detect(tmp_path) == "goodfire"
    sae = load_sae(file)
    check(sae, x, (x.double() @ p["W_enc"] + p["b_enc"]).clamp_min(0), p["W_dec"], p["b_dec"])
    assert sae.metadata == facts and sae.architecture == "standard"
    assert sae_sha256(file) == sae_sha256(tmp_path)


def test_a_goodfire_file_that_is_damaged(tmp_path: Path) -> None:
    state = {"encoder_linear.weight": torch.ones(D_SAE, D_IN), "decoder_linear.weight": torch.ones(D_IN, D_SAE)}
    with pytest.raises(DamagedError, match="lacks encoder_linear.bias, decoder_linear.bias"):
        load_sae(saved(state, tmp_path, "x.pt"))
    with pytest.raises(InputError, match="holds no encoder_linear.weight"):
        load_sae(saved(qwen(), tmp_path, "x.pt"), "goodfire")
