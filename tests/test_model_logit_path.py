"""Where a hookpoint's directions lead, against the plain model: its last block is made to return the direction and
nothing else, and all that follows is the model's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from autointerp.errors import NoProjection
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel
from autointerp.model.logit_path import LogitPath, find_logit_path

VOCAB, WIDTH, CAP = 60, 32, 3.0
LLAMA_LIKE = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 1, "tie_word_embeddings": False, "initializer_range": 0.2,
}  # fmt: skip
MULTIHEAD = {key: value for key, value in LLAMA_LIKE.items() if key != "num_key_value_heads"}
GPT2 = {
    "vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0,
    "eos_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
OPT = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "init_std": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
    "word_embed_proj_dim": 16,
}  # fmt: skip
BART = {
    "vocab_size": VOCAB, "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "max_position_embeddings": 64,
    "init_std": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
GEMMA = {**LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True, "sliding_window": 32}
LAYERS = ["sliding_attention", "full_attention"]
PER_LAYER = {
    **GEMMA, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB, "layer_types": LAYERS,
    "num_kv_shared_layers": 0,
}  # fmt: skip
del PER_LAYER["query_pre_attn_scalar"]
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "llama": ("Llama", LLAMA_LIKE),
    "neox": ("GPTNeoX", MULTIHEAD),
    "gemma2": ("Gemma2", {**GEMMA, "final_logit_softcapping": CAP, "layer_types": LAYERS}),
    "gemma4": ("Gemma4Text", {**PER_LAYER, "global_head_dim": 8}),
    "gemma3n": ("Gemma3nText", {
        **PER_LAYER, "laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0, 0.0],
    }),
    "granite": ("Granite", {
        **LLAMA_LIKE, "logits_scaling": 8.0, "residual_multiplier": 0.22, "embedding_multiplier": 12.0,
    }),
    "cohere": ("Cohere", {**LLAMA_LIKE, "logit_scale": 0.0625}),
    "minicpm3": ("MiniCPM3", {
        **LLAMA_LIKE, "dim_model_base": 8, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8,
        "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8,
    }),
    "lfm2": ("Lfm2", {**LLAMA_LIKE, "layer_types": ["conv", "full_attention"]}),
    "glm4": ("Glm4", {**LLAMA_LIKE, "head_dim": 8}),
    "olmo2": ("Olmo2", LLAMA_LIKE),
    "opt_project": ("OPT", {**OPT, "do_layer_norm_before": True}),
    "opt_350m": ("OPT", {**OPT, "do_layer_norm_before": False}),
    "gpt1": ("OpenAIGPT", {k: v for k, v in GPT2.items() if not k.endswith("_token_id")}),
    "bart": ("Bart", BART),
    "bloom": ("Bloom", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "n_layer": 2, "n_head": 4, "initializer_range": 0.2,
    }),
    "mamba": ("Mamba", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.2,
    }),
    "mixtral": ("Mixtral", {**LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "modernbert": ("ModernBertDecoder", {**MULTIHEAD, "cls_token_id": 0, "sep_token_id": 0}),
    "bert": ("Bert", {**MULTIHEAD, "is_decoder": True}),
}  # fmt: skip
BLOCKS = {
    "gpt2": "transformer.h", "gpt1": "transformer.h", "bloom": "transformer.h", "neox": "gpt_neox.layers",
    "mamba": "backbone.layers", "opt_project": "model.decoder.layers", "opt_350m": "model.decoder.layers",
    "bart": "model.decoder.layers", "bert": "bert.encoder.layer",
}  # fmt: skip


def loaded(family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    return made(family, dtype)


@cache
def made(family: str, dtype: torch.dtype) -> LoadedModel:
    kind, settings = CONFIGS[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # random models have norms without effect
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters(recurse=False):
                    parameter.add_(0.4 * torch.randn_like(parameter))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    model = model.to(dtype)
    return LoadedModel(model, None, torch.device("cpu"), dtype, family, "random", "")  # type: ignore[arg-type]


def block(family: str, n: int = 1) -> str:
    return f"{BLOCKS.get(family, 'model.layers')}.{n}"


def path_of(family: str, hookpoint: str, dtype: torch.dtype = torch.float32) -> LogitPath:
    return find_logit_path(loaded(family, dtype), Hookpoint.parse(hookpoint))


def directions(n: int, width: int = WIDTH) -> Tensor:
    rows = torch.randn(n, width, generator=torch.Generator().manual_seed(7))
    return torch.nn.functional.normalize(rows, dim=1)


def plain(family: str, edits: dict[str, Callable[[Tensor], Tensor]]) -> Tensor:
    """Logits [n, VOCAB] of n tokens, each a text by itself, while each named module returns what its edit makes of its
    first tensor; `name:in` edits what it reads."""
    model, handles = loaded(family).model, []

    def editing(value: Callable[[Tensor], Tensor]) -> Any:
        return lambda m, a, out: value(out) if isinstance(out, Tensor) else (value(out[0]), *out[1:])

    for name, value in edits.items():
        module = model.get_submodule(name.removesuffix(":in"))
        if name.endswith(":in"):
            handles.append(module.register_forward_pre_hook(lambda m, a, value=value: (value(a[0]), *a[1:])))
        else:
            handles.append(module.register_forward_hook(editing(value)))
    with torch.no_grad():
        logits: Tensor = model(torch.full((10, 1), 5), use_cache=False).logits[:, 0].float()
    for handle in handles:
        handle.remove()
    return logits


def fixed(rows: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda held: rows.view_as(held).clone()


def from_the_last_block(family: str, rows: Tensor) -> Tensor:
    """The model's logits where the residual stream holds `rows`, less those where it holds nothing."""
    at = block(family)
    return plain(family, {at: fixed(rows)}) - plain(family, {at: fixed(torch.zeros_like(rows))})


