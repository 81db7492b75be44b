"""SAELens folders: what SAELens saved is read to the same numbers, what we save is its layout, and every way a file can
be wrong has a named error. test_saelens.py has SAELens itself open what we write."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.sae_format_helpers import (
    FIXTURES,
    METADATA,
    change_config,
    change_tensors,
    check_as_recorded,
    copied,
    make,
    recorded,
    same,
    tensors,
)
from torch import Tensor

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import FORMATS, detect, load_sae, sae_sha256, save_saelens, single_layer
from autointerp.sae.sae import Sae

TRAINED_AS = {
    "batchtopk_checkpoint": "batchtopk",
    "batchtopk_finished": "batchtopk",
    "matryoshka_batchtopk_checkpoint": "matryoshka_batchtopk",
    "matryoshka_batchtopk_finished": "matryoshka_batchtopk",
    "jumprelu_checkpoint": "jumprelu",
    "gated": "gated",
    "topk_rescaled": "topk",
    "v3_topk": "topk",
    "v2_relu": "standard",
    "jumprelu_skip_transcoder": "jumprelu_skip_transcoder",
}


@pytest.mark.parametrize("name", recorded("saelens"))
def test_recorded_saes_compute_what_saelens_does(name: str, tmp_path: Path) -> None:
    folder = FIXTURES / "saelens" / name
    sae = load_sae(folder)
    # SAELens multiplies back by the standard deviation without the epsilon it divided by
    check_as_recorded(sae, folder, y_rtol=2e-5 if "layer_norm" in name else 1e-5)
    assert detect(folder) == "saelens"
    assert sae.architecture == TRAINED_AS.get(name, sae.architecture)
    assert sae.metadata["model_name"] == "gpt2" and sae.metadata["hook_name"].startswith("blocks.1.hook_resid_")
    save_saelens(sae, tmp_path, sae.metadata)
    again = load_sae(tmp_path)
    same(sae, again)
    assert again.architecture == sae.architecture
    assert again.metadata["sae_lens_version"].startswith("6.")


def saelens_encode(t: dict[str, Tensor], x: Tensor, k: int, *, rescale: bool, minus_b_dec: bool) -> Tensor:
    """SAELens's TopKSAE.encode, from its definition."""
    pre = (x - t["b_dec"] if minus_b_dec else x) @ t["W_enc"] + t["b_enc"]
    if rescale:
        pre = pre * t["W_dec"].norm(dim=-1)
    values, index = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, index, values.relu())


