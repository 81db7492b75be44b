"""A dictionary that fits given vectors without training: both signs of their main directions, above a threshold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

N_DIRECTIONS = 40
ACTIVE_ABOVE = 0.5
"""Thresholds, in standard deviations of the direction."""


def analytic(x: Tensor, n_directions: int = N_DIRECTIONS) -> dict[str, Tensor]:
    """Tensors of a JumpReLU SAE of vectors x [n, d], which subtracts b_dec. Its decoder rows have lengths of 2 to 6, so
    that it matters whether they count where features are chosen."""
    x = x.double()
    mean = x.mean(0)
    along_mean = mean / mean.norm().clamp_min(1e-12)
    centred = x - mean
    rest = centred - (centred @ along_mean)[:, None] * along_mean
    directions = torch.linalg.svd(rest, full_matrices=False)[2][: n_directions - 1]
    directions = torch.cat([along_mean[None], directions])
    spread = (centred @ directions.T).std(0)
    both, spreads = torch.cat([directions, -directions]), torch.cat([spread, spread])
    lengths = 2 + 4 * torch.rand(len(both), generator=torch.Generator().manual_seed(0)).double()
    tensors = {
        "W_enc": (both / lengths[:, None]).T,
        "b_enc": torch.zeros(len(both)),
        "W_dec": both * lengths[:, None],
        "b_dec": mean,
        "threshold": ACTIVE_ABOVE * spreads / lengths,
    }
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def figures(t: dict[str, Tensor], x: Tensor, y: Tensor | None = None) -> dict[str, float]:
    """The L0 and FVU of such a dictionary on x, by its own definition; of y where it writes something else."""
    pre = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    f = pre * (pre > t["threshold"])
    y = x if y is None else y
    error = (f @ t["W_dec"] + t["b_dec"] - y).square().sum()
    return {"l0": float((f > 0).sum(1).float().mean()), "fvu": float(error / (y - y.mean(0)).square().sum())}


def save(folder: Path, t: dict[str, Tensor], declared: dict[str, float] | None, **config: Any) -> Path:
    """The dictionary in SAELens's format."""
    folder.mkdir(parents=True, exist_ok=True)
    if config.get("architecture") == "topk":
        t = {name: tensor for name, tensor in t.items() if name != "threshold"}
    metadata = config.pop("metadata", {}) | ({} if declared is None else {"declared": declared})
    whole = {
        "architecture": "jumprelu", "d_in": t["W_enc"].shape[0], "d_sae": t["W_enc"].shape[1], "dtype": "float32",
        "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": metadata,
    } | config  # fmt: skip
    save_file({name: tensor.contiguous() for name, tensor in t.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(whole), encoding="utf-8")
    return folder