def logits(path: LogitPath, rows: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = path.hidden(rows) @ path.head.weight.float().T  # type: ignore[union-attr, operator]
    return found


@pytest.mark.parametrize("family, way, scale", [
    ("gpt2", "transformer.ln_f -> lm_head", 1),
    ("llama", "model.norm -> lm_head", 1),
    ("neox", "gpt_neox.final_layer_norm -> lm_head", 1),
    ("gemma4", "model.norm -> lm_head", 1),
    ("granite", "model.norm -> lm_head", 1 / 8),
    ("cohere", "model.norm -> lm_head", 1 / 16),
    ("minicpm3", "model.norm -> lm_head", 1 / 4),
    ("lfm2", "model.embedding_norm -> lm_head", 1),
    ("opt_project", "model.decoder.final_layer_norm -> model.decoder.project_out -> lm_head", 1),
    ("opt_350m", "model.decoder.project_out -> lm_head", 1),
    ("gpt1", "lm_head", 1),
    ("bart", "lm_head", 1),
    ("bloom", "transformer.ln_f -> lm_head", 1),
    ("mamba", "backbone.norm_f -> lm_head", 1),
])  # fmt: skip
def test_the_way_from_the_last_block(family: str, way: str, scale: float) -> None:
    path, d = path_of(family, block(family)), directions(10)
    assert " -> ".join(path.names) == way and path.scale == pytest.approx(scale) and path.width == WIDTH
    torch.testing.assert_close(logits(path, d), from_the_last_block(family, d), rtol=1e-3, atol=1e-4)


def test_a_soft_cap_is_left_out() -> None:
    path, d = path_of("gemma2", block("gemma2")), directions(10)
    capped = from_the_last_block("gemma2", d)
    torch.testing.assert_close(CAP * (logits(path, d) / CAP).tanh(), capped, rtol=1e-3, atol=1e-4)
    assert path.scale == 1 and logits(path, d).abs().max() > 1.5 * CAP


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2", "granite", "bloom", "mamba", "glm4", "olmo2"])
def test_blocks_and_what_they_add_write_into_one_stream(family: str) -> None:
    """An earlier block, a block's input, the embedding, and the sum between attention and MLP are the same stream."""
    last = path_of(family, block(family))
    for hookpoint in (block(family, 0), f"{block(family)}:in", "embedding", "between"):
        if hookpoint == "embedding":
            model = loaded(family).model
            hookpoint = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())
        if hookpoint == "between":
            norm = {"gpt2": "ln_2", "llama": "post_attention_layernorm", "granite": "post_attention_layernorm",
                    "gemma2": "pre_feedforward_layernorm", "glm4": "post_attention_layernorm"}  # fmt: skip
            if family not in norm:
                continue
            hookpoint = f"{block(family)}.{norm[family]}:in"
        if family == "bloom" and hookpoint.endswith("word_embeddings"):
            continue  # which a norm follows
        path = path_of(family, hookpoint)
        assert (path.carry, path.tail, path.scale) == ((), last.tail, last.scale), hookpoint