def test_round_trip_is_exact(tmp_path: Path) -> None:
    sae = make()
    save_saelens(sae, tmp_path / "sae", METADATA)
    loaded = load_sae(tmp_path / "sae")
    assert (loaded.k, loaded.architecture, loaded.d_in, loaded.d_sae) == (4, "topk", 10, 40)
    assert loaded.metadata["model_name"] == "gpt2" and loaded.metadata["hook_name"] == "transformer.h.6"
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(loaded, name), getattr(sae, name))
    assert sorted(p.name for p in (tmp_path / "sae").iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_the_layout_is_saelens_6(tmp_path: Path) -> None:
    save_saelens(make(), tmp_path, METADATA)
    config = json.loads((tmp_path / "cfg.json").read_text())
    metadata = config.pop("metadata")
    assert config == {
        "architecture": "topk",
        "d_in": 10,
        "d_sae": 40,
        "k": 4,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    assert metadata["sae_lens_version"].startswith("6.") and METADATA.items() <= metadata.items()
    assert metadata["training_architecture"] == "topk"
    shapes = {name: list(t.shape) for name, t in load_file(tmp_path / "sae_weights.safetensors").items()}
    assert shapes == {"W_enc": [10, 40], "b_enc": [40], "W_dec": [40, 10], "b_dec": [10]}


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("minus_b_dec", [True, False])
@pytest.mark.parametrize("unit", [True, False])
def test_saelens_conventions_come_out_in_our_units(
    tmp_path: Path, rescale: bool, minus_b_dec: bool, unit: bool
) -> None:
    save_saelens(make(), tmp_path, METADATA)
    t = tensors(unit=unit, seed=1)
    save_file(t, tmp_path / "sae_weights.safetensors")
    change_config(tmp_path, rescale_acts_by_decoder_norm=rescale, apply_b_dec_to_input=minus_b_dec)
    sae, x = load_sae(tmp_path), torch.randn(64, 10, generator=torch.Generator().manual_seed(9))
    theirs = saelens_encode(t, x, 4, rescale=rescale, minus_b_dec=minus_b_dec)
    norms = t["W_dec"].norm(dim=1)
    if rescale:  # already scaled by the norms; their decode divides by them
        x_hat = (theirs / norms) @ t["W_dec"] + t["b_dec"]
        expected = theirs
    else:
        x_hat = theirs @ t["W_dec"] + t["b_dec"]
        expected = theirs * norms
    torch.testing.assert_close(sae.encode(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.encode_sparse(x).dense(40), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(x), x_hat, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    # and written again it still means the same
    save_saelens(sae, tmp_path / "again", sae.metadata)
    torch.testing.assert_close(load_sae(tmp_path / "again")(x), x_hat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threshold, skip, d_out, name", [
    (0.0, False, 10, "standard"),
    (0.3, False, 10, "jumprelu"),
    (0.0, False, 7, "transcoder"),
    (0.0, True, 7, "skip_transcoder"),
    (0.3, False, 7, "jumprelu_transcoder"),
    (0.3, True, 10, "jumprelu_skip_transcoder"),
])  # fmt: skip
def test_an_sae_of_thresholds_takes_the_class_that_fits(
    tmp_path: Path, threshold: float, skip: bool, d_out: int, name: str
) -> None:
    settings: dict[str, Any] = {"threshold": torch.full((40,), threshold), "architecture": "batchtopk"}
    if "transcoder" in name:
        settings["b_pre"] = torch.zeros(10)
    if skip:
        settings["W_skip"] = torch.randn(10, d_out, generator=torch.Generator().manual_seed(3))
    sae = Sae(**tensors(d_out=d_out), **settings)
    save_saelens(sae, tmp_path, METADATA)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == name and config["metadata"]["training_architecture"] == "batchtopk"
    assert config["apply_b_dec_to_input"] is ("transcoder" not in name)
    loaded = load_sae(tmp_path)
    same(sae, loaded)
    assert loaded.architecture == (name if "transcoder" in name else "batchtopk")


def test_a_pre_bias_of_its_own_is_folded_when_written(tmp_path: Path) -> None:
    sae = make(b_pre=torch.linspace(-1, 1, 10))
    save_saelens(sae, tmp_path, METADATA)
    same(sae, load_sae(tmp_path))


def test_what_saelens_has_no_class_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no class for TopK transcoders; save this one in sparsify's format"):
        save_saelens(make(b_pre=torch.zeros(10), architecture="transcoder"), tmp_path, METADATA)
    layer_norm = Sae(**tensors(d_out=7), threshold=torch.ones(40), b_pre=torch.zeros(10), normalize="layer_norm")
    with pytest.raises(InputError, match="scaled by layer_norm"):
        save_saelens(layer_norm, tmp_path, METADATA)
    assert list(tmp_path.iterdir()) == []


def test_heads_side_by_side_are_recorded(tmp_path: Path) -> None:
    save_saelens(make(), tmp_path, METADATA | {"hook_name": "blocks.1.attn.hook_z"})
    change_config(tmp_path, reshape_activations="hook_z")
    sae = load_sae(tmp_path)
    assert sae.metadata["reshape_activations"] == "hook_z"
    for hook_name, kept in (("blocks.1.attn.hook_z", "hook_z"), ("transformer.h.1.attn.c_proj:in", "none")):
        save_saelens(sae, tmp_path / kept, sae.metadata | {"hook_name": hook_name})
        config = json.loads((tmp_path / kept / "cfg.json").read_text())
        assert config["reshape_activations"] == kept and "reshape_activations" not in config["metadata"]


def test_half_precision_weights_are_read_as_float32(tmp_path: Path) -> None:
    save_saelens(make(), tmp_path, METADATA)
    save_file({n: t.bfloat16() for n, t in tensors().items()}, tmp_path / "sae_weights.safetensors")
    assert load_sae(tmp_path).W_enc.dtype == torch.float32


def test_an_old_log_threshold_is_a_threshold(tmp_path: Path) -> None:
    folder = copied("saelens", "jumprelu_checkpoint", tmp_path / "a")
    threshold = load_file(folder / "sae_weights.safetensors")["threshold"]
    change_tensors(folder / "sae_weights.safetensors", threshold=None, log_threshold=threshold.log())
    check_as_recorded(load_sae(folder), FIXTURES / "saelens" / "jumprelu_checkpoint")


def test_the_hash_follows_the_numbers_and_not_the_metadata(tmp_path: Path) -> None:
    save_saelens(make(), tmp_path / "a", METADATA)
    save_saelens(make(), tmp_path / "b", {"model_name": "other"})
    save_saelens(Sae(**tensors(seed=2), k=4), tmp_path / "c", METADATA)
    save_saelens(Sae(**tensors(), k=5), tmp_path / "d", METADATA)
    save_saelens(make(threshold=torch.zeros(40)), tmp_path / "e", METADATA)
    hashes = [sae_sha256(tmp_path / name) for name in "abcde"]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4 and len(hashes[0]) == 64
    assert hashes[0] == sae_sha256(str(tmp_path / "a"), "saelens")


def test_the_hash_is_the_one_that_stores_already_hold(tmp_path: Path) -> None:
    save_saelens(make(), tmp_path, METADATA)
    config = json.loads((tmp_path / "cfg.json").read_text())
    names = "architecture d_in d_sae k apply_b_dec_to_input rescale_acts_by_decoder_norm normalize_activations"
    essential = {key: config.get(key) for key in (*names.split(), "reshape_activations")}
    digest = hashlib.sha256(json.dumps(essential, sort_keys=True).encode())
    digest.update((tmp_path / "sae_weights.safetensors").read_bytes())
    assert sae_sha256(tmp_path) == digest.hexdigest()


def test_the_hash_of_a_scaled_checkpoint_follows_its_factor(tmp_path: Path) -> None:
    folder = copied("saelens", "standard_scaled_checkpoint", tmp_path / "a")
    before = sae_sha256(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.8}')
    assert sae_sha256(folder) != before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": "jump_relu"}, "'jump_relu' is not supported. Did you mean jumprelu"),
        ({"architecture": "crosscoder"}, "'crosscoder' is not supported.*Supported: standard, transcoder"),
        ({"architecture": "<absent>"}, "names no architecture"),
        ({"architecture": ["topk"]}, "architecture \\['topk'\\] is not supported"),
        ({"k": 0}, "k must be a positive whole number, not 0"),
        ({"k": 41}, "k = 41 features"),
        ({"k": "<absent>"}, "not None"),
        ({"d_in": -3}, "d_in must be a positive whole number, not -3"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations 'covariance_whitening'"),
        ({"normalize_activations": "expected_average_only_in"}, "a factor that is not in the file; fold it in SAELens"),
        ({"architecture": "transcoder"}, "d_out must be"),
        ({"architecture": "transcoder", "normalize_activations": "layer_norm"}, "not supported for transcoders"),
        ({"metadata": "<absent>", "activation_fn_str": "tanh-relu", "architecture": "standard"}, "'tanh-relu'"),
    ],
)
def test_unsupported_configurations_are_input_errors(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_saelens(make(), tmp_path, METADATA)
    change_config(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        load_sae(tmp_path)


def test_a_factor_nobody_asked_for_and_an_unset_threshold_are_refused(tmp_path: Path) -> None:
    factor = copied("saelens", "v4_scaling_factor", tmp_path / "a")
    change_config(factor, finetuning_scaling_factor=False)
    with pytest.raises(InputError, match="scaling_factor other than 1"):
        load_sae(factor)
    fresh = copied("saelens", "batchtopk_checkpoint", tmp_path / "b")
    change_tensors(fresh / "sae_weights.safetensors", topk_threshold=torch.zeros((), dtype=torch.double))
    with pytest.raises(InputError, match="topk_threshold was never set"):
        load_sae(fresh)
    scaled = copied("saelens", "standard_scaled_checkpoint", tmp_path / "c")
    (scaled / "activation_scaler.json").write_text('{"scaling_factor": null}')
    with pytest.raises(DamagedError, match="scaling_factor is None"):
        load_sae(scaled)


def test_missing_folders_and_files_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no SAE folder"):
        load_sae(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(InputError, match=r"it holds: notes.txt\).*Known: saelens .*sparsify .*gemma_scope.*openai"):
        load_sae(tmp_path)
    save_saelens(make(), tmp_path / "layer_3", METADATA)
    with pytest.raises(InputError, match="name one of its folders: layer_3"):
        load_sae(tmp_path)
    with pytest.raises(InputError, match="holds no cfg.json, so it is not in saelens format"):
        load_sae(tmp_path, "saelens")
    with pytest.raises(InputError, match="format 'sae_lens' is not known. Did you mean saelens"):
        load_sae(tmp_path, "sae_lens")
    (tmp_path / "layer_3" / "sae_weights.safetensors").unlink()
    for format in ("auto", "saelens"):
        with pytest.raises(InputError, match="there is no file.*sae_weights.safetensors"):
            load_sae(tmp_path / "layer_3", format)
    assert set(FORMATS) - set(single_layer.FORMATS) == {path.name for path in FIXTURES.iterdir()}


def damage(name: str, folder: Path) -> None:
    path, t = folder / "sae_weights.safetensors", tensors()
    whole = path.read_bytes()
    if name == "truncated":
        path.write_bytes(whole[:-50])
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "huge header":
        path.write_bytes((2_000_000).to_bytes(8, "little") + b" " * 2_000_000)
    elif name == "header beyond the file":
        path.write_bytes((1 << 62).to_bytes(8, "little") + whole[8:])
    elif name == "header not JSON":
        path.write_bytes(whole[:8] + b"#" + whole[9:])
    elif name == "missing keys":
        save_file({"W_enc": t["W_enc"], "W_dec": t["W_dec"]}, path)
    elif name == "NaN":
        t["W_dec"][3, 2] = float("nan")
        save_file(t, path)
    elif name == "too large":
        save_file(t | {"b_enc": torch.full((40,), 1e300, dtype=torch.float64)}, path)
    elif name == "shape":
        save_file(t | {"W_enc": t["W_enc"].T.contiguous()}, path)
    elif name == "d_in":
        change_config(folder, d_in=12)
    elif name == "integers":
        save_file(t | {"b_enc": torch.zeros(40, dtype=torch.int64)}, path)
    elif name == "config":
        (folder / "cfg.json").write_bytes(b'{"d_in": 1')
    elif name == "config not a table":
        (folder / "cfg.json").write_text("[1, 2]")
    elif name == "config too large":
        (folder / "cfg.json").write_text(json.dumps({"d_in": 10, "note": "x" * 1_000_000}))
    elif name == "config too deep":
        (folder / "cfg.json").write_text("[" * 200_000)


@pytest.mark.parametrize(
    "name, message",
    [
        ("truncated", "sae_weights.safetensors is damaged"),
        ("empty", "0 bytes are fewer"),
        ("huge header", "header of 2000000 bytes"),
        ("header beyond the file", "fewer than its header claims"),
        ("header not JSON", "header is not JSON"),
        ("missing keys", r"lacks b_enc, b_dec \(it holds: W_dec, W_enc\)"),
        ("NaN", "W_dec holds NaN"),
        ("too large", "b_enc holds numbers too large"),
        ("shape", r"W_enc has shape \[40, 10\], but cfg.json says \[10, 40\]"),
        ("d_in", r"W_enc has shape \[10, 40\], but cfg.json says \[12, 40\]"),
        ("integers", "b_enc holds torch.int64"),
        ("config", "cfg.json is damaged"),
        ("config not a table", "expected a table, found list"),
        ("config too large", "larger than 1 MB"),
        ("config too deep", "cfg.json is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, message: str) -> None:
    save_saelens(make(), tmp_path, METADATA)
    damage(name, tmp_path)
    with pytest.raises(DamagedError, match=message):
        load_sae(tmp_path)
