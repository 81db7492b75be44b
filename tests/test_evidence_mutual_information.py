"""Mutual information of words and directions: against dense formulas, and on a planted toy where the published order
fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_models import TRAINING_TEXT
from support.tokenizer_kinds import KINDS
from transformers import PreTrainedTokenizerBase

from autointerp.config import EvidenceConfig, ModelConfig
from autointerp.corpus.token_text import TokenText
from autointerp.corpus.windows import token_ids
from autointerp.errors import NoProjection
from autointerp.evidence import word_information as module
from autointerp.evidence.word_information import mutual_information, vocabulary, word_embeddings
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.logit_path import LogitPath, find_logit_path
from autointerp.records import Split, Window
from autointerp.sae.sae import Sae

WORDS = [
    "harbour", "lay", "quiet", "under", "low", "grey", "boats", "turned", "slowly", "their", "ropes", "tide", "came",
    "old", "woman", "sold", "oranges",
]  # fmt: skip


def model(folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name=str(folder), device="cpu", dtype="float32"))


def way(loaded: LoadedModel, hookpoint: str = "") -> LogitPath:
    first = "transformer.h.0" if "GPT2" in type(loaded.model).__name__ else "model.layers.0"
    return find_logit_path(loaded, Hookpoint.parse(hookpoint or first))


def sae_of(W_enc: torch.Tensor) -> Sae:
    rows = torch.nn.functional.normalize(W_enc.T, dim=1)
    return Sae(W_enc, torch.zeros(W_enc.shape[1]), rows, torch.zeros(W_enc.shape[0]), k=1)


def dense(L: np.ndarray, mode: str) -> np.ndarray:
    """[features, words] of the scores, from the whole matrix in double precision."""
    if mode == "pmi":
        L = (L - L.mean(1, keepdims=True)) / L.std(1, keepdims=True)
    p_word = np.exp(L) / np.exp(L).sum(1, keepdims=True)
    p_feature = np.exp(L) / np.exp(L).sum(0)
    prior = 1 / len(L) if mode == "pmi" else 1.0
    return p_word * np.log(p_feature / prior)


@pytest.mark.parametrize("mode", ["pmi", "paper"])
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_against_the_whole_matrix(
    name: str, mode: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model(request.getfixturevalue(name))
    norm = next(m for n, m in loaded.model.named_modules() if n in ("transformer.ln_f", "model.norm"))
    head = loaded.model.get_output_embeddings().weight
    width = head.shape[1]
    with torch.no_grad():  # random models have trivial norms and tiny weights
        norm.weight.copy_(torch.linspace(0.2, 2.0, width))
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(torch.linspace(-1, 1, width))
        head *= 10
    W_enc = torch.randn(width, 29, generator=torch.Generator().manual_seed(1))
    text, alive = TokenText(loaded.tokenizer), np.arange(29) % 7 != 3
    config = EvidenceConfig(mi_mode=mode, words=6)  # type: ignore[arg-type]

    E = np.array([head.double().numpy()[token_ids([" " + word], loaded.tokenizer)[0]].mean(0) for word in WORDS])
    x = W_enc.T.double().numpy()[alive]
    weight = norm.weight.double().numpy()
    if name == "tiny_llama":
        normed = x / np.sqrt((x**2).mean(1, keepdims=True) + norm.variance_epsilon) * weight
    else:
        normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + norm.eps) * weight
        normed += norm.bias.double().numpy() if mode == "paper" else 0.0
    wanted = dense(normed @ E.T, mode)

    results = []
    for block in (1 << 24, 3 * len(WORDS)):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
        results.append(mutual_information(loaded, way(loaded), sae_of(W_enc), text, WORDS, config, alive))
    columns = results[0]
    assert columns["word"] == results[1]["word"]
    assert columns["score"] == pytest.approx(results[1]["score"], abs=1e-6)
    assert columns["feature"] == np.repeat(np.flatnonzero(alive), 6).tolist()
    assert columns["rank"] == list(range(6)) * int(alive.sum())
    assert set(columns["mode"]) == {mode}
    best = np.argsort(-wanted, axis=1)[:, :6]
    assert columns["word"] == [WORDS[i] for i in best.ravel()]
    assert columns["score"] == pytest.approx(np.take_along_axis(wanted, best, 1).ravel(), abs=1e-5)


def test_the_published_order_lists_words_that_are_not_the_concepts(tiny_llama: Path) -> None:
    """Six concepts of three words each: pointwise mutual information finds them, the published expression does not."""
    loaded = model(tiny_llama)
    text = TokenText(loaded.tokenizer)
    single = [
        piece[1:]
        for piece in text.pieces
        if piece and piece[0] == " " and len(piece) > 2 and piece[1:].isascii() and piece[1:].isalpha()
    ]
    words = sorted(set(single))[:40]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        shape = loaded.model.lm_head.weight.shape
        loaded.model.lm_head.weight.copy_(0.05 * torch.randn(*shape, generator=generator))  # softmaxes near flat
    kept, E = word_embeddings(loaded, text, words)
    assert kept == words
    own = {concept: set(words[3 * concept : 3 * concept + 3]) for concept in range(6)}
    W_enc = torch.stack([E[3 * c : 3 * c + 3].sum(0) for c in range(6)], 1)
    found = {}
    for mode in ("pmi", "paper"):
        config = EvidenceConfig(mi_mode=mode, words=3)  # type: ignore[arg-type]
        columns = mutual_information(loaded, way(loaded), sae_of(W_enc), text, words, config, np.ones(6, dtype=bool))
        found[mode] = {c: {w for f, w in zip(columns["feature"], columns["word"], strict=True) if f == c} for c in own}
    assert found["pmi"] == own
    assert not any(found["paper"][c] & own[c] for c in own)


def test_an_encoder_outside_of_the_stream_says_nothing(tiny_llama: Path) -> None:
    loaded = model(tiny_llama)
    text, config = TokenText(loaded.tokenizer), EvidenceConfig()
    heads = way(loaded, "model.layers.1.self_attn.o_proj:in")
    with pytest.raises(NoProjection, match="enters the residual stream through model.layers.1.self_attn.o_proj"):
        mutual_information(loaded, heads, sae_of(torch.eye(64)), text, WORDS, config, np.ones(64, dtype=bool))
    for words, alive in (([], True), (WORDS, False)):
        columns = mutual_information(
            loaded, way(loaded), sae_of(torch.eye(64)), text, words, config, np.full(64, alive)
        )
        assert not any(columns.values())


def test_word_embeddings_whether_or_not_the_tokenizer_adds_the_space(
    tiny_llama: Path, metaspace_tokenizer: PreTrainedTokenizerBase
) -> None:
    loaded = model(tiny_llama)
    for tokenizer in (loaded.tokenizer, metaspace_tokenizer):
        text = TokenText(tokenizer)
        other = LoadedModel(loaded.model, tokenizer, loaded.device, loaded.dtype, "m", "r", "t")
        kept, E = word_embeddings(other, text, WORDS)
        assert kept == WORDS
        written = [i for i, piece in enumerate(text.pieces) if piece == " the"]
        assert written and torch.equal(
            word_embeddings(other, text, ["the"])[1][0], loaded.model.lm_head.weight[written[0]]
        )
        assert E.shape == (len(WORDS), 64)


def test_words_of_a_tokenizer_that_writes_the_space_behind_them(tiny_llama: Path, tmp_path: Path) -> None:
    loaded, tokenizer = model(tiny_llama), KINDS["</w>"].make(tmp_path)
    text = TokenText(tokenizer)
    kept, E = word_embeddings(
        LoadedModel(loaded.model, tokenizer, loaded.device, loaded.dtype, "m", "r", "t"), text, ["the", "boats"]
    )
    ids = token_ids(["the", "boats"], tokenizer)
    assert kept == ["the", "boats"] and ids[0] == [tokenizer.convert_tokens_to_ids("the</w>")]
    for row, own in zip(E, ids, strict=True):
        torch.testing.assert_close(row, loaded.model.lm_head.weight[own].mean(0))
    assert set(vocabulary([windows_of("the boats, the tide", tokenizer, "explain", 3)], text, 9)) >= {"the", "boats"}


def windows_of(text: str, tokenizer: PreTrainedTokenizerBase, split: Split, size: int) -> list[Window]:
    ids = token_ids([text], tokenizer)[0]
    return [Window("d", at, split, [0, *ids[at : at + size]], 1) for at in range(0, len(ids), size)]


def test_the_commonest_words(tokenizer: PreTrainedTokenizerBase) -> None:
    text = TokenText(tokenizer)
    said = "The tide came. the tide went, THE 2nd tide_of 東京東京 x the Zoë. end"
    windows = [windows_of(said, tokenizer, "explain", 100), windows_of("report " * 50, tokenizer, "report", 100)]
    # 'the' most often in lower case; one-letter runs and the last word, which the window may cut, are none
    found = vocabulary(windows, text, 100)
    assert found[:2] == ["the", "tide"]
    assert set(found[2:]) == {"came", "went", "nd", "of", "東京東京", "Zoë"}
    assert vocabulary(windows, text, 2) == ["the", "tide"]


def test_words_cut_by_a_windows_edge_are_no_words(tokenizer: PreTrainedTokenizerBase) -> None:
    text = TokenText(tokenizer)
    whole = Counter(w.lower() for w in module._WORD.findall(TRAINING_TEXT))
    for size in (5, 17):
        found = vocabulary([windows_of(TRAINING_TEXT, tokenizer, "explain", size)], text, 10_000)
        assert {w.lower() for w in found} <= set(whole)


def test_the_vocabulary_ends_early(tokenizer: PreTrainedTokenizerBase) -> None:
    def units() -> Iterator[list[Window]]:
        yield windows_of("some words here. " * 30, tokenizer, "explain", 20)
        raise AssertionError("a unit was read that was not needed")

    assert vocabulary(units(), TokenText(tokenizer), 10, max_tokens=50)
