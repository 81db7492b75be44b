"""SAELens's architectures that choose in ways of their own: abstopk, matching_pursuit and, refused, temporal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.dictionary_files import D_IN, D_SAE, N, check, parts, vectors, write
from support.sae_format_helpers import change_config
from torch import Tensor

from autointerp.errors import InputError
from autointerp.sae.formats import detect, load_sae, sae_sha256, save_saelens

ABOUT = {"model_name": "gpt2", "hook_name": "blocks.1.hook_resid_post", "prepend_bos": True}


def saved(folder: Path, architecture: str, tensors: dict[str, Tensor], **settings: Any) -> Path:
    config = {
        "architecture": architecture,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": ABOUT,
    }
    write(folder / "sae_weights.safetensors", tensors, config | settings, "cfg.json")
    return folder


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("minus_b_dec", [False, True])
def test_a_feature_of_abstopk_and_its_opposite_are_two(rescaled: bool, minus_b_dec: bool, tmp_path: Path) -> None:
    p, x = parts(), vectors()
    settings = {"k": 5, "rescale_acts_by_decoder_norm": rescaled, "apply_b_dec_to_input": minus_b_dec}
    folder = saved(tmp_path, "abstopk", p, **settings)
    sae = load_sae(folder)
    assert detect(folder) == "saelens" and sae.architecture == "abstopk"
    assert (sae.d_sae, sae.k, sae.metadata["opposite_features"]) == (2 * D_SAE, 5, D_SAE)

    rows = p["W_dec"].double()
    pre = (x.double() - (p["b_dec"] if minus_b_dec else 0)) @ p["W_enc"].double() + p["b_enc"].double()
    if rescaled:
        pre, rows = pre * rows.norm(dim=1), rows / rows.norm(dim=1, keepdim=True)
    signed = torch.zeros_like(pre)
    chosen = pre.abs().topk(5).indices
    signed.scatter_(1, chosen, pre.gather(1, chosen))
    assert bool((signed < 0).any())
    torch.testing.assert_close(sae(x), (signed @ rows + p["b_dec"]).float(), rtol=1e-5, atol=1e-5)
    both = torch.cat([signed.clamp_min(0), (-signed).clamp_min(0)], dim=1)
    check(sae, x, both, torch.cat([rows, -rows]), p["b_dec"])
    save_saelens(sae, tmp_path / "again", sae.metadata)  # as a topk of twice as many features
    torch.testing.assert_close(load_sae(tmp_path / "again")(x), sae(x), rtol=1e-5, atol=1e-5)


def pursued(x: Tensor, rows: Tensor, b_dec: Tensor, steps: int, residual: float, stop: bool) -> Tensor:
    found = torch.zeros(N, D_SAE, dtype=torch.float64)
    for n in range(N):
        left, taken = (x[n] - b_dec).double(), set[int]()
        for _ in range(steps):
            scores = rows.double() @ left
            best = int(scores.argmax())
            value = max(float(scores[best]), 0.0)
            found[n, best] += value
            left = left - value * rows[best].double()
            if (stop and (best in taken or value == 0)) or (residual > 0 and float(left.norm()) < residual):
                break
            taken.add(best)
    return found


@pytest.mark.parametrize("steps, residual, stop", [(None, 0.01, True), (3, 0.0, True), (8, 1.2, False), (8, 0.8, True)])
def test_matching_pursuit_is_greedy(steps: int | None, residual: float, stop: bool, tmp_path: Path) -> None:
    p, x = parts(), vectors()
    rows = p["W_dec"] / p["W_dec"].norm(dim=1, keepdim=True) * torch.linspace(0.7, 1.2, D_SAE).unsqueeze(1)
    rule = {"residual_threshold": residual, "max_iterations": steps, "stop_on_duplicate_support": stop}
    folder = saved(tmp_path, "matching_pursuit", {"W_dec": rows, "b_dec": p["b_dec"]}, **rule)
    sae = load_sae(folder)
    assert sae.architecture == "matching_pursuit" and sae.k is None and sae.threshold is None
    check(sae, x, pursued(x, rows, p["b_dec"], steps or D_IN, residual, stop), rows, p["b_dec"])
    first = sae_sha256(folder)
    change_config(folder, residual_threshold=residual + 0.1)
    assert sae_sha256(folder) != first
    with pytest.raises(InputError, match="SAELens has no form for matching pursuit"):
        save_saelens(sae, tmp_path / "again", {})


def test_a_pursuit_of_scaled_inputs_and_one_without_b_dec(tmp_path: Path) -> None:
    p, x = parts(), vectors()
    rows = p["W_dec"] / p["W_dec"].norm(dim=1, keepdim=True)
    tensors = {"W_dec": rows, "b_dec": p["b_dec"]}
    settings = {"residual_threshold": 1.0, "max_iterations": 5, "stop_on_duplicate_support": True}
    scaled = saved(
        tmp_path / "a", "matching_pursuit", tensors, **settings, normalize_activations="expected_average_only_in"
    )
    (scaled / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.4}))
    expected = pursued(x * 0.4, rows, p["b_dec"], 5, 1.0, True) / 0.4
    check(load_sae(scaled), x, expected, rows, p["b_dec"] / 0.4)
    without = saved(tmp_path / "b", "matching_pursuit", tensors, **settings, apply_b_dec_to_input=False)
    zeros = torch.zeros(D_IN)  # the tied decoder leaves b_dec out, too
    check(load_sae(without), x, pursued(x, rows, zeros, 5, 1.0, True), rows, zeros)


@pytest.mark.parametrize("settings, message", [
    ({"max_iterations": 0}, "max_iterations must be a positive whole number, not 0"),
    ({"max_iterations": 10**9}, "max_iterations is 1000000000; more than 100000 are not made"),
    ({"residual_threshold": "small"}, "residual_threshold must be a number, not 'small'"),
    ({"residual_threshold": float("nan")}, "residual_threshold must be a number, not nan"),
])  # fmt: skip
def test_a_rule_of_pursuit_that_is_none(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors = {name: parts()[name] for name in ("W_dec", "b_dec")}
    with pytest.raises(InputError, match=message):
        load_sae(saved(tmp_path, "matching_pursuit", tensors, **settings))


def test_temporal_saes_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'temporal' is not read: its novel codes .* reads one vector at a time"):
        load_sae(saved(tmp_path / "a", "temporal", parts()))
    write(tmp_path / "b" / "latest_ckpt.safetensors", {"D": torch.ones(2, 2)})
    (tmp_path / "b" / "conf.yaml").write_text("llm: {dimin: 2}\n")
    with pytest.raises(InputError, match="is a temporal SAE, and those are not read"):
        load_sae(tmp_path / "b")
