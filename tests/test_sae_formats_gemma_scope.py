"""Gemma Scope's params.npz."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sae_format_helpers import FIXTURES, check_as_recorded, recorded

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import detect, load_sae, sae_sha256

PARAMS = FIXTURES / "gemma_scope" / "params"


def arrays() -> dict[str, Any]:
    with np.load(PARAMS / "params.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", recorded("gemma_scope"))
def test_recorded_params_compute_what_saelens_makes_of_them(name: str, tmp_path: Path) -> None:
    folder = FIXTURES / "gemma_scope" / name
    sae = load_sae(folder)
    check_as_recorded(sae, folder)
    assert detect(folder) == "gemma_scope" and sae.architecture == "jumprelu"
    assert not sae.b_pre.any() and sae.metadata == {"prepend_bos": True}
    shutil.copy(folder / "params.npz", tmp_path / "layer_3.npz")
    check_as_recorded(load_sae(tmp_path), folder)
    check_as_recorded(load_sae(tmp_path / "layer_3.npz"), folder)
    assert sae_sha256(tmp_path) == sae_sha256(folder)


def test_compressed_arrays_and_transcoders_of_other_widths(tmp_path: Path) -> None:
    wide = arrays() | {"W_dec": np.ones((16, 5), np.float32), "b_dec": np.zeros(5, np.float32)}
    np.savez_compressed(tmp_path / "params.npz", **wide)
    sae = load_sae(tmp_path)
    assert (sae.d_in, sae.d_sae, sae.d_out) == (8, 16, 5)


def test_saes_of_the_embedding_are_in_its_units(tmp_path: Path) -> None:
    folder = tmp_path / "embedding" / "width_4k"
    folder.mkdir(parents=True)
    shutil.copy(PARAMS / "params.npz", folder)
    sae, plain = load_sae(folder), load_sae(PARAMS)
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)) * 4
    torch.testing.assert_close(sae.encode(x), plain.encode(x / math.sqrt(8)) * math.sqrt(8))
    assert sae.metadata["hook_name"] == "hook_embed"
    assert sae_sha256(folder) != sae_sha256(PARAMS)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "params.npz"
    good = arrays()
    np.savez(file, **{name: good[name] for name in ("W_enc", "W_dec", "b_enc")})
    with pytest.raises(DamagedError, match=r"lacks threshold, b_dec \(it holds: W_dec, W_enc, b_enc\)"):
        load_sae(tmp_path)
    np.savez(file, **good | {"threshold": np.ones(15, np.float32)})
    with pytest.raises(DamagedError, match=r"threshold has shape \[15\], but W_enc says \[16\]"):
        load_sae(tmp_path)
    np.savez(file, **good | {"W_dec": good["W_dec"] * np.nan})
    with pytest.raises(DamagedError, match="W_dec holds NaN"):
        load_sae(tmp_path)
    np.savez(file, **good | {"W_enc": good["W_enc"][0]})
    with pytest.raises(DamagedError, match="W_enc should be a matrix"):
        load_sae(tmp_path)
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    file.unlink()
    with pytest.raises(InputError, match="no SAE in a known format"):
        load_sae(tmp_path)
    with pytest.raises(InputError, match="holds no params.npz, and 0 other .npz files with such arrays"):
        load_sae(tmp_path, "gemma_scope")
    with pytest.raises(DamagedError, match="lacks W_enc"):
        load_sae(tmp_path / "other.npz", "gemma_scope")
