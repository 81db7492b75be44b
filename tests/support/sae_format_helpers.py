"""The recorded SAEs of tests/fixtures/sae (scripts/record_sae_fixtures.py), and the checks that readers must pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from autointerp.sae.sae import Sae

FIXTURES = Path(__file__).parents[1] / "fixtures" / "sae"
METADATA = {"model_name": "gpt2", "hook_name": "transformer.h.6", "context_size": 128, "prepend_bos": True}


def recorded(tool: str) -> list[str]:
    return sorted(path.name for path in (FIXTURES / tool).iterdir())


def copied(tool: str, name: str, to: Path) -> Path:
    """A copy that a test may damage, without the library's recorded results."""
    shutil.copytree(FIXTURES / tool / name, to)
    (to / "expected.npz").unlink()
    return to


def check_as_recorded(sae: Sae, folder: Path, *, y_rtol: float = 1e-5) -> None:
    """Checks that the dense and the sparse encoder give the library's features and reconstruction."""
    with np.load(folder / "expected.npz") as arrays:
        x, features, y = (torch.from_numpy(arrays[name]) for name in ("x", "features", "y"))
    assert 0 < int((features > 0).sum()) < features.numel()
    torch.testing.assert_close(sae.encode(x), features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.encode_sparse(x).dense(sae.d_sae), features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x), y, rtol=y_rtol, atol=1e-5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae))


def tensors(unit: bool = True, seed: int = 0, d_in: int = 10, d_sae: int = 40, d_out: int = 10) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, d_out, generator=g)
    return {
        "W_enc": torch.randn(d_in, d_sae, generator=g),
        "b_enc": torch.randn(d_sae, generator=g) * 0.1,
        "W_dec": F.normalize(W_dec, dim=1) if unit else W_dec,
        "b_dec": torch.randn(d_out, generator=g),
    }


def make(**settings: Any) -> Sae:
    """A TopK SAE with 10 inputs and 40 features, changed by `settings`."""
    return Sae(**tensors(), **({"k": 4} | settings if "threshold" not in settings else settings))


def change_config(folder: Path, name: str = "cfg.json", **changes: Any) -> None:
    """Set values of a JSON table. "<absent>" removes one."""
    config = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in config.items() if value != "<absent>"}))


def change_tensors(path: Path, **changes: Tensor | None) -> None:
    """Set tensors of a safetensors file. None removes one."""
    changed = load_file(path) | changes
    save_file({name: tensor.contiguous() for name, tensor in changed.items() if tensor is not None}, path)


def same(a: Sae, b: Sae) -> None:
    """Checks that both SAEs compute the same results."""
    x = torch.randn(64, a.d_in, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(a.encode(x), b.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a(x), b(x), rtol=1e-4, atol=1e-5)
