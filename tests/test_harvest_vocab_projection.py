"""Promoted and suppressed tokens against a plain full computation, for LayerNorm and RMSNorm, tied and untied heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.recorded_steps import RecordedSteps

from autointerp.config import ModelConfig
from autointerp.corpus.token_text import TokenText
from autointerp.harvest import vocab_projection as module
from autointerp.harvest.vocab_projection import vocab_projection
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.logit_path import find_logit_path
from autointerp.sae.sae import Sae

N = 6


def random_sae(width: int, d_sae: int = 23) -> Sae:
    rows = torch.nn.functional.normalize(torch.randn(d_sae, width, generator=torch.Generator().manual_seed(1)), dim=1)
    return Sae(rows.T.contiguous(), torch.zeros(d_sae), rows, torch.zeros(width), k=2)


def plain_logits(loaded: LoadedModel, rows: np.ndarray, norm: torch.nn.Module) -> np.ndarray:
    """Row by row in numpy, from the formulas of the two norms."""
    weight = norm.weight.double().numpy()
    head = loaded.model.get_output_embeddings().weight.double().numpy()
    out = []
    for row in rows.astype(np.float64):
        if "RMS" in type(norm).__name__:
            normed = row / np.sqrt((row**2).mean() + norm.variance_epsilon) * weight
        else:
            normed = (row - row.mean()) / np.sqrt(row.var() + norm.eps) * weight
        out.append(head @ normed)
    return np.array(out)


@pytest.mark.parametrize(
    ("name", "path", "block_path"),
    [
        ("tiny_gpt2", "transformer.ln_f", "transformer.h.1"),
        ("tiny_llama", "model.norm", "model.layers.0.mlp"),
        ("tiny_neox", "gpt_neox.final_layer_norm", "gpt_neox.layers.1:in"),
    ],
)
@pytest.mark.parametrize("block", [1 << 25, 4000])
def test_against_a_full_computation(
    name: str, path: str, block_path: str, block: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    folder: Path = request.getfixturevalue(name)
    loaded = load_model(ModelConfig(name=str(folder), device="cpu", dtype="float32"))
    norm = loaded.model.get_submodule(path)
    with torch.no_grad():  # random models have trivial norms
        norm.weight.copy_(torch.linspace(0.2, 2.0, len(norm.weight)))
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(torch.linspace(-1, 1, len(norm.bias)))
    text = TokenText(loaded.tokenizer)
    sae = random_sae(loaded.model.config.hidden_size)
    way = find_logit_path(loaded, Hookpoint.parse(block_path))
    assert way.tail == (norm,)
    found = vocab_projection(way, sae, text, N)
    kept = np.array([i for i, raw in enumerate(text.token_bytes) if raw and i not in text.special_ids])
    logits = plain_logits(loaded, sae.W_dec.numpy(), norm)[:, kept]
    logits -= logits.mean(1, keepdims=True)
    rows = list(zip(found.feature, found.sign, found.rank, found.token_id, found.token, found.logit, strict=True))
    assert len(rows) == sae.d_sae * 2 * N
    for feature in range(sae.d_sae):
        for sign in (1, -1):
            best = np.argsort(-sign * logits[feature], kind="stable")[:N]
            own = [r for r in rows if r[0] == feature and r[1] == sign]
            assert [r[2] for r in own] == list(range(N))
            assert [r[3] for r in own] == kept[best].tolist()
            assert [r[5] for r in own] == pytest.approx(logits[feature, best], abs=1e-4)
            assert [r[4] for r in own] == [text.tokens([i])[0] for i in kept[best]]


def test_special_and_unused_ids_never_appear(tiny_gpt2: Path) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_gpt2), device="cpu", dtype="float32"))
    text = TokenText(loaded.tokenizer)
    text.token_bytes[5] = b""  # as for an id that no token has
    steps = RecordedSteps()
    way = find_logit_path(loaded, Hookpoint("transformer.h.1"))
    found = vocab_projection(way, random_sae(48), text, 10_000, steps)
    assert list(steps.totals) == ["projecting onto the vocabulary"]
    assert {0, 5}.isdisjoint(found.token_id.tolist())
    assert len(found.token) == 23 * 2 * len(set(found.token_id.tolist()))
