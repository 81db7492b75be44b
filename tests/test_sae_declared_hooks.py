"""The places that files declare are found in the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from autointerp.errors import InputError
from autointerp.sae.formats.declared_hooks import is_declared, to_hookpoint

SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 32,
    "vocab_size": 50,
}


@pytest.fixture(scope="module")
def gemma() -> Any:
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(**SMALL)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("declared, path", [
    ("model.layers.1.output", "model.layers.1"),
    ("layers.1.output", "model.layers.1"),
    ("model.layers.1.self_attn.o_proj.input", "model.layers.1.self_attn.o_proj:in"),
    ("model.layers.1.pre_feedforward_layernorm.output", "model.layers.1.pre_feedforward_layernorm"),
    ("model.layers.1.post_feedforward_layernorm.output", "model.layers.1.post_feedforward_layernorm"),
    ("blocks.1.mlp.hook_in", "model.layers.1.mlp:in"),
    ("blocks.1.mlp.hook_out", "model.layers.1.mlp"),
    ("blocks.1.hook_mlp_out", "model.layers.1.post_feedforward_layernorm"),
    ("blocks.1.attn.hook_z", "model.layers.1.self_attn.o_proj:in"),
    ("model.layers.1:in", "model.layers.1:in"),
    ("model.layers.1.mlp", "model.layers.1.mlp"),
])  # fmt: skip
def test_declared_places(declared: str, path: str, gemma: Any) -> None:
    assert to_hookpoint(declared, gemma) == path


def test_what_a_gemma_scope_2_transcoder_reads_is_behind_the_norms_gain(gemma: Any) -> None:
    """The norm's output is what the MLP reads: mlp.hook_in, and not ln2.hook_normalized."""
    seen: dict[str, torch.Tensor] = {}
    layer = gemma.model.layers[1]
    with torch.no_grad():
        layer.pre_feedforward_layernorm.weight.add_(0.7)
        layer.pre_feedforward_layernorm.register_forward_hook(lambda m, a, out: seen.update(norm=out))
        layer.mlp.register_forward_pre_hook(lambda m, a: seen.update(mlp=a[0]))
        gemma(torch.arange(5).unsqueeze(0))
    assert torch.equal(seen["norm"], seen["mlp"])
    with pytest.raises(InputError, match="before it is multiplied by the norm's weights"):
        to_hookpoint("blocks.1.ln2.hook_normalized", gemma)


def test_a_language_model_within_another_is_found() -> None:
    outer: Any = nn.Module()
    outer.model = nn.Module()
    outer.model.language_model = nn.Module()
    outer.model.language_model.layers = nn.ModuleList([nn.Linear(2, 2)])
    assert to_hookpoint("model.layers.0.output", outer) == "model.language_model.layers.0"
    with pytest.raises(InputError, match="has a module 'layers.3'"):
        to_hookpoint("model.layers.3.output", outer)


def test_a_module_that_is_called_output_is_itself() -> None:
    outer: Any = nn.Module()
    outer.output = nn.Linear(2, 2)
    outer.inner = nn.Module()
    outer.inner.output = nn.Linear(2, 2)
    assert to_hookpoint("inner.output", outer) == "inner.output"
    assert not is_declared("transformer.h.6") and is_declared("inner.output") and is_declared("hook_embed")
