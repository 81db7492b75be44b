"""circuit-tracer's per-layer transcoders, from their layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.dictionary_files import D_IN, D_OUT, D_SAE, check, parts, random, thresholds, top, vectors, write
from torch import Tensor

from autointerp.errors import DamagedError, InputError
from autointerp.sae.circuit_tracer_files import SetFiles
from autointerp.sae.formats import detect, load_sae, sae_sha256
from autointerp.sae.pursuit import Pursuit
from autointerp.sae.sae import Sae

CONFIG = """model_name: Qwen/Qwen3-1.7B
model_kind: transcoder_set
feature_input_hook: mlp.hook_in
feature_output_hook: mlp.hook_out
"""
THRESHOLD = "activation_function.threshold"


def saved(folder: Path, config: str | None = CONFIG, layer: int = 7, **others: Tensor) -> Path:
    p = parts()
    tensors = {"W_enc": p["W_enc"].T, "W_dec": p["W_dec"], "b_enc": p["b_enc"], "b_dec": p["b_dec"]}
    write(folder / f"layer_{layer}.safetensors", tensors | others)
    if config is not None:
        (folder / "config.yaml").write_text(config)
    return folder / f"layer_{layer}.safetensors"


def pre() -> Tensor:
    p = parts()
    return vectors().double() @ p["W_enc"].double() + p["b_enc"].double()  # nothing is subtracted


def test_without_thresholds_and_k_it_is_relu(tmp_path: Path) -> None:
    file = saved(tmp_path)
    sae = load_sae(file)
    check(sae, vectors(), pre().clamp_min(0), parts()["W_dec"], parts()["b_dec"])
    assert detect(file) == detect(tmp_path) == "circuit_tracer" and sae.architecture == "relu_transcoder"
    assert sae.metadata == {
        "model_name": "Qwen/Qwen3-1.7B",
        "hook_name": "blocks.7.mlp.hook_in",
        "hook_name_out": "blocks.7.mlp.hook_out",
    }
    assert load_sae(saved(tmp_path / "b", None)).metadata == {}


def test_the_skip_term_is_turned(tmp_path: Path) -> None:
    W_skip = random(D_OUT, D_IN, seed=13)
    sae = load_sae(saved(tmp_path, W_skip=W_skip))
    more = vectors().double() @ W_skip.double().T
    check(sae, vectors(), pre().clamp_min(0), parts()["W_dec"], parts()["b_dec"], more)
    assert sae.architecture == "relu_skip_transcoder"


@pytest.mark.parametrize("lift", [0.0, -0.3])
def test_thresholds_may_lie_below_zero(lift: float, tmp_path: Path) -> None:
    """Then values between the threshold and 0 pass; they are no activations, but part of what is written."""
    sae = load_sae(saved(tmp_path, **{THRESHOLD: thresholds() + lift}))
    values = pre() * (pre() > thresholds() + lift)
    assert bool((values < 0).any()) == (lift < 0)
    check(sae, vectors(), values, parts()["W_dec"], parts()["b_dec"])


@pytest.mark.parametrize("where", ["tensor", "config"])
def test_topk_has_no_relu(where: str, tmp_path: Path) -> None:
    more = {"k": torch.tensor(15)} if where == "tensor" else {}
    file = saved(tmp_path, CONFIG + "activation: topk\n" + ("k: 15\n" if where == "config" else ""), **more)
    sae = load_sae(file)
    assert bool((top(pre(), 15) < 0).any())
    check(sae, vectors(), top(pre(), 15), parts()["W_dec"], parts()["b_dec"])
    assert sae.metadata["declared"] == {"l0": 15.0} and sae.architecture == "topk_transcoder"
    if where == "config":
        first = sae_sha256(file)
        (tmp_path / "config.yaml").write_text(CONFIG + "activation: topk\nk: 14\n")
        assert sae_sha256(file) != first


def test_a_topk_that_does_not_say_its_k_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is TopK, and neither it nor config.yaml says how many"):
        load_sae(saved(tmp_path, CONFIG + "activation: topk\n"))
    with pytest.raises(InputError, match="this one was trained with k: 128; put k into config.yaml"):
        load_sae(saved(tmp_path / "crv-8b-instruct-transcoders"))


@pytest.mark.parametrize("config, others, error, message", [
    (CONFIG + "activation: tanh\n", {}, InputError, "activation 'tanh' is not supported"),
    (CONFIG + "activation: topk\nk: 0\n", {}, InputError, "k must be a positive whole number, not 0"),
    (CONFIG + "activation: topk\nk: 3\n", {THRESHOLD: thresholds()}, InputError, "has thresholds, but"),
    (CONFIG + "activation: jump_relu\n", {}, InputError, "its thresholds are missing from layer_7.safetensors"),
    ("a: !!python/object/apply:os.system [true]\n", {}, DamagedError, "config.yaml is damaged"),
    ("- a\n", {}, DamagedError, "expected a table, found list"),
    (CONFIG, {"W_skip": torch.ones(2, 2)}, DamagedError, r"W_skip has shape \[2, 2\]"),
    (CONFIG, {"b_dec": torch.full((D_OUT,), float("nan"))}, DamagedError, "b_dec holds NaN"),
    (CONFIG, {THRESHOLD: torch.ones(3)}, DamagedError, r"threshold has shape \[3\]"),
])  # fmt: skip
def test_what_does_not_fit_is_named(
    config: str, others: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        load_sae(saved(tmp_path, config, **others))


def test_one_layer_of_a_folder_has_to_be_named(tmp_path: Path) -> None:
    saved(tmp_path)
    saved(tmp_path, layer=12)
    with pytest.raises(InputError, match="holds 2 transcoders, one for each layer; name the file of one layer"):
        load_sae(tmp_path)
    assert load_sae(tmp_path / "layer_12.safetensors").metadata["hook_name"] == "blocks.12.mlp.hook_in"
    assert load_sae(tmp_path / "layer_12.safetensors").d_sae == D_SAE


@pytest.mark.parametrize("lift", [0.0, -0.3])
def test_what_is_written_for_circuit_tracer_is_read_back(lift: float, tmp_path: Path) -> None:
    W_skip = random(D_OUT, D_IN, seed=13)
    first = load_sae(saved(tmp_path, W_skip=W_skip, **{THRESHOLD: thresholds() + lift}))
    SetFiles(tmp_path / "again").add(7, "x", first)
    again = load_sae(tmp_path / "again")
    torch.testing.assert_close(again.encode(vectors()), first.encode(vectors()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again(vectors()), first(vectors()), rtol=1e-5, atol=1e-5)


def test_what_circuit_tracer_has_no_form_for(tmp_path: Path) -> None:
    rows = torch.nn.functional.normalize(parts()["W_dec"], dim=1)
    sae = Sae(rows.T, torch.zeros(D_SAE), rows, torch.zeros(D_OUT), pursuit=Pursuit(3, 0.0, True))
    with pytest.raises(InputError, match="circuit-tracer has no form for matching pursuit"):
        SetFiles(tmp_path).add(0, "x", sae)
