"""Activations on texts outside the corpus against plain loops over the whole activation matrix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_models import END

from autointerp.config import CorpusConfig, ModelConfig
from autointerp.corpus.token_text import TokenText
from autointerp.errors import InputError
from autointerp.measure.texts import Maxima, explain_ids, feature_maxima
from autointerp.model.hooks import Hookpoint, activations_at
from autointerp.model.load import LoadedModel, load_model
from autointerp.model.token_batches import Halving
from autointerp.records import Split, Window, WorkUnit
from autointerp.sae.sae import Sae
from autointerp.tasks import NotMeasured

POINT = Hookpoint.parse("transformer.h.1")
CORPUS = CorpusConfig(context_length=12)
TEXTS = [
    "The harbour lay quiet under a low grey sky", "twice", "", END, f"coins {END} and bread", "東京 and 🙂 boats",
    "def read_lines(path, encoding): yield number, line.rstrip and then some more of the same text",
]  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(ModelConfig(name=str(tiny_gpt2), device="cpu", dtype="float32"))


@pytest.fixture(scope="module", params=["topk", "threshold"])
def sae(request: pytest.FixtureRequest) -> Sae:
    torch.manual_seed(1)
    W = torch.nn.functional.normalize(torch.randn(40, 48), dim=1)
    if request.param == "topk":
        return Sae(W.T.contiguous(), torch.zeros(40), W, torch.zeros(48), k=5)
    return Sae(W.T.contiguous(), torch.zeros(40), W, torch.zeros(48), threshold=torch.full((40,), 0.05))


def measured(
    loaded: LoadedModel, sae: Sae, asked: list[tuple[int, list[str]]], batch_tokens: int = 20
) -> list[Maxima | NotMeasured]:
    excluded = TokenText(loaded.tokenizer).special_ids
    return feature_maxima(loaded, sae, POINT, asked, CORPUS, excluded, batch_tokens, Halving())


def by_hand(loaded: LoadedModel, sae: Sae, feature: int, text: str) -> tuple[float | None, int]:
    ids = [0, *loaded.tokenizer(text, add_special_tokens=False)["input_ids"]][: CORPUS.context_length]
    dense = sae.encode(activations_at(loaded, POINT, torch.tensor([ids]))[0])
    values = [float(dense[i, feature]) for i in range(1, len(ids)) if ids[i] != 0]
    return (max(values) if values else None), len(values)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_maxima_against_plain_loops(loaded: LoadedModel, sae: Sae, data: st.DataObject) -> None:
    own = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5)
    asked = data.draw(st.lists(st.tuples(st.integers(0, 39), own), min_size=1, max_size=6))
    for (feature, texts), found in zip(asked, measured(loaded, sae, asked), strict=True):
        assert isinstance(found, Maxima)
        for text, value, n in zip(texts, found.maximum, found.n_tokens, strict=True):
            expected, n_expected = by_hand(loaded, sae, feature, text)
            assert n == n_expected
            assert (value is None) == (expected is None)
            assert value is None or value == pytest.approx(expected, abs=1e-4)


def test_features_do_fire_and_texts_are_read_once(loaded: LoadedModel, sae: Sae) -> None:
    found = measured(loaded, sae, [(f, TEXTS) for f in range(40)])
    assert all(isinstance(one, Maxima) for one in found)
    values = torch.tensor([[v or 0.0 for v in one.maximum] for one in found if isinstance(one, Maxima)])
    assert (values > 0).any(1).sum() > 10 and (values == 0).any()
    reads = [one.n_forwards for one in found if isinstance(one, Maxima)]
    assert reads == [len(TEXTS) - 1] + [0] * 39  # the empty text is not read


def test_what_cannot_be_measured_says_so_and_spoils_no_other(loaded: LoadedModel, sae: Sae) -> None:
    spoilt = load_model(ModelConfig(name=loaded.name, device="cpu", dtype="float32"))
    twice = loaded.tokenizer(" twice", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        spoilt.model.get_input_embeddings().weight[twice[0]] = torch.nan
    bad, good, unknown = measured(spoilt, sae, [(1, ["low", "counted twice"]), (1, ["low grey"]), (40, ["low"])])
    assert isinstance(bad, NotMeasured) and bad.status == "nonfinite" and "text 1" in bad.error
    assert isinstance(good, Maxima) and good.maximum[0] == pytest.approx(by_hand(loaded, sae, 1, "low grey")[0])
    assert isinstance(unknown, NotMeasured) and unknown.status == "bad_task"


def windows(*lengths: int, split: Split = "explain") -> WorkUnit:
    return WorkUnit(0, [Window(f"{split}{i}", 0, split, [0, *range(1, n + 1)], 1) for i, n in enumerate(lengths)], 1)


def test_explain_ids_takes_the_first_long_windows_of_the_explain_split_only() -> None:
    units = [windows(9, 9, split="report"), windows(1, 3, 9, 5, 8, 9)]
    assert explain_ids(units, 2, 6).tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert explain_ids(units, 3, 6).shape == (3, 6)
    assert explain_ids(units, 10, 6).shape == (5, 4)  # as short as the shortest that is taken
    double = WorkUnit(0, [Window("one", 0, "explain", [0, 1, 2], 1), Window("one", 2, "explain", [0, 3, 4], 1)], 1)
    assert explain_ids([double], 2, 3).tolist() == [[0, 1, 2]]
    with pytest.raises(InputError, match="explain split"):
        explain_ids([windows(9, split="select")], 2, 6)
