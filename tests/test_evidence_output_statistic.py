"""Which features single out tokens: a planted one, and random ones, of which 1 in 100 should by chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis, skew

from autointerp.config import ModelConfig
from autointerp.corpus.token_text import TokenText
from autointerp.evidence import logit_tails as module
from autointerp.evidence.logit_tails import output_statistics
from autointerp.harvest.vocab_projection import Unembedding
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.logit_path import LogitPath, find_logit_path
from autointerp.sae.sae import Sae

PLANTED = 3


def model(folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name=str(folder), device="cpu", dtype="float32"))


def way(loaded: LoadedModel) -> LogitPath:
    first = "transformer.h.0" if "GPT2" in type(loaded.model).__name__ else "model.layers.0"
    return find_logit_path(loaded, Hookpoint(first))


def sae_of(rows: torch.Tensor) -> Sae:
    return Sae(rows.T.contiguous(), torch.zeros(len(rows)), rows, torch.zeros(rows.shape[1]), k=1)


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
@pytest.mark.parametrize("block", [1 << 25, 5000])
def test_planted_and_random_features(
    name: str, block: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    loaded = model(request.getfixturevalue(name))
    text = TokenText(loaded.tokenizer)
    rows = torch.randn(2000, loaded.model.config.hidden_size, generator=torch.Generator().manual_seed(5))
    head = loaded.model.get_output_embeddings().weight.detach()
    rows[:PLANTED] = head[300 : 300 + PLANTED]
    rows[PLANTED] = -head[400]
    sae = sae_of(torch.nn.functional.normalize(rows, dim=1))
    alive = np.ones(2000, dtype=bool)
    alive[10] = False
    columns = output_statistics(way(loaded), sae, text, alive, seed=0)
    assert columns["feature"] == np.flatnonzero(alive).tolist()
    is_output = np.array(columns["is_output"])
    assert is_output[: PLANTED + 1].all()
    assert all(s > 0 for s in columns["skew"][:PLANTED]) and columns["skew"][PLANTED] < 0
    assert 0.002 <= is_output[PLANTED + 1 :].mean() <= 0.025
    assert len(set(columns["threshold"])) == 1
    # scipy's own statistics of the first few
    logits = Unembedding(way(loaded), text).logits(sae.W_dec[:6]).double().numpy()
    assert columns["kurtosis"][:6] == pytest.approx(kurtosis(logits, axis=1), rel=1e-3, abs=1e-4)
    assert columns["skew"][:6] == pytest.approx(skew(logits, axis=1), rel=1e-3, abs=1e-4)


def test_the_same_seed_gives_the_same_threshold(tiny_llama: Path) -> None:
    loaded = model(tiny_llama)
    text, sae, alive = TokenText(loaded.tokenizer), sae_of(torch.eye(64)), np.ones(64, dtype=bool)
    first, again, other = (output_statistics(way(loaded), sae, text, alive, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["threshold"] != other["threshold"]


def test_nothing_to_say(tiny_llama: Path) -> None:
    loaded = model(tiny_llama)
    text = TokenText(loaded.tokenizer)
    none = output_statistics(way(loaded), sae_of(torch.eye(64)), text, np.zeros(64, dtype=bool), 0)
    assert not any(none.values())
    silent = sae_of(torch.zeros(1, 64))  # a row of zeros moves no logit
    found = output_statistics(way(loaded), silent, text, np.ones(1, dtype=bool), 0)
    assert found["kurtosis"] == [0.0] and found["is_output"] == [False]
