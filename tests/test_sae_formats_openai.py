"""OpenAI's .pt files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.sae_format_helpers import FIXTURES, check_as_recorded, recorded

from autointerp.errors import DamagedError, InputError
from autointerp.sae.formats import detect, load_sae, sae_sha256

TOPK = FIXTURES / "openai" / "TopK" / "autoencoder.pt"


def changed(to: Path, **changes: Any) -> Path:
    state = torch.load(TOPK, weights_only=True) | changes
    torch.save({key: value for key, value in state.items() if value is not None}, to)
    return to


@pytest.mark.parametrize("name", recorded("openai"))
def test_recorded_files_compute_what_their_definition_says(name: str) -> None:
    folder = FIXTURES / "openai" / name
    sae = load_sae(folder)
    check_as_recorded(sae, folder, y_rtol=3e-5)  # undone by the standard deviation plus 1e-5, as it was divided
    assert detect(folder) == detect(folder / "autoencoder.pt") == "openai"
    assert sae.normalize == ("layer_norm" if name == "TopK" else "none")
    assert sae.k == (3 if name == "TopK" else None)
    assert sae_sha256(folder) == sae_sha256(folder / "autoencoder.pt")


def test_tied_decoders_and_a_k_in_a_tensor(tmp_path: Path) -> None:
    encoder = torch.load(TOPK, weights_only=True)["encoder.weight"]
    more: dict[str, Any] = {"decoder.weight": None, "decoder.linear.weight": encoder}
    inner = {"k": torch.tensor(5), "postact_fn": "ReLU"}
    sae = load_sae(changed(tmp_path / "a.pt", activation_state_dict=inner, **more))
    assert sae.k == 5
    torch.testing.assert_close(sae.W_dec * sae.row_norms.unsqueeze(1), encoder)


@pytest.mark.parametrize("changes, error, message", [
    ({"activation": "Identity"}, InputError, "activation 'Identity' is not supported"),
    ({"activation": "Topk"}, InputError, "Did you mean TopK"),
    ({"activation_state_dict": {"k": 3, "postact_fn": "Identity"}}, InputError, "TopK followed by Identity"),
    ({"activation_state_dict": None}, InputError, "k must be a positive whole number, not None"),
    ({"latent_bias": torch.zeros(4)}, DamagedError, r"latent_bias has shape \[4\]"),
    ({"decoder.weight": None}, DamagedError, "lacks decoder.weight"),
    ({"pre_bias": torch.full((8,), torch.nan)}, DamagedError, "pre_bias holds NaN"),
])  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        load_sae(changed(tmp_path / "a.pt", **changes))


def test_other_files_are_not_taken_for_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pre_bias and latent_bias"):
        load_sae(FIXTURES / "dictionary_learning" / "AutoEncoder" / "ae.pt", "openai")
    with pytest.raises(InputError, match="holds 0 .pt files"):
        load_sae(tmp_path, "openai")
