"""Files of dictionaries as their producers lay them out, written from the documented layouts, and what they compute,
written out in float64 without the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from autointerp.sae.sae import Sae

D_IN, D_SAE, D_OUT, N = 6, 20, 6, 40


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vectors(scale: float = 2.0) -> Tensor:
    return random(N, D_IN, seed=99) * scale + 0.3


def parts(d_out: int = D_OUT, d_sae: int = D_SAE) -> dict[str, Tensor]:
    """W_enc [d_in, d_sae], W_dec [d_sae, d_out] with rows of uneven lengths, and biases."""
    return {
        "W_enc": random(D_IN, d_sae, seed=1) / 2,
        "b_enc": random(d_sae, seed=2) * 0.2,
        "W_dec": random(d_sae, d_out, seed=3) * torch.linspace(0.3, 2.5, d_sae).unsqueeze(1),
        "b_dec": random(d_out, seed=4) * 0.3,
    }


def thresholds() -> Tensor:
    return random(D_SAE, seed=5).abs() * 0.5


def write(path: Path, tensors: Mapping[str, Tensor], config: dict[str, Any] | None = None, name: str = "") -> Path:
    """A safetensors file, and a JSON configuration `name` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    if config is not None:
        (path.parent / name).write_text(json.dumps(config))
    return path


class Runs:
    """A pickle of it wants to run code."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('it ran')",)


def top(values: Tensor, k: int) -> Tensor:
    """The k largest of each row, with their signs; 0 elsewhere."""
    kept = torch.zeros_like(values)
    for row, value in enumerate(values):
        for index in value.argsort(descending=True)[:k]:
            kept[row, index] = value[index]
    return kept


def check(sae: Sae, x: Tensor, values: Tensor, rows: Tensor, b_dec: Tensor, more: Tensor | float = 0.0) -> None:
    """Checks that `sae` has the activations values_i |rows_i| where a value is above 0, from the dense and from the
    sparse encoder, and reconstructs values @ rows + b_dec + more; all to 1e-5."""
    values, rows = values.double(), rows.double()
    expected = (values.clamp_min(0) * rows.norm(dim=1)).float()
    y = (values @ rows + b_dec.double() + more).float()
    assert 0 < int((expected > 0).sum()) < expected.numel()
    torch.testing.assert_close(sae.encode(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.encode_sparse(x).dense(sae.d_sae), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.reconstruct(x)[0], y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae))
