"""TransformerLens names and Hugging Face modules name the same activations, in every family that is known."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from autointerp.errors import InputError
from autointerp.model.hooks import Hookpoint, hooked
from autointerp.sae.formats.hooknames import (
    check_processing,
    from_base_model_path,
    to_hook_name,
    to_module_path,
    wants_bos,
)

LLAMA_LIKE = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 32,
    "vocab_size": 50,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GPT_NEOX = {key: LLAMA_LIKE[key] for key in LLAMA_LIKE if key not in ("num_key_value_heads", "head_dim")}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}),
    "gpt_neox": ("GPTNeoX", GPT_NEOX),
    "gpt_neox_serial": ("GPTNeoX", GPT_NEOX | {"use_parallel_residual": False}),
    **{name.lower(): (name, LLAMA_LIKE) for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Glm4")},
}
FAMILIES = sorted(CONFIGS)
CONFIGS |= {"granite": ("Granite", LLAMA_LIKE | {"residual_multiplier": 0.22}), "olmo2": ("Olmo2", LLAMA_LIKE)}


@cache
def model(family: str) -> Any:
    name, settings = CONFIGS[family]
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**settings)).eval()
    with torch.no_grad():  # so that every norm and every bias does something
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def activation(family: str, hook_name: str) -> Tensor:
    found: list[Tensor] = []
    with (
        torch.no_grad(),
        hooked(model(family), Hookpoint.parse(to_module_path(hook_name, model(family))), capture=found),
    ):
        model(family)(torch.arange(7).unsqueeze(0), use_cache=False)
    return found[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_attention_and_mlp_add_is_what_the_block_adds(family: str) -> None:
    """hook_resid_post = hook_resid_pre + hook_attn_out + hook_mlp_out, norms behind the modules included."""
    for n in (0, 1):
        pre, post, attention, mlp = (
            activation(family, f"blocks.{n}.hook_{name}") for name in ("resid_pre", "resid_post", "attn_out", "mlp_out")
        )
        torch.testing.assert_close(pre + attention + mlp, post, rtol=1e-4, atol=1e-5)
        if family == "gpt_neox":
            with pytest.raises(InputError, match="run side by side"):
                to_module_path(f"blocks.{n}.hook_resid_mid", model(family))
        else:
            torch.testing.assert_close(activation(family, f"blocks.{n}.hook_resid_mid"), pre + attention)
    torch.testing.assert_close(
        activation(family, "blocks.0.hook_resid_post"), activation(family, "blocks.1.hook_resid_pre")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_heads_enter_the_output_projection(family: str) -> None:
    path = to_module_path("blocks.1.attn.hook_z", model(family))
    projection = model(family).get_submodule(path.removesuffix(":in"))
    z, out = activation(family, "blocks.1.attn.hook_z"), activation(family, "blocks.1.hook_attn_out")
    with torch.no_grad():
        out_again = projection(z)
        if family == "gemma2":
            out_again = model(family).model.layers[1].post_attention_layernorm(out_again)
        if family == "glm4":
            out_again = model(family).model.layers[1].post_self_attn_layernorm(out_again)
    torch.testing.assert_close(out_again, out)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embedding_is_the_token_embedding(family: str) -> None:
    embedding, ids = model(family).get_input_embeddings(), torch.arange(7)
    expected = embedding.weight[ids]
    if family.startswith("gemma"):
        expected = expected * 16**0.5
    torch.testing.assert_close(activation(family, "hook_embed")[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("hook_name, family, path", [
    ("blocks.1.hook_resid_post", "gpt2", "transformer.h.1"),
    ("blocks.0.hook_resid_pre", "gpt2", "transformer.h.0:in"),
    ("blocks.1.hook_mlp_out", "gpt2", "transformer.h.1.mlp"),
    ("blocks.1.attn.hook_z", "gpt2", "transformer.h.1.attn.c_proj:in"),
    ("blocks.1.hook_resid_mid", "gpt2", "transformer.h.1.ln_2:in"),
    ("hook_embed", "gpt2", "transformer.wte"),
    ("blocks.1.hook_resid_post", "llama", "model.layers.1"),
    ("blocks.1.hook_mlp_out", "llama", "model.layers.1.mlp"),
    ("blocks.1.mlp.hook_in", "llama", "model.layers.1.mlp:in"),
    ("blocks.1.hook_attn_out", "qwen3", "model.layers.1.self_attn"),
    ("blocks.1.attn.hook_z", "mistral", "model.layers.1.self_attn.o_proj:in"),
    ("blocks.1.hook_mlp_out", "gemma2", "model.layers.1.post_feedforward_layernorm"),
    ("blocks.1.hook_attn_out", "gemma2", "model.layers.1.post_attention_layernorm"),
    ("blocks.1.hook_resid_mid", "gemma2", "model.layers.1.pre_feedforward_layernorm:in"),
    ("hook_embed", "gemma2", "model.layers.0:in"),
    ("blocks.1.hook_mlp_out", "glm4", "model.layers.1.post_mlp_layernorm"),
    ("blocks.1.hook_attn_out", "glm4", "model.layers.1.post_self_attn_layernorm"),
    ("blocks.1.hook_resid_mid", "glm4", "model.layers.1.post_attention_layernorm:in"),
    ("blocks.1.hook_resid_mid", "granite", "model.layers.1.post_attention_layernorm:in"),
    ("blocks.1.hook_attn_out", "olmo2", "model.layers.1.post_attention_layernorm"),
    ("blocks.1.hook_mlp_out", "olmo2", "model.layers.1.post_feedforward_layernorm"),
    ("blocks.1.hook_resid_post", "gpt_neox", "gpt_neox.layers.1"),
    ("blocks.1.hook_attn_out", "gpt_neox", "gpt_neox.layers.1.attention"),
    ("blocks.1.attn.hook_z", "gpt_neox", "gpt_neox.layers.1.attention.dense:in"),
    ("hook_embed", "gpt_neox", "gpt_neox.embed_in"),
])  # fmt: skip
def test_names_both_ways(hook_name: str, family: str, path: str) -> None:
    assert to_module_path(hook_name, model(family)) == path
    back = to_hook_name(path, model(family))
    assert back is not None and to_module_path(back, model(family)) == path
    if hook_name != "hook_embed" or family != "gemma2":  # the same place has two names there
        assert back == hook_name


def test_what_is_multiplied_before_it_is_added_has_no_module() -> None:
    for kind, module in (("attn_out", "self_attn"), ("mlp_out", "mlp")):
        with pytest.raises(InputError, match=f"may multiply them first.*name model.layers.1.{module} to read"):
            to_module_path(f"blocks.1.hook_{kind}", model("granite"))


def test_a_norm_behind_attention_is_not_between_it_and_the_mlp() -> None:
    with pytest.raises(InputError, match="post_attention_layernorm of Olmo2ForCausalLM does not read the residual"):
        to_module_path("blocks.1.hook_resid_mid", model("olmo2"))
    with pytest.raises(InputError, match="mlp of Olmo2ForCausalLM does not read what .*post_attention_layernorm"):
        to_module_path("blocks.1.ln2.hook_normalized", model("olmo2"))


def test_a_path_of_the_model_itself_is_kept() -> None:
    for path in ("transformer.h.1", "transformer.h.1.mlp:in", "lm_head"):
        assert to_module_path(path, model("gpt2")) == path
    assert to_module_path("transformer.h.1:out", model("gpt2")) == "transformer.h.1"
    base = model("gpt2").transformer
    assert to_module_path("blocks.1.hook_resid_post", base) == "h.1" and to_module_path("hook_embed", base) == "wte"


def test_places_without_a_name_have_none() -> None:
    assert to_hook_name("transformer.h.1.mlp.c_fc", model("gpt2")) is None
    assert to_hook_name("lm_head", model("gpt2")) is None
    assert (
        to_hook_name("model.layers.1.mlp", model("gemma2")) is None
    )  # before the norm; TransformerLens reads after it
    assert to_hook_name("0", nn.Sequential(nn.Linear(2, 2))) is None


def test_a_norm_with_weights_has_no_normalised_output_of_its_own() -> None:
    with pytest.raises(InputError, match="before it is multiplied by.*name model.layers.1.mlp:in"):
        to_module_path("blocks.1.ln2.hook_normalized", model("llama"))
    plain = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**LLAMA_LIKE))
    assert to_module_path("blocks.1.ln2.hook_normalized", plain) == "model.layers.1.mlp:in"
    assert to_module_path("blocks.1.ln1.hook_normalized", plain) == "model.layers.1.self_attn:in"


@pytest.mark.parametrize("hook_name, message", [
    ("blocks.2.hook_resid_post", "has 2 blocks, 0 to 1"),
    ("blocks.1.hook_resid_pst", "is not known. Did you mean .*Known: hook_embed and blocks.N."),
    ("blocks.x.hook_resid_post", "is not known"),
    ("blocks.1.attn.hook_q", "is not known"),
    ("", "is not known"),
])  # fmt: skip
def test_unknown_names_are_input_errors(hook_name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_module_path(hook_name, model("gpt2"))


def test_a_model_of_another_shape_is_an_input_error() -> None:
    with pytest.raises(InputError, match="Sequential has no list of blocks"):
        to_module_path("blocks.0.hook_resid_post", nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("path, family, expected", [
    ("layers.1", "llama", "model.layers.1"),
    ("layers.1.mlp", "gpt_neox", "gpt_neox.layers.1.mlp"),
    ("h.1", "gpt2", "transformer.h.1"),
    ("h.1.mlp:in", "gpt2", "transformer.h.1.mlp:in"),
    ("transformer.h.1", "gpt2", "transformer.h.1"),
])  # fmt: skip
def test_paths_within_the_base_model(path: str, family: str, expected: str) -> None:
    assert from_base_model_path(path, model(family)) == expected
    if path != expected:
        assert from_base_model_path(path, model(family).base_model) == path


def test_an_unknown_path_within_the_base_model_has_near_names() -> None:
    with pytest.raises(InputError, match="nor its base model has a module 'layers.9'"):
        from_base_model_path("layers.9", model("llama"))


@pytest.mark.parametrize("option, hook, refused", [
    ("center_writing_weights", "blocks.1.hook_resid_post", True),
    ("center_writing_weights", "blocks.1.hook_mlp_out", True),
    ("center_writing_weights", "hook_embed", True),
    ("center_writing_weights", "blocks.1.attn.hook_z", False),
    ("center_writing_weights", "blocks.1.ln2.hook_normalized", False),
    ("center_writing_weights", "transformer.h.1", True),
    ("center_writing_weights", None, True),
    ("fold_ln", "blocks.1.hook_resid_pre", False),
    ("fold_ln", "blocks.1.ln2.hook_normalized", True),
    ("fold_value_biases", "blocks.1.attn.hook_z", True),
    ("fold_value_biases", "blocks.1.hook_attn_out", False),
    ("refactor_factored_attn_matrices", "blocks.1.attn.hook_z", True),
    ("center_unembed", "blocks.1.hook_resid_post", False),
    ("torch_dtype", "blocks.1.hook_resid_post", False),
])  # fmt: skip
def test_activations_the_model_does_not_have_are_refused(option: str, hook: str | None, refused: bool) -> None:
    metadata = {"hook_name": hook, "model_from_pretrained_kwargs": {option: True}}
    if refused:
        with pytest.raises(InputError, match=f"loaded with {option}=True"):
            check_processing(metadata)
    else:
        check_processing(metadata)
    check_processing({"hook_name": hook, "model_from_pretrained_kwargs": {option: False}})


def test_metadata_that_says_nothing_passes_and_single_heads_do_not() -> None:
    check_processing({})
    check_processing({"model_from_pretrained_kwargs": None, "hook_head_index": None})
    with pytest.raises(InputError, match="reads head 3 of blocks.1.attn.hook_z only"):
        check_processing({"hook_head_index": 3, "hook_name": "blocks.1.attn.hook_z"})
    assert wants_bos({"prepend_bos": True}) is True and wants_bos({"prepend_bos": False}) is False
    assert wants_bos({}) is None and wants_bos({"prepend_bos": "yes"}) is None