@pytest.mark.parametrize("family, hookpoint, carried", [
    ("gpt2", "transformer.h.1.attn.c_proj:in", ["transformer.h.1.attn.c_proj"]),
    ("llama", "model.layers.1.self_attn.o_proj:in", ["model.layers.1.self_attn.o_proj"]),
    ("gpt2", "transformer.h.1.mlp.act", ["transformer.h.1.mlp.c_proj"]),
    ("llama", "model.layers.1.mlp.down_proj:in", ["model.layers.1.mlp.down_proj"]),
    ("granite", "model.layers.1.self_attn.o_proj:in", ["model.layers.1.self_attn.o_proj"]),
    ("gemma2", "model.layers.1.mlp", ["model.layers.1.post_feedforward_layernorm"]),
    ("glm4", "model.layers.1.mlp", ["model.layers.1.post_mlp_layernorm"]),
    ("olmo2", "model.layers.1.mlp", ["model.layers.1.post_feedforward_layernorm"]),
    ("gemma2", "model.layers.1.self_attn.o_proj:in",
     ["model.layers.1.self_attn.o_proj", "model.layers.1.post_attention_layernorm"]),
    ("granite", "model.layers.1.mlp", []),
    ("llama", "model.layers.1.self_attn", []),
    ("mixtral", "model.layers.1.mlp", []),
])  # fmt: skip
def test_directions_are_carried_into_the_stream(family: str, hookpoint: str, carried: list[str]) -> None:
    """What the last block writes because of a direction, the MLP silenced where the direction is attention's, is led by
    the model to the same logits."""
    path = path_of(family, hookpoint)
    assert list(path.names[: len(path.carry)]) == carried
    d = directions(10, path.width)
    silent = {} if "mlp" in hookpoint else {f"{block(family)}.mlp": torch.zeros_like}
    written = []
    for rows in (d, torch.zeros_like(d)):
        held: list[Tensor] = []
        plain(family, {hookpoint: fixed(rows), **silent, block(family): lambda y, held=held: held.append(y) or y})
        written.append(held[0].reshape(10, -1))
    expected = from_the_last_block(family, written[0] - written[1])
    if family == "gemma2":
        expected = CAP * (expected / CAP).atanh()
    torch.testing.assert_close(logits(path, d), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("family, hookpoint, reason", [
    ("llama", "model.layers.1.input_layernorm", "read by model.layers.1.self_attn .LlamaAttention., which is"),
    ("llama", "model.layers.1.mlp:in", "read by model.layers.1.mlp .LlamaMLP., which is not linear"),
    ("llama", "model.layers.1.mlp.gate_proj:in", "gate_proj is not all that reads it"),
    ("llama", "model.layers.1.self_attn.q_proj", "no module reads it as it is"),
    ("mixtral", "model.layers.1.mlp.gate", "not part of the residual stream"),
    ("llama", "model.layers.1.mlp.up_proj", "no module reads it as it is"),
    ("gpt1", "transformer.h.0", "read by transformer.h.1 .Block., which is not linear"),
    ("opt_350m", "model.decoder.layers.0", "read by model.decoder.layers.1 .OPTDecoderLayer., which is not linear"),
    ("modernbert", "model.layers.1", r"lm_head.act \(GELUActivation\), before the unembedding, is not linear"),
    ("bert", "bert.encoder.layer.1", "is not linear"),
    ("gemma3n", "model.layers.1.mlp", "not part of the residual stream"),
])  # fmt: skip
def test_what_does_not_reach_the_logits_is_refused(family: str, hookpoint: str, reason: str) -> None:
    with pytest.raises(NoProjection, match=reason) as refused:
        path_of(family, hookpoint)
    assert hookpoint in str(refused.value)


def test_a_head_that_is_not_there_or_moves_the_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("llama").model
    with monkeypatch.context() as patch:
        patch.setattr(model, "get_output_embeddings", lambda: None)
        with pytest.raises(NoProjection, match="has no output embedding"):
            path_of("llama", block("llama"))
    forward = model.forward
    for change in (lambda z: -z, lambda z: z.roll(1, -1), lambda z: z.square(), lambda z: z * torch.arange(VOCAB)):

        def changed(change: Any = change, **kwargs: Any) -> Any:
            output = forward(**kwargs)
            output.logits = change(output.logits)
            return output

        with monkeypatch.context() as patch:
            patch.setattr(model, "forward", changed)
            with pytest.raises(NoProjection, match="in a way that moves their order"):
                path_of("llama", block("llama"))


def test_a_model_that_cannot_be_run_so_is_refused_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("needs two tokens\nat least")

    monkeypatch.setattr(loaded("llama").model, "forward", broken)
    with pytest.raises(NoProjection, match=r"LlamaForCausalLM cannot be followed .*RuntimeError: needs two tokens\)"):
        path_of("llama", block("llama"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family, hookpoint", [
    ("gpt2", "transformer.h.0"), ("granite", "model.layers.0.mlp"), ("gemma2", "model.layers.0.mlp"),
    ("llama", "model.layers.0.self_attn.o_proj:in"), ("opt_350m", "model.decoder.layers.1"),
])  # fmt: skip
def test_half_precision_finds_the_same_way(family: str, hookpoint: str, dtype: torch.dtype) -> None:
    half, full = path_of(family, hookpoint, dtype), path_of(family, hookpoint)
    assert half.names == full.names and half.scale == full.scale
    with pytest.raises(NoProjection):
        path_of("llama", "model.layers.1.mlp:in", dtype)


def test_the_model_is_left_as_it_was() -> None:
    model = loaded("gpt2").model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path_of("gpt2", "transformer.wte")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.slow
def test_the_table_of_architectures_has_nothing_wrong() -> None:
    """A few of each kind; scripts/architectures.py without names tries all of them."""
    script = Path(__file__).parents[1] / "scripts" / "architectures.py"
    names = ["gpt2", "gemma4_text", "granite", "glm4", "lfm2", "bert", "openai-gpt", "modernbert-decoder", "mamba"]
    done = subprocess.run([sys.executable, script, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not tried" not in done.stdout and "| right | right | right | right | 5: " in done.stdout
