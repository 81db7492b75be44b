"""A project with a transcoder for each layer of a small model, and what an independent encode makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autointerp.sae.formats import save_saelens, save_sparsify
from autointerp.sae.sae import Sae

HEAD = """
[model]
name = {model!r}
dtype = "float32"
[corpus]
source = {corpus!r}
context_length = 32
[store]
path = "x.duckdb"
"""
TABLE = """
[[sae]]
name = "layer {layer}"
hookpoint = "model.layers.{layer}.{reads}"
output_hookpoint = "model.layers.{layer}.mlp"
path = "saes/{layer}"
"""
D_SAE = 96
LAYERS = 3


def transcoder(
    d: int, seed: int, threshold: float = 0.5, skip: bool = True, k: int | None = None, relu: bool = True
) -> Sae:  # fmt: skip
    """A random transcoder with a bias before its encoder, which other tools have no place for."""
    g = torch.Generator().manual_seed(seed)
    lowest = 0.0 if relu else -threshold
    chosen: dict[str, Any] = {"k": k} if k else {"threshold": torch.linspace(lowest, threshold, D_SAE), "relu": relu}
    return Sae(
        torch.randn(d, D_SAE, generator=g) / d**0.5,
        torch.randn(D_SAE, generator=g) * 0.1,
        F.normalize(torch.randn(D_SAE, d, generator=g), dim=1),
        torch.randn(d, generator=g),
        b_pre=torch.randn(d, generator=g) * 0.1,
        W_skip=torch.randn(d, d, generator=g) / d if skip else None,
        architecture="jumprelu_transcoder",
        **chosen,
    )


def write_project(
    folder: Path, model: Path, transcoders: list[Sae], corpus: Path | str = "stdlib", reads: str = "mlp:in"
) -> Path:
    """The configuration of a project with these transcoders of layers 0, 1, ..."""
    tables = ""
    for layer, made in enumerate(transcoders):
        save = save_saelens if made.k is None else save_sparsify
        save(made, folder / "saes" / str(layer), {"model_name": "tiny"})
        tables += TABLE.format(layer=layer, reads=reads)
    path = folder / "autointerp.toml"
    path.write_text(HEAD.format(model=str(model), corpus=str(corpus)) + tables)
    return path


def as_circuit_tracer(tensors: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """(activations, reconstruction) of x by the layout's definition: nothing subtracted, x W_skip^T added."""
    pre = x @ tensors["W_enc"].T + tensors["b_enc"]
    f = pre * (pre > tensors.get("activation_function.threshold", torch.zeros(len(tensors["b_enc"]))))
    y = f @ tensors["W_dec"] + tensors["b_dec"]
    return f, y + x @ tensors["W_skip"].T if "W_skip" in tensors else y
