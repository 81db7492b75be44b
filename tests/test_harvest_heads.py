"""The shares of attention heads in a feature, against plain products with the slices of W_O."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autointerp.config import ModelConfig
from autointerp.errors import AutointerpError
from autointerp.harvest.heads import head_parts
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel, load_model
from autointerp.sae.formats.hooknames import is_heads_output, may_hold_heads, to_module_path
from autointerp.store import Store
from autointerp.store.head_shares import HeadShare


def loaded(folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name=str(folder), dtype="float32", device="cpu"))


@pytest.mark.parametrize(
    ("family", "point", "n_heads"),
    [
        ("tiny_llama", "model.layers.2.self_attn.o_proj:in", 4),  # grouped-query attention: 4 heads, 2 of keys
        ("tiny_gpt2", "transformer.h.1.attn.c_proj:in", 4),
        ("tiny_neox", "gpt_neox.layers.1.attention.dense:in", 4),
    ],
)
def test_shares_are_of_each_head_s_slice(family: str, point: str, n_heads: int, request: pytest.FixtureRequest) -> None:
    model = loaded(request.getfixturevalue(family))
    weight = model.model.get_submodule(point.removesuffix(":in")).weight
    assert isinstance(weight, torch.Tensor)
    W_O = (weight if family == "tiny_gpt2" else weight.T).detach()
    rows = torch.nn.functional.normalize(torch.randn(9, len(W_O), generator=torch.Generator().manual_seed(0)), dim=1)
    rows[8] = 0
    rows[7, len(W_O) // n_heads :] = 0  # of the first head alone
    found = head_parts(model, Hookpoint.parse(point), rows)
    assert found is not None
    block = next(int(part) for part in point.split(".") if part.isdigit())
    assert to_module_path(f"blocks.{block}.attn.hook_z", model.model) == point
    for i in range(8):
        slices = rows[i].view(n_heads, -1)
        written = torch.stack([part @ W for part, W in zip(slices, W_O.view(n_heads, -1, W_O.shape[1]), strict=True)])
        for mine, parts in ((found.decoder[i], slices), (found.output[i], written)):
            lengths = parts.square().sum(1)
            np.testing.assert_allclose(mine, (lengths / lengths.sum()).numpy(), rtol=1e-4, atol=1e-6)
    assert found.decoder[7].tolist() == [1, 0, 0, 0] and not found.decoder[8].any() and not found.output[8].any()


def test_only_what_enters_an_output_projection_is_of_heads(tiny_llama: Path) -> None:
    model = loaded(tiny_llama)
    assert is_heads_output("model.layers.1.self_attn.o_proj:in", model.model)
    for other in ("model.layers.1", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj:in"):
        assert not is_heads_output(other, model.model)
        assert head_parts(model, Hookpoint.parse(other), torch.eye(64)) is None
    assert may_hold_heads("blocks.3.attn.hook_z") and not may_hold_heads("blocks.3.hook_attn_out")
    model.model.config.num_attention_heads = 5
    assert head_parts(model, Hookpoint.parse("model.layers.1.self_attn.o_proj:in"), torch.eye(64)) is None


def test_the_store_keeps_shares_and_nothing_else(tmp_path: Path) -> None:
    with Store.open(tmp_path / "x.duckdb", create=True) as store:
        assert not store.has_head_shares(1) and store.head_shares(1, 0) == []
        decoder, output = np.array([[0.25, 0.75], [1, 0]]), np.array([[0.5, 0.5], [0.125, 0.875]])
        store.replace_head_shares(1, output, decoder)
        store.replace_head_shares(1, decoder, output)
        assert store.head_shares(1, 0) == [HeadShare(0, 0.25, 0.5), HeadShare(1, 0.75, 0.5)]
        assert store.head_shares(1, 1) == [HeadShare(1, 0.0, 0.875), HeadShare(0, 1.0, 0.125)]
        assert store.has_head_shares(1) and not store.has_head_shares(2)
        with pytest.raises(AutointerpError, match="not between 0 and 1"):
            store.replace_head_shares(1, decoder * np.nan, output)
