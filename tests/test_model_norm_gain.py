"""The gain of the norm at a hookpoint, found by running the model, of norms of three kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.small_models import VOCAB, save_model

from autointerp.config import ModelConfig
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.norm_gain import norm_gain


def loaded(folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name=str(folder), dtype="float32", device="cpu"))


def with_gains(model: LoadedModel, name: str) -> None:
    """Random weights for a norm, and a random bias where it has one."""
    norm = model.model.get_submodule(name)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(norm.weight.shape, generator=g) + 0.5)  # type: ignore[operator, arg-type, union-attr]
        if isinstance(getattr(norm, "bias", None), torch.Tensor):
            norm.bias.copy_(torch.randn(norm.bias.shape, generator=g))  # type: ignore[operator, arg-type, union-attr]


@pytest.fixture(scope="module")
def tiny_gemma(model_folder: Callable[[str], Path]) -> Path:
    from transformers import Gemma2Config

    return save_model(
        model_folder("tiny_gemma_gain"),
        Gemma2Config(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
            pad_token_id=None,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "norm", "reader"),
    [
        ("tiny_gpt2", "transformer.h.1.ln_2", "transformer.h.1.mlp:in"),
        ("tiny_llama", "model.layers.1.post_attention_layernorm", "model.layers.1.mlp:in"),
        ("tiny_gemma", "model.layers.1.pre_feedforward_layernorm", "model.layers.1.mlp:in"),
    ],
)
def test_the_gain_is_what_the_norm_multiplies_and_adds(
    family: str, norm: str, reader: str, request: pytest.FixtureRequest
) -> None:
    model = loaded(request.getfixturevalue(family))
    if family != "tiny_gemma":
        assert norm_gain(model, Hookpoint.parse(norm)) is None  # all ones and zeros: there is nothing before or after
    with_gains(model, norm)
    module = model.model.get_submodule(norm)
    weight, bias = module.weight, getattr(module, "bias", None)
    for point in (norm, reader):
        found = norm_gain(model, Hookpoint.parse(point))
        assert found is not None
        expected = 1 + weight if family == "tiny_gemma" else weight
        torch.testing.assert_close(found.factor, expected.detach())  # type: ignore[union-attr]
        offset = bias.detach() if isinstance(bias, torch.Tensor) else torch.zeros(len(found.factor))
        torch.testing.assert_close(found.offset, offset)
        back = found.inverse
        torch.testing.assert_close((found.factor + found.offset) * back.factor + back.offset, torch.ones(len(offset)))


def test_what_is_no_norm_s_output_has_no_gain(tiny_llama: Path) -> None:
    model = loaded(tiny_llama)
    with_gains(model, "model.layers.1.post_attention_layernorm")
    for point in ("model.layers.1", "model.layers.1.mlp", "model.layers.1:in", "model.layers.1.self_attn.o_proj:in"):
        assert norm_gain(model, Hookpoint.parse(point)) is None
    with torch.no_grad():
        model.model.get_submodule("model.layers.1.post_attention_layernorm").weight[3] = 0  # type: ignore[operator, index, union-attr]
    assert norm_gain(model, Hookpoint.parse("model.layers.1.mlp:in")) is None  # it cannot be undone
