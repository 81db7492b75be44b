"""Edits of texts and the overlap of their features, on arrays and with a real model."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from support.recorded_steps import RecordedSteps

from autointerp.config import CorpusConfig, ModelConfig
from autointerp.errors import InputError
from autointerp.evaluate.pooled import pooled
from autointerp.evaluate.robustness import EDITS, correlations, robustness, typo, weighted_jaccard
from autointerp.model.hooks import Hookpoint, activations_at
from autointerp.model.load import LoadedModel, load_model
from autointerp.sae.sae import Sae

POINT = Hookpoint("transformer.h.1")
WORDS = (
    *("harbour", "lay", "quiet", "under", "low", "grey", "sky", "boats", "turned", "slowly"),
    *("ropes", "tide", "came", "woman", "sold", "oranges", "steps"),
)


@pytest.fixture(scope="module")
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(ModelConfig(name=str(tiny_gpt2), device="cpu"))


@pytest.fixture(scope="module")
def sae(loaded: LoadedModel) -> Sae:
    g = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(96, 48, generator=g), dim=1)
    return Sae(decoder.T.contiguous(), torch.zeros(96), decoder, torch.zeros(48), k=6)


def texts(n: int = 14) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=9)).capitalize() + "." for _ in range(n)]


def test_a_typo_swaps_two_inner_letters_and_keeps_the_rest() -> None:
    text = "The harbour lay quiet, 1969 aaaa to be."
    edited = {typo(text, random.Random(seed)) for seed in range(30)}
    assert len(edited) > 3
    for found in edited:
        different = [i for i, (a, b) in enumerate(zip(text, found)) if a != b]
        assert len(found) == len(text) and len(different) == 2 and different[1] == different[0] + 1
        assert sorted(found) == sorted(text)
    assert typo("to be or 1234 aaaa", random.Random(0)) == "to be or 1234 aaaa"


def test_edits_of_spaces_and_case() -> None:
    rng = random.Random(0)
    assert EDITS["spaces_doubled"]("a b", rng) == "a  b"
    assert EDITS["spaces_stripped"](" a\n  b ", rng) == "a b"
    assert EDITS["upper"]("aB", rng) == "AB" and EDITS["lower"]("aB", rng) == "ab"


def test_overlap_of_known_rows() -> None:
    a = csr_matrix(np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    b = csr_matrix(np.array([[1.0, 0.0, 4.0], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))
    jaccard, correlation = weighted_jaccard(a, b), correlations(a, b)
    assert jaccard[0] == pytest.approx(1 / 7) and np.isnan(jaccard[1]) and jaccard[2] == pytest.approx(0.5)
    assert correlation[0] == pytest.approx(np.corrcoef([1, 2, 0], [1, 0, 4])[0, 1])
    assert np.isnan(correlation[1]) and correlation[2] == pytest.approx(1.0)


def test_pooling_is_the_maximum_and_mean_over_the_text(loaded: LoadedModel, sae: Sae) -> None:
    some = ["The harbour lay quiet", "", "oranges"]
    read = pooled(loaded, sae, POINT, some, CorpusConfig(context_length=64), batch_tokens=8)
    for i in (0, 2):
        ids = [0, *loaded.tokenizer(some[i], add_special_tokens=False)["input_ids"]]
        x = activations_at(loaded, POINT, torch.tensor([ids]))[0, 1:]
        dense = sae.encode(x)
        assert np.allclose(read.maximum[[i]].toarray()[0], dense.amax(0), atol=1e-4)
        assert np.allclose(read.mean[[i]].toarray()[0], dense.mean(0), atol=1e-4)
        assert np.allclose(read.raw_mean[i], x.mean(0), atol=1e-4)
        assert read.n_tokens[i] == len(ids) - 1
    assert read.n_tokens[1] == 0 and read.maximum[[1]].nnz == 0


def test_every_edit_has_its_numbers_above_their_floor(loaded: LoadedModel, sae: Sae) -> None:
    steps = RecordedSteps()
    rows = {r["metric"]: r for r in robustness(loaded, sae, POINT, texts(), n_boot=100, counting=steps)}
    assert steps.totals == {"reading the texts for robustness": (14 * (1 + len(EDITS)), "texts")}
    assert len(rows) == 4 * len(EDITS)
    for edit in ("typo", "lower", "spaces_doubled"):
        for measure in ("jaccard", "correlation"):
            real, floor = rows[f"robustness_{edit}_{measure}"], rows[f"robustness_{edit}_{measure}_floor"]
            assert real["value"] is not None and floor["value"] is not None and real["value"] > floor["value"]
            assert real["ci_low"] is not None and real["ci_low"] <= real["value"] <= 1
            assert real["n"] == 14 and real["n_tokens"]
    unchanged = rows["robustness_spaces_stripped_jaccard"]
    assert unchanged["value"] is None and "14 texts unchanged" in unchanged["note"]
    again = {r["metric"]: r for r in robustness(loaded, sae, POINT, texts(), n_boot=100)}
    assert again == rows


def test_texts_that_do_not_fit_are_left_out(loaded: LoadedModel, sae: Sae) -> None:
    rows = robustness(loaded, sae, POINT, texts(), corpus=CorpusConfig(context_length=8), n_boot=10)
    assert {r["value"] for r in rows} == {None} and "14 too long" in rows[0]["note"]


def test_too_few_texts_are_refused(loaded: LoadedModel, sae: Sae) -> None:
    with pytest.raises(InputError, match="at least 10 texts"):
        robustness(loaded, sae, POINT, [*texts(9), "", " " * 500])
