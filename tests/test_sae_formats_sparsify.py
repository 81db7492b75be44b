"""sparsify folders: read to sparsify's numbers, written in its layout, and what is not supported refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
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

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import detect, load_sae, sae_sha256, save_saelens, save_sparsify
from autointerp.sae.sae import Sae


@pytest.mark.parametrize("name", recorded("sparsify"))
def test_recorded_coders_compute_what_sparsify_does(name: str, tmp_path: Path) -> None:
    folder = FIXTURES / "sparsify" / name
    sae = load_sae(folder)
    check_as_recorded(sae, folder)
    assert detect(folder) == "sparsify" and sae.k == 3
    assert sae.architecture == ("topk" if "sae" in name else name)
    save_sparsify(sae, tmp_path, METADATA)
    again = load_sae(tmp_path)
    same(sae, again)
    assert again.metadata == METADATA | {"declared": {"l0": float(again.k or 0)}}
    assert (sae_sha256(tmp_path) == sae_sha256(folder)) is False  # other bytes


def test_the_layout_is_sparsifys(tmp_path: Path) -> None:
    save_sparsify(make(b_pre=torch.zeros(10), W_skip=torch.eye(10) * 2), tmp_path, METADATA)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config == {
        "activation": "topk",
        "expansion_factor": 4,
        "normalize_decoder": True,
        "num_latents": 40,
        "k": 4,
        "multi_topk": False,
        "skip_connection": True,
        "transcode": True,
        "d_in": 10,
        "metadata": METADATA,
    }
    shapes = {name: list(t.shape) for name, t in load_file(tmp_path / "sae.safetensors").items()}
    assert shapes == {
        "encoder.weight": [40, 10],
        "encoder.bias": [40],
        "W_dec": [40, 10],
        "b_dec": [10],
        "W_skip": [10, 10],
    }


@pytest.mark.parametrize("seed", [1, 2])
def test_any_topk_sae_survives_the_way_there_and_back(tmp_path: Path, seed: int) -> None:
    sae = make(
        row_norms=torch.linspace(0.2, 3, 40), b_pre=torch.randn(10, generator=torch.Generator().manual_seed(seed))
    )
    save_sparsify(sae, tmp_path, {})
    same(sae, load_sae(tmp_path))


def test_what_sparsify_has_no_form_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sparsify knows TopK only.*jumprelu"):
        save_sparsify(make(threshold=torch.ones(40), architecture="jumprelu"), tmp_path, {})
    with pytest.raises(InputError, match="reads 10 and writes 7"):
        save_sparsify(Sae(**tensors(d_out=7), k=4, b_pre=torch.zeros(10)), tmp_path, {})
    with pytest.raises(InputError, match="layer_norm"):
        save_sparsify(make(normalize="layer_norm"), tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_a_topk_transcoder_goes_to_sparsify_only(tmp_path: Path) -> None:
    sae = load_sae(FIXTURES / "sparsify" / "skip_transcoder")
    with pytest.raises(InputError, match="sparsify"):
        save_saelens(sae, tmp_path, METADATA)


def test_older_configurations_leave_things_out(tmp_path: Path) -> None:
    folder = copied("sparsify", "sae", tmp_path / "a")
    change_config(folder, activation="<absent>", transcode="<absent>", skip_connection="<absent>", signed=False)
    check_as_recorded(load_sae(folder), FIXTURES / "sparsify" / "sae")


@pytest.mark.parametrize("changes, message", [
    ({"activation": "groupmax"}, "groupmax .* is not supported"),
    ({"activation": "topkk"}, "'topkk' is not known.*Did you mean topk"),
    ({"signed": True}, "signed activations"),
    ({"k": None}, "k must be a positive whole number"),
    ({"num_latents": 0, "expansion_factor": 0}, "expansion_factor must be"),
    ({"num_latents": "16"}, "num_latents must be a whole number"),
])  # fmt: skip
def test_unsupported_configurations_are_input_errors(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = copied("sparsify", "sae", tmp_path / "a")
    change_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        load_sae(folder)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = copied("sparsify", "skip_transcoder", tmp_path / "a")
    weights = folder / "sae.safetensors"
    change_tensors(weights, W_skip=None, b_dec=None)
    with pytest.raises(DamagedError, match="lacks b_dec, W_skip"):
        load_sae(folder)
    change_tensors(weights, b_dec=torch.zeros(9), W_skip=torch.zeros(8, 8))
    with pytest.raises(DamagedError, match=r"b_dec has shape \[9\], but cfg.json says \[8\]"):
        load_sae(folder)
    change_tensors(weights, b_dec=torch.full((8,), torch.inf))
    with pytest.raises(DamagedError, match="b_dec holds NaN or infinite"):
        load_sae(folder)
    weights.unlink()
    with pytest.raises(InputError, match="there is no file.*sae.safetensors"):
        load_sae(folder)
