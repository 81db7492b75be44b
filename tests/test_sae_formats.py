"""Saved and loaded SAEs: the same numbers, and a named error for every way a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import load_sae, sae_sha256, save_saelens
from autointerp.sae.sae import Sae

METADATA = {"model_name": "gpt2", "hook_name": "transformer.h.6", "context_size": 128, "prepend_bos": True}


def tensors(unit: bool = True, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(40, 10, generator=g)
    return {
        "W_enc": torch.randn(10, 40, generator=g),
        "b_enc": torch.randn(40, generator=g) * 0.1,
        "W_dec": F.normalize(W_dec, dim=1) if unit else W_dec,
        "b_dec": torch.randn(10, generator=g),
    }


def make() -> Sae:
    return Sae(**tensors(), k=4)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "cfg.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value != "<absent>"}
    (folder / "cfg.json").write_text(json.dumps(kept))


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


def test_half_precision_weights_are_read_as_float32(tmp_path: Path) -> None:
    save_saelens(make(), tmp_path, METADATA)
    save_file({n: t.bfloat16() for n, t in tensors().items()}, tmp_path / "sae_weights.safetensors")
    assert load_sae(tmp_path).W_enc.dtype == torch.float32


def test_the_hash_follows_the_numbers_and_not_the_metadata(tmp_path: Path) -> None:
    save_saelens(make(), tmp_path / "a", METADATA)
    save_saelens(make(), tmp_path / "b", {"model_name": "other"})
    save_saelens(Sae(**tensors(seed=2), k=4), tmp_path / "c", METADATA)
    save_saelens(Sae(**tensors(), k=5), tmp_path / "d", METADATA)
    hashes = [sae_sha256(tmp_path / name) for name in "abcd"]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3 and len(hashes[0]) == 64


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": "jumprelu"}, "'jumprelu' is not supported yet; supported: topk"),
        ({"architecture": "<absent>"}, "names no architecture"),
        ({"k": 0}, "k must be a positive whole number, not 0"),
        ({"k": 41}, "k = 41 features"),
        ({"k": "<absent>"}, "not None"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm'"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
    ],
)
def test_unsupported_configurations_are_input_errors(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_saelens(make(), tmp_path, METADATA)
    change_config(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        load_sae(tmp_path)


def test_missing_folders_and_files_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no SAE folder"):
        load_sae(tmp_path / "nowhere")
    (tmp_path / "ae.pt").write_bytes(b"")
    with pytest.raises(InputError, match="holds no cfg.json.*ae.pt"):
        load_sae(tmp_path)
    save_saelens(make(), tmp_path, METADATA)
    with pytest.raises(InputError, match="format 'gguf' is not known"):
        load_sae(tmp_path, "gguf")
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(InputError, match="sae_weights.safetensors"):
        load_sae(tmp_path)


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
    elif name == "missing key":
        del t["b_dec"]
        save_file(t, path)
    elif name == "NaN":
        t["W_dec"][3, 2] = float("nan")
        save_file(t, path)
    elif name == "shape":
        t["W_enc"] = t["W_enc"].T.contiguous()
        save_file(t, path)
    elif name == "integers":
        t["b_enc"] = torch.zeros(40, dtype=torch.int64)
        save_file(t, path)
    elif name == "config":
        (folder / "cfg.json").write_bytes(b'{"d_in": 1')
    elif name == "config not a table":
        (folder / "cfg.json").write_text("[1, 2]")


@pytest.mark.parametrize(
    "name, message",
    [
        ("truncated", "sae_weights.safetensors is damaged"),
        ("empty", "0 bytes are fewer"),
        ("huge header", "header of 2000000 bytes"),
        ("header beyond the file", "fewer than its header claims"),
        ("header not JSON", "header is not JSON"),
        ("missing key", "lacks b_dec"),
        ("NaN", "W_dec holds NaN"),
        ("shape", r"W_enc has shape \[40, 10\], but cfg.json says \[10, 40\]"),
        ("integers", "b_enc holds torch.int64"),
        ("config", "cfg.json is damaged"),
        ("config not a table", "expected a table, found list"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, message: str) -> None:
    save_saelens(make(), tmp_path, METADATA)
    damage(name, tmp_path)
    with pytest.raises(DamagedError, match=message):
        load_sae(tmp_path)
