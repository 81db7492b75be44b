"""What we save, SAELens opens, and encodes alike; what SAELens saves, we load.

SAELens needs other versions of our own dependencies, so it runs in the interpreter that AUTOINTERP_PEERS_PYTHON names.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from autointerp.sae.formats import load_sae, save_saelens
from autointerp.sae.sae import Sae

PEERS_PYTHON = os.environ.get("AUTOINTERP_PEERS_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not PEERS_PYTHON, reason="AUTOINTERP_PEERS_PYTHON does not name an interpreter with sae-lens installed"
)

SCRIPT = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig

folder = sys.argv[1]
x = load_file(f"{folder}/x.safetensors")["x"]
ours = SAE.load_from_disk(f"{folder}/ours")
about = dict(kind=type(ours).__name__, k=ours.cfg.k, hook_name=ours.cfg.metadata.hook_name,
             model_name=ours.cfg.metadata.model_name, version=ours.cfg.metadata.sae_lens_version)
torch.manual_seed(0)
training = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=24, d_sae=160, k=6, device="cpu"))
with torch.no_grad():
    training.W_dec.mul_(torch.rand(160, 1) * 3 + 0.1)       # far from unit rows
    training.b_enc.normal_(std=0.1)
    training.b_dec.normal_()
training.save_inference_model(f"{folder}/theirs")
theirs = SAE.load_from_disk(f"{folder}/theirs")
with torch.no_grad():
    save_file({"ours": ours.encode(x), "ours_out": ours(x), "theirs": theirs.encode(x), "theirs_out": theirs(x)},
              f"{folder}/encoded.safetensors")
json.dump(about, open(f"{folder}/about.json", "w"))
"""


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both sides have saved an SAE, and SAELens the encodings of x by both."""
    folder = tmp_path_factory.mktemp("exchange")
    g = torch.Generator().manual_seed(0)
    sae = Sae(
        torch.randn(24, 160, generator=g),
        torch.randn(160, generator=g) * 0.1,
        F.normalize(torch.randn(160, 24, generator=g), dim=1),
        torch.randn(24, generator=g),
        k=6,
    )
    save_saelens(sae, folder / "ours", {"model_name": "gpt2", "hook_name": "transformer.h.6"})
    save_file({"x": torch.randn(200, 24, generator=g) * 3}, folder / "x.safetensors")
    done = subprocess.run([PEERS_PYTHON, "-c", SCRIPT, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_saelens_opens_ours(exchange: Path) -> None:
    about = json.loads((exchange / "about.json").read_text())
    assert about.pop("version").startswith("6.")
    assert about == {"kind": "TopKSAE", "k": 6, "hook_name": "transformer.h.6", "model_name": "gpt2"}


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_both_encode_and_decode_alike(exchange: Path, whose: str) -> None:
    sae, x = load_sae(exchange / whose), load_file(exchange / "x.safetensors")["x"]
    encoded = load_file(exchange / "encoded.safetensors")
    torch.testing.assert_close(sae.encode(x), encoded[whose], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.encode_sparse(x).dense(160), encoded[whose], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x), encoded[f"{whose}_out"], rtol=1e-5, atol=1e-5)
