"""Probes on planted features, the reader of labelled files, and both with a real model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from support.recorded_steps import RecordedSteps

from autointerp import stats
from autointerp.config import CorpusConfig, ModelConfig
from autointerp.errors import InputError
from autointerp.evaluate.labelled_texts import LabelledTexts, TaggedSentences, read_labelled
from autointerp.evaluate.probing import (
    dense_probes,
    group_counts,
    k_sparse_probing,
    sparse_probe,
    token_probing,
    weighted_auroc,
    word_vectors,
)
from autointerp.model.hooks import Hookpoint, activations_at
from autointerp.model.load import LoadedModel, load_model
from autointerp.sae.sae import Sae

POINT = Hookpoint("transformer.h.1")


@pytest.fixture(scope="module")
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(ModelConfig(name=str(tiny_gpt2), device="cpu"))


@pytest.fixture(scope="module")
def sae() -> Sae:
    decoder = torch.nn.functional.normalize(torch.randn(96, 48, generator=torch.Generator().manual_seed(0)), dim=1)
    return Sae(decoder.T.contiguous(), torch.zeros(96), decoder, torch.zeros(48), k=6)


def features(n: int = 400, m: int = 50, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return rng.random((n, m)) * (rng.random((n, m)) < 0.3) * rng.uniform(1, 100, m)


def auroc(scores: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    found = stats.auroc(scores[y == 1], scores[y == 0])
    assert found is not None
    return found


def test_a_feature_that_is_the_label_gives_an_auroc_of_one() -> None:
    x, y = features(), np.random.default_rng(1).integers(0, 2, 400)
    x[:, 17] = 0.01 * y  # small beside the others: features count in units of their own
    train, test = np.arange(250), np.arange(250, 400)
    assert auroc(sparse_probe(csr_matrix(x), y, train, test, 1), y[test]) == 1.0


def test_labels_without_a_feature_give_about_a_half() -> None:
    y = np.random.default_rng(1).integers(0, 2, 2000)
    train, test = np.arange(1000), np.arange(1000, 2000)
    for k in (1, 5):
        assert auroc(sparse_probe(csr_matrix(features(2000)), y, train, test, k), y[test]) == pytest.approx(
            0.5, abs=0.06
        )
    noise = np.random.default_rng(2).normal(size=(2000, 20)).astype(np.float32)
    for score in dense_probes(noise, y, train, test, 0).values():
        assert auroc(score, y[test]) == pytest.approx(0.5, abs=0.06)


def test_a_class_spread_over_features_needs_more_of_them() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 1200)
    x = features(1200)
    kind = rng.integers(0, 8, 1200)
    for i in range(8):
        x[:, i] = (y == 1) & (kind == i)
    train, test = np.arange(800), np.arange(800, 1200)
    by_k = [auroc(sparse_probe(csr_matrix(x), y, train, test, k), y[test]) for k in (1, 2, 12)]
    # A probe that sees k of the 8 kinds of positives, and guesses between the others and the negatives.
    assert by_k == pytest.approx([0.5 + k / 16 for k in (1, 2, 8)], abs=0.06)


def test_the_dense_probe_finds_a_direction_of_small_variance() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 600)
    x = rng.normal(size=(600, 40)).astype(np.float32) * 10
    x[:, 3] = 0.01 * (y + 0.2 * rng.normal(size=600))
    scores = dense_probes(x, y, np.arange(400), np.arange(400, 600), 0)
    assert auroc(scores["dense"], y[400:]) > 0.99


def test_weighted_aurocs_are_those_of_the_repeated_examples() -> None:
    rng = np.random.default_rng(0)
    scores, y = np.round(rng.normal(size=60), 1), rng.integers(0, 2, 60)
    counts = group_counts(np.repeat(np.arange(20), 3), 40, 0)
    found = weighted_auroc(scores, y, counts)
    assert counts.shape == (41, 60) and (counts.sum(1) == 60).all() and (counts[0] == 1).all()
    assert (counts.reshape(41, 20, 3).std(2) == 0).all()  # a group comes or goes as a whole
    for row in (0, 1, 40):
        repeated = np.repeat(np.arange(60), counts[row].astype(int))
        assert found[row] == pytest.approx(auroc(scores[repeated], y[repeated]))
    assert np.isnan(weighted_auroc(scores, np.ones(60, dtype=np.int64), counts)).all()


def test_texts_that_differ_in_a_word_are_told_apart(loaded: LoadedModel, sae: Sae) -> None:
    rng = random.Random(0)
    words = ["harbour", "lay", "quiet", "under", "grey", "sky", "boats", "turned", "slowly"]
    labels = [i % 2 for i in range(120)]
    texts = [" ".join([*rng.sample(words, 4), *(["oranges"] * 3 if label else ["captain"] * 3)]) for label in labels]
    steps = RecordedSteps()
    found = k_sparse_probing(loaded, sae, POINT, texts, labels, n_boot=100, counting=steps)
    assert steps.totals == {
        "reading the texts of probing": (120, "texts"), "training the probes of probing": (10, "probes")
    }  # fmt: skip
    rows = {r["metric"]: r for r in found}
    dense, floor = rows["probing_dense"], rows["probing_shuffled_labels"]
    assert dense["value"] == pytest.approx(1.0) and dense["n"] == 36 and dense["split"] == "test"
    assert floor["value"] is not None and floor["value"] < 0.85
    assert rows["probing_max_k1"]["value"] is not None and rows["probing_max_k16"]["value"] > 0.9  # type: ignore[operator]
    assert rows["probing_majority"]["value"] == pytest.approx(0.5)
    assert {f"probing_{p}_k{k}" for p in ("max", "mean") for k in (1, 2, 5, 16)} <= set(rows)


def test_words_are_read_at_their_last_token(loaded: LoadedModel, sae: Sae) -> None:
    sentences = [["The", "harbour", "lay", "Zoë", "unhappinessly", "."], ["oranges"]]
    sentence, word, vectors, codes, n_tokens = word_vectors(
        loaded, sae, POINT, sentences, CorpusConfig(context_length=64), 512
    )
    assert sentence.tolist() == [0] * 6 + [1] and word.tolist() == [0, 1, 2, 3, 4, 5, 0]
    so_far: list[str] = []
    ids = loaded.tokenizer(" ".join(sentences[0]), add_special_tokens=False)["input_ids"]
    x = activations_at(loaded, POINT, torch.tensor([[0, *ids]]))[0, 1:]
    for i, found in enumerate(sentences[0]):
        so_far.append(found)
        n = len(loaded.tokenizer(" ".join(so_far), add_special_tokens=False)["input_ids"])
        assert np.allclose(vectors[i], x[n - 1], atol=1e-4)
    assert codes.shape == (7, 96) and n_tokens > len(ids)
    cut = word_vectors(loaded, sae, POINT, sentences, CorpusConfig(context_length=8), 512)
    assert 0 < len(cut[0]) < 7


def test_tags_that_are_words_are_told_apart(loaded: LoadedModel, sae: Sae) -> None:
    rng = random.Random(0)
    kinds = {"NN": ["harbour", "sky", "tide"], "VB": ["lay", "sold", "came"], "JJ": ["grey", "quiet", "old"]}
    tags = [rng.choices(list(kinds), k=6) for _ in range(60)]
    sentences = [[rng.choice(kinds[tag]) for tag in found] for found in tags]
    steps = RecordedSteps()
    found = token_probing(loaded, sae, POINT, sentences, tags, n_boot=50, ks=(1, 16), counting=steps)
    assert steps.totals["reading the sentences of token_probing"] == (60, "sentences")
    assert steps.totals["training the probes of token_probing"] == (3, "tags")
    rows = {r["metric"]: r for r in found}
    assert rows["token_probing_dense"]["value"] == pytest.approx(1.0, abs=0.02)
    assert rows["token_probing_shuffled_labels"]["value"] == pytest.approx(0.5, abs=0.15)
    assert rows["token_probing_k1 [NN]"]["unit"] == "words" and "token_probing_dense [JJ]" in rows
    with pytest.raises(InputError, match="no tag has"):
        token_probing(loaded, sae, POINT, sentences, [["X"] * 6] * 60)
    with pytest.raises(InputError, match="not equally long"):
        token_probing(loaded, sae, POINT, sentences, tags[1:])


# --- files -----------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, *records: object) -> Path:
    path = tmp_path / "labelled.jsonl"
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def labelled(n: int) -> list[dict[str, object]]:
    return [{"text": f"text\u2028{i}", "label": i % 2, "more": None} for i in range(n)]


def test_both_layouts_are_read(tmp_path: Path) -> None:
    texts = read_labelled(written(tmp_path, *labelled(24), "", {"text": "last", "label": True}))
    assert isinstance(texts, LabelledTexts) and len(texts.texts) == 25 and texts.labels[-1] == 1
    some = read_labelled(written(tmp_path, *labelled(400)), most=41)
    assert isinstance(some, LabelledTexts) and len(some.texts) == 41
    tagged = read_labelled(written(tmp_path, *[{"words": ["a", "b"], "tags": ["X", "Y"]}] * 12))
    assert isinstance(tagged, TaggedSentences) and tagged.tags[3] == ["X", "Y"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{not json", "line 3 is not JSON"),
        ("[1]", "line 3: an object"),
        ({"text": "a"}, "line 3: fields text and label"),
        ({"text": 3, "label": 1}, "line 3: text is to be a string"),
        ({"text": "a", "label": 2}, "line 3: label is to be 0 or 1, not 2"),
        ({"text": "a", "label": "1"}, "line 3: label is to be 0 or 1, not '1'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_labelled(written(tmp_path, *labelled(2), record, *labelled(30)))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no labelled text"),
        ([{"text": "a", "label": 1}] * 30, "all 30 labels are 1"),
        ([*[{"text": "a", "label": 1}] * 30, *[{"text": "a", "label": 0}] * 3], "only 3 texts have label 0"),
        ([{"words": ["a"], "tags": ["X", "Y"]}], "line 1: 1 words and 2 tags"),
        ([{"words": ["a"], "tags": "X"}], "line 1: tags is to be a list"),
        ([{"words": ["a"], "tags": ["X"]}] * 20, "1 different tags"),
        ([{"words": ["a", "b"], "tags": ["X", "Y"]}] * 3, "3 sentences"),
    ],
)
def test_files_without_enough_are_refused(tmp_path: Path, records: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_labelled(written(tmp_path, *records))


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_labelled(tmp_path / "none.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_labelled(tmp_path / "bytes.jsonl")
