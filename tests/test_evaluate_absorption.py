"""Absorption on planted dictionaries: a letter's direction, a feature for it, and words whose own feature took it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from support.recorded_steps import RecordedSteps

from autointerp.config import ModelConfig
from autointerp.evaluate.absorption import (
    FIELDS,
    Letter,
    absorbed,
    absorption,
    absorption_rows,
    letter_scores,
    vocabulary_words,
)
from autointerp.model.hooks import Hookpoint
from autointerp.model.load import load_model
from autointerp.sae.sae import Sae

LETTERS, WORDS_OF_EACH = 4, 50


def planted(absorbing_share: float) -> tuple[NDArray[np.float32], csr_matrix, NDArray[np.float32], list[str]]:
    """Activations [n, d], codes [n, 4 + n], decoder and letters. Feature l < 4 is letter l's; feature 4 + w is word
    w's. On the absorbing share of each letter's words the letter's feature is silent and the word's writes both."""
    n = LETTERS * WORDS_OF_EACH
    d = LETTERS + n
    vectors, codes = np.zeros((n, d), np.float32), np.zeros((n, LETTERS + n), np.float32)
    decoder = np.eye(d, dtype=np.float32)
    for word in range(n):
        letter, number = divmod(word, WORDS_OF_EACH)
        vectors[word, letter], vectors[word, LETTERS + word] = 2.0, 1.0
        if number < absorbing_share * WORDS_OF_EACH:
            decoder[LETTERS + word, letter] = 2.0
            decoder[LETTERS + word] /= np.sqrt(5.0)
            codes[word, LETTERS + word] = np.sqrt(5.0)
        else:
            codes[word, letter], codes[word, LETTERS + word] = 2.0, 1.0
    assert np.allclose(codes @ decoder, vectors, atol=1e-5)
    return vectors, csr_matrix(codes), decoder, ["abcd"[w // WORDS_OF_EACH] for w in range(n)]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_the_planted_rate_is_found(share: float) -> None:
    vectors, codes, decoder, letters = planted(share)
    scores = letter_scores(vectors, codes, decoder, np.zeros(decoder.shape[1], np.float32), letters)
    assert [s.letter for s in scores] == list("abcd") and all(s.usable and s.probe_f1 > 0.99 for s in scores)
    assert [s.main for s in scores] == [(0,), (1,), (2,), (3,)]
    # 20 held-out words of 50 a letter, which of them are absorbing is drawn: the mean over letters is near the share.
    full = float(np.mean([s.full for s in scores]))
    assert full == pytest.approx(share, abs=0.12)
    assert full == pytest.approx(np.mean([s.main_silent for s in scores]))
    assert full == pytest.approx(np.mean([s.fraction for s in scores]), abs=0.02)


def test_one_word() -> None:
    cosine = np.array([1.0, 0.9, 0.05, 0.0])
    code = csr_matrix(np.array([[0.0, 2.0, 0.0, 5.0]]))
    assert absorbed(code, cosine, 2.0, [0]) == (True, 1.0, True)
    # The letter's feature is weak but there: no full absorption, the rest is shared out.
    partly = csr_matrix(np.array([[0.5, 1.0, 0.0, 5.0]]))
    full, fraction, silent = absorbed(partly, cosine, 1.5, [0])
    assert not full and not silent and fraction == pytest.approx(0.9 / 1.4)
    # main contributes .8 and the absorber .5 of the projection: it can only take the .2 that main leaves
    capped = csr_matrix(np.array([[0.8, 0.5 / 0.9, 0.0, 0.0]]))
    assert absorbed(capped, cosine, 1.0, [0])[1] == pytest.approx(0.2)
    # main leaves nothing
    assert absorbed(csr_matrix(np.array([[1.0, 0.5 / 0.9, 0.0, 0.0]])), cosine, 1.0, [0])[1] == 0.0
    # Silent, but what is active has nothing to do with the letter: the letter is missed and not absorbed.
    missed = csr_matrix(np.array([[0.0, 0.0, 1.0, 5.0]]))
    assert absorbed(missed, cosine, 2.0, [0]) == (False, 0.0, True)
    assert absorbed(csr_matrix((1, 4)), cosine, 2.0, [0]) == (False, 0.0, True)


def test_letters_without_a_good_probe_are_skipped_and_counted() -> None:
    _, codes, decoder, letters = planted(0.0)
    noise = np.random.default_rng(0).normal(size=(len(letters), 8)).astype(np.float32)
    scores = letter_scores(noise, codes, decoder[:, :8], np.zeros(8, np.float32), letters)
    assert len(scores) == 4 and not any(s.usable for s in scores)
    rows = {row["metric"]: row for row in absorption_rows(scores, len(letters), 0.6)}
    assert rows["absorption_letters"]["value"] == 0 and "4 of 4 letters skipped" in rows["absorption_letters"]["note"]
    assert rows["absorption_full"]["value"] is None and "no letter to judge" in rows["absorption_full"]["note"]
    probe = rows["absorption_probe_f1"]["value"]
    assert probe is not None and probe < 0.6


def test_rows_are_means_over_the_letters_that_can_be_judged() -> None:
    judged = [Letter(c, 0.9, True, 0.8, (1,), 10, rate, rate / 2, rate) for c, rate in (("a", 0.2), ("b", 0.4))]
    rows = {row["metric"]: row for row in absorption_rows([*judged, Letter("c", 0.3, False)], 500, 0.6, n_boot=200)}
    assert rows["absorption_full"]["value"] == pytest.approx(0.3) and rows["absorption_full"]["n"] == 2
    assert rows["absorption_fraction"]["value"] == pytest.approx(0.15)
    assert rows["absorption_probe_f1"]["value"] == pytest.approx(0.7)
    assert rows["absorption_letters"]["n"] == 3


def test_words_are_a_space_and_three_ascii_letters_once_for_each_case() -> None:
    pieces = [" The", " the", "the", " th", " thé", None, " cat1", " oranges", "  two"]
    assert vocabulary_words(pieces) == [(0, " The"), (7, " oranges")]
    # A tokenizer that ends words instead of beginning them.
    assert vocabulary_words(["the ", "The ", "th", "oranges ", "a "]) == [(0, "the "), (3, "oranges ")]


def test_a_model_with_a_small_vocabulary_says_why_there_is_no_rate(tiny_gpt2: Path) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_gpt2), device="cpu"))
    decoder = torch.nn.functional.normalize(torch.randn(64, 48, generator=torch.Generator().manual_seed(0)), dim=1)
    sae = Sae(decoder.T.contiguous(), torch.zeros(64), decoder, torch.zeros(48), k=4)
    few = absorption(loaded, sae, Hookpoint("transformer.h.1"), min_words=10_000)
    assert [row["metric"] for row in few] == ["absorption_letters", *FIELDS]
    assert {row["value"] for row in few} == {None} and "at least 20000 needed" in few[0]["note"]
    # With next to no words a letter, the whole of it runs, on an untrained model that knows no letters.
    steps = RecordedSteps()
    found = absorption(loaded, sae, Hookpoint("transformer.h.1"), min_words=5, n_boot=50, counting=steps)
    assert {unit for _, unit in steps.totals.values()} == {"words", "letters"}
    rows = {r["metric"]: r for r in found}
    assert rows["absorption_letters"]["value"] is not None and rows["absorption_letters"]["n"]


def test_a_transcoder_has_no_rate(tiny_gpt2: Path) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_gpt2), device="cpu"))
    zeros = torch.zeros(8)
    transcoder = Sae(torch.ones(48, 8), zeros, torch.eye(8), zeros, k=2, b_pre=torch.zeros(48))
    rows = absorption(loaded, transcoder, Hookpoint("transformer.h.1.mlp:in"))
    assert {row["value"] for row in rows} == {None} and "does not reconstruct what it reads" in rows[0]["note"]
