"""What a model can read, against what its forward pass takes: one more token than n_positions fails, or was never meant
to work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.small_models import VOCAB, byte_level_tokenizer, save_model

from autointerp.config import ModelConfig
from autointerp.errors import InputError, MismatchError
from autointerp.model.input_limits import check_context_length, n_positions, unreadable_tokens
from autointerp.model.load import load_model

P = 12
NARROW = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
GPT = {"n_positions": P, "n_embd": 16, "n_layer": 1, "n_head": 2}
# Family: configuration, most tokens. RoBERTa's first two positions are padding's.
TABLES: dict[str, tuple[dict[str, Any], int]] = {
    "GPT2": (GPT, P),
    "OpenAIGPT": (GPT, P),
    "GPTJ": (GPT | {"rotary_dim": 4}, P),
    "CTRL": (GPT | {"dff": 16}, P),
    "OPT": ({"max_position_embeddings": P, "word_embed_proj_dim": 16, "ffn_dim": 16, **NARROW}, P),
    "Roberta": ({"max_position_embeddings": P, "is_decoder": True, **NARROW}, P - 2),
    "Bert": ({"max_position_embeddings": P, "is_decoder": True, **NARROW}, P),
    "Mpt": ({"max_seq_len": P, "d_model": 16, "n_layers": 1, "n_heads": 2}, P),
}
COMPUTED: dict[str, tuple[dict[str, Any], int | None]] = {
    "Llama": ({"max_position_embeddings": P, **NARROW}, P),
    "Bloom": ({"hidden_size": 16, "n_layer": 1, "n_head": 2}, None),
    "Mamba": ({"hidden_size": 16, "num_hidden_layers": 1}, None),
    "XLNet": ({"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}, None),
}


def made(family: str, settings: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{family}Config")(vocab_size=40, **settings)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", TABLES)
def test_a_table_of_positions_ends_where_we_say(family: str) -> None:
    settings, limit = TABLES[family]
    model = made(family, settings)
    assert n_positions(model) == limit
    with torch.no_grad():
        model(torch.full((1, limit), 5), use_cache=False)
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, limit + 1), 5), use_cache=False)


@pytest.mark.parametrize("family", COMPUTED)
def test_computed_positions_end_where_the_configuration_says(family: str) -> None:
    settings, limit = COMPUTED[family]
    model = made(family, settings)
    assert n_positions(model) == limit
    if limit is None:
        check_context_length(model, "m", 10**6)
        return
    check_context_length(model, "m", P)
    with pytest.raises(InputError, match=f"model m reads at most {P} tokens at once; set corpus.context_length to {P}"):
        check_context_length(model, "m", P + 1)


def test_another_models_tokenizer_is_refused_and_a_few_added_tokens_are_not(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, **GPT)
    folder = save_model(tmp_path / "fits", config)
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["[PAD]", "<image>"])
    tokenizer.save_pretrained(folder)
    loaded = load_model(ModelConfig(name=str(folder), device="cpu"))
    assert unreadable_tokens(loaded.model, loaded.tokenizer) == {VOCAB: "[PAD]", VOCAB + 1: "<image>"}
    config.vocab_size = VOCAB - 10
    small = save_model(tmp_path / "small", config)
    with pytest.raises(MismatchError, match=rf"goes up to id {VOCAB - 1} .* has {VOCAB - 10} rows"):
        load_model(ModelConfig(name=str(small), device="cpu"))
