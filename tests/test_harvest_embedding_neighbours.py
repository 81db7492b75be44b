"""Near words of an input embedding against a plain computation, and in a store."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from support.store_fixtures import add_dictionary

from autointerp.config import ModelConfig
from autointerp.corpus.token_text import TokenText
from autointerp.errors import AutointerpError
from autointerp.harvest.embedding_neighbours import LEADING, NEIGHBOURS, embedding_neighbours
from autointerp.model.load import LoadedModel, load_model
from autointerp.store import Store


@pytest.fixture(scope="module")
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(ModelConfig(name=str(tiny_gpt2), device="cpu", dtype="float32"))


def test_planted_neighbours_are_found(loaded: LoadedModel) -> None:
    """Two words are given nearly one vector; their tokens with and without a space are one word each."""
    text = TokenText(loaded.tokenizer)
    rows = torch.randn(len(text.token_bytes), 64, generator=torch.Generator().manual_seed(0))
    names = {i: text.tokens([i])[0] for i in range(len(rows)) if text.token_bytes[i] and i not in text.special_ids}
    words = {name.strip().lower() for name in names.values() if any(c.isalnum() for c in name)}
    whole = sorted({name[1:] for name in names.values() if name[:1] == " " and name[1:].isalpha() and name.islower()})
    one, other = whole[:2]
    ids = [i for i, name in names.items() if name.strip().lower() in (one, other)]
    rows[ids] = rows[ids[0]] + 0.05 * torch.randn(len(ids), 64, generator=torch.Generator().manual_seed(1))
    near = embedding_neighbours(rows, text)
    assert set(near) == words
    assert near[one][0][0] == other and near[one][0][1] > 0.9
    assert all(len(found) <= NEIGHBOURS and word not in dict(found) for word, found in near.items())
    assert all(a >= b for found in near.values() for (_, a), (_, b) in zip(found, found[1:], strict=False))


def test_rows_that_are_not_finite_are_near_to_nothing(loaded: LoadedModel) -> None:
    text = TokenText(loaded.tokenizer)
    rows = torch.randn(len(text.token_bytes), 16, generator=torch.Generator().manual_seed(0))
    rows[: len(rows) // 2] = float("nan")
    found = embedding_neighbours(rows, text)
    assert np.isfinite([cosine for pairs in found.values() for _, cosine in pairs]).all()
    assert embedding_neighbours(cast(torch.Tensor, rows[:LEADING]), text) is not None


def test_they_come_back_from_a_store(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.duckdb", create=True) as store:
        dictionary_id = add_dictionary(store)
        assert not store.has_near_words(dictionary_id) and store.near_words(dictionary_id) == {}
        near = {"rise": [("rose", 0.5), ("up", 0.25)], "alone": []}
        store.replace_near_words(dictionary_id, {"old": []})
        store.replace_near_words(dictionary_id, near)
        assert store.near_words(dictionary_id) == near and store.has_near_words(dictionary_id)
        with pytest.raises(AutointerpError, match="cosine"):
            store.replace_near_words(dictionary_id, {"a": [("b", 1.5)]})
