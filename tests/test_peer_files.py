"""Dictionaries that libraries write now, read here to what the libraries compute. What was recorded once is in
tests/fixtures/sae; this is for libraries and architectures that are not.

Each library runs in the interpreter that its variable names, since it needs other versions of our own dependencies.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autointerp.sae.formats import load_sae
from autointerp.sae.sae import Sae

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "scripts" / "write_dictionaries.py"
PYTHONS = {
    "saelens": "AUTOINTERP_PEERS_PYTHON",
    "circuit_tracer": "AUTOINTERP_CIRCUIT_TRACER_PYTHON",
    "llamascopium": "AUTOINTERP_LLAMASCOPIUM_PYTHON",
}


def as_read(sae: Sae, features: torch.Tensor) -> torch.Tensor:
    """What the library's values should be here: positive ones, and of an abstopk a feature's two signs apart."""
    if "opposite_features" in sae.metadata:
        features = torch.cat([features, -features], dim=1)
    return features.clamp_min(0)


@pytest.mark.parametrize("library", sorted(PYTHONS))
def test_what_the_library_writes_computes_what_it_does(library: str, tmp_path: Path) -> None:
    python = os.environ.get(PYTHONS[library], "")
    if not python:
        pytest.skip(f"{PYTHONS[library]} does not name an interpreter with {library} installed")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(SCRIPT), library, str(tmp_path)], capture_output=True, text=True, env=clean, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert len(folders) >= 3
    for folder in folders:
        expected = load_file(folder / "expected.safetensors")
        (folder / "expected.safetensors").unlink()
        sae = load_sae(folder)
        features = as_read(sae, expected["features"])
        assert 0 < int((features > 0).sum()) < features.numel(), folder.name
        torch.testing.assert_close(sae.encode(expected["x"]), features, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae.encode_sparse(expected["x"]).dense(sae.d_sae), features, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae(expected["x"]), expected["y"], rtol=1e-5, atol=2e-5)
