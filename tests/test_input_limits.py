"""What a model can read, against what its forward pass takes: one more token than n_positions fails, or was never meant
to work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.small_models import VOCAB, byte_level_tokenizer, save_model

from autointerp.config import CorpusConfig, ModelConfig
from autointerp.errors import InputError, MismatchError
from autointerp.evaluate.pooled import pooled as pool_texts
from autointerp.evaluate.probing import word_vectors
from autointerp.measure.language import Likelihoods, surprisal
from autointerp.measure.texts import Maxima, feature_maxima
from autointerp.model.hooks import Hookpoint
from autointerp.model.input_limits import check_context_length, n_positions, unreadable_tokens
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.token_batches import Halving
from autointerp.sae.sae import Sae
from autointerp.tasks import NotMeasured, Surprisal

P = 12
NARROW: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
GPT: dict[str, Any] = {"n_positions": P, "n_embd": 16, "n_layer": 1, "n_head": 2}
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


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model without an embedding for two of its tokenizer's tokens."""
    config = transformers.GPT2Config(vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, **GPT)
    folder = save_model(tmp_path_factory.mktemp("padded"), config)
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["[PAD]", "<image>"])
    tokenizer.save_pretrained(folder)
    return load_model(ModelConfig(name=str(folder), device="cpu", dtype="float32"))


def test_texts_that_spell_a_token_without_embedding_are_named(padded: LoadedModel) -> None:
    """Texts of a user are refused, texts of an LLM are not measured, and other texts are."""
    texts, said = ["the boats", "a [PAD] b"], r"spells '\[PAD\]', which the model has no embedding for"
    corpus, point = CorpusConfig(context_length=8), Hookpoint("transformer.h.0")
    sae = Sae(torch.eye(16), torch.zeros(16), torch.eye(16), torch.zeros(16), k=2)
    with pytest.raises(InputError, match=rf"text 1 \('a \[PAD\] b'...\) {said}"):
        pool_texts(padded, sae, point, texts, corpus)
    with pytest.raises(InputError, match=f"sentence 1 {said}"):
        word_vectors(padded, sae, point, [text.split() for text in texts], corpus, 64)
    fine, bad = feature_maxima(padded, sae, point, [(0, texts[:1]), (1, texts)], corpus, (), 64, Halving())
    assert isinstance(fine, Maxima) and isinstance(bad, NotMeasured) and re.search(said, bad.error)
    fine2, bad2 = surprisal(padded, [Surprisal(["the"], texts[:1], ""), Surprisal(["the"], texts, "")], 64, Halving())
    assert isinstance(fine2, Likelihoods) and isinstance(bad2, NotMeasured) and re.search(said, bad2.error)


def test_another_models_tokenizer_is_refused_and_a_few_added_tokens_are_not(
    padded: LoadedModel, tmp_path: Path
) -> None:
    assert unreadable_tokens(padded.model, padded.tokenizer) == {VOCAB: "[PAD]", VOCAB + 1: "<image>"}
    small = save_model(tmp_path / "small", transformers.GPT2Config(vocab_size=VOCAB - 10, **GPT))
    with pytest.raises(MismatchError, match=rf"goes up to id {VOCAB - 1} .* has {VOCAB - 10} rows"):
        load_model(ModelConfig(name=str(small), device="cpu"))
