"""Windows: whole documents in order, never across two, and units that do not depend on who asks for them."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_models import END, byte_level_tokenizer
from transformers import PreTrainedTokenizerBase

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.windows import bos_prefix, token_ids, work_units
from autointerp.errors import InputError
from autointerp.records import SPLITS, Document, Window, WorkUnit

TOKENIZER = byte_level_tokenizer()
ALPHABET = ["the", "boats", "turned", "slowly", "🙂", "東京", "Łukasz\n3.14", "def", "read_lines(path):", END]


def corpus(sizes: list[int], seed: int = 0) -> list[Document]:
    rng = random.Random(seed)
    return [
        Document(f"d{i}", " ".join(rng.choice(ALPHABET) for _ in range(size)), rng.choice(SPLITS))
        for i, size in enumerate(sizes)
    ]


def units_of(documents: list[Document], **options: Any) -> list[WorkUnit]:
    wanted = options.pop("wanted", lambda index: True)
    report = options.pop("report", None)
    return list(work_units(iter(documents), TOKENIZER, CorpusConfig(**options), wanted=wanted, report=report))


SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, context=st.integers(8, 40), prepend=st.sampled_from(["auto", "never"]))
def test_windows_hold_each_document_once_and_never_two(sizes: list[int], context: int, prepend: str) -> None:
    documents = corpus(sizes)
    units = units_of(documents, context_length=context, prepend_bos=prepend, unit_characters=500)
    by_name = {d.name: d for d in documents}
    ids: dict[str, list[int]] = {d.name: [] for d in documents}
    order: list[str] = []
    for unit in units:
        for window in unit.windows:
            assert window.n_prefix == (1 if prepend == "auto" else 0)
            assert list(window.token_ids[: window.n_prefix]) == [TOKENIZER.bos_token_id] * window.n_prefix
            body = list(window.token_ids[window.n_prefix :])
            assert window.start == len(ids[window.document])
            assert 2 <= len(body) <= context - window.n_prefix
            assert window.split == by_name[window.document].split
            ids[window.document] += body
            order.append(window.document)
    assert order == sorted(order, key=lambda name: int(name[1:]))
    assert sum(unit.n_documents for unit in units) == len(documents)
    for document in documents:
        full = TOKENIZER(document.text, add_special_tokens=False)["input_ids"]
        assert len(full) - len(ids[document.name]) <= 1  # a last window of one token is left out
        assert full[: len(ids[document.name])] == ids[document.name]


@settings(max_examples=40, deadline=None)
@given(
    sizes=SIZES,
    shards=st.integers(1, 5),
    max_tokens=st.none() | st.integers(1, 600),
    unit_characters=st.integers(1, 900),
)
def test_units_are_a_function_of_the_corpus_alone(
    sizes: list[int], shards: int, max_tokens: int | None, unit_characters: int
) -> None:
    documents = corpus(sizes)
    options = {"context_length": 16, "max_tokens": max_tokens, "unit_characters": unit_characters}
    whole = units_of(documents, **options)
    assert [unit.index for unit in whole] == list(range(len(whole)))
    sharded: list[WorkUnit] = []
    for shard in range(shards):
        mine = units_of(documents, wanted=lambda index, shard=shard: index % shards == shard, **options)
        assert all(unit.index % shards == shard for unit in mine)
        sharded += mine
    assert sorted(sharded, key=lambda unit: unit.index) == whole


def test_max_tokens_stops_after_the_document_that_reaches_it() -> None:
    documents = corpus([30] * 20)
    every = units_of(documents, context_length=16, unit_characters=400)
    sizes: dict[str, int] = {}
    for unit in every:
        for window in unit.windows:
            sizes[window.document] = sizes.get(window.document, 0) + len(window.token_ids) - window.n_prefix
    limit = sizes["d0"] + sizes["d1"] + sizes["d2"] + 1
    units = units_of(documents, context_length=16, unit_characters=400, max_tokens=limit)
    assert {w.document for unit in units for w in unit.windows} == {"d0", "d1", "d2", "d3"}


def test_a_unit_closes_with_the_document_that_fills_it() -> None:
    documents = [Document(f"d{i}", "boats and ropes " * 5, "explain") for i in range(7)]  # 80 characters each
    units = units_of(documents, unit_characters=160)
    assert [unit.n_documents for unit in units] == [2, 2, 2, 1]


def test_unwanted_units_are_not_tokenised(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        "autointerp.corpus.windows.token_ids", lambda texts, t: seen.extend(texts) or token_ids(texts, t)
    )
    documents = [Document(f"d{i}", f"document number {i}", "explain") for i in range(6)]
    units = units_of(documents, unit_characters=1, wanted=lambda index: index == 4)
    assert [unit.index for unit in units] == [4] and seen == ["document number 4"]


def test_documents_of_one_token_are_counted() -> None:
    report = CorpusReport()
    units = units_of([Document("a", "x", "explain"), Document("b", "boats turn", "explain")], report=report)
    assert report.n_skipped == {"one_token": 1} and report.n_unusable == 0
    assert [w.document for w in units[0].windows] == ["b"] and units[0].n_documents == 2


def test_long_documents_raise_no_warning_and_leftover_truncation_does_not_count() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer("short", truncation=True, max_length=2)  # leaves truncation switched on in the backend
    ids = token_ids(["boats and ropes " * 200], tokenizer)[0]
    assert len(ids) > tokenizer.model_max_length
    assert tokenizer.decode(ids) == "boats and ropes " * 200


def test_bos_policies(metaspace_tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    documents = [Document("a", "boats turned slowly", "explain")]
    config = CorpusConfig(prepend_bos="always")
    window = next(work_units(iter(documents), metaspace_tokenizer, config)).windows[0]
    assert window.token_ids[0] == metaspace_tokenizer.bos_token_id and window.start == 0
    without = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str()))
    assert next(work_units(iter(documents), without, CorpusConfig())).windows[0].n_prefix == 0
    # TransformerLens takes the EOS, and <|endoftext|> where there is none.
    assert bos_prefix(without, config) == [TOKENIZER.convert_tokens_to_ids(END)]
    metaspace_tokenizer = copy.deepcopy(metaspace_tokenizer)
    metaspace_tokenizer.bos_token = None
    assert bos_prefix(metaspace_tokenizer, CorpusConfig()) == []
    assert bos_prefix(metaspace_tokenizer, config) == [metaspace_tokenizer.convert_tokens_to_ids("</s>")]
    metaspace_tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither a BOS nor an EOS token"):
        next(work_units(iter(documents), metaspace_tokenizer, config))


def test_windows_with_a_token_that_the_model_cannot_read_are_left_out() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["[PAD]"])
    pad = tokenizer.convert_tokens_to_ids("[PAD]")
    text = "the boats turned slowly on their ropes as the tide came in, and an old woman sold oranges [PAD] on it"
    documents = [Document("a", text, "explain"), Document("b", "boats turned slowly", "explain")]
    report, config = CorpusReport(), CorpusConfig(context_length=8)

    def windows(**options: Any) -> list[Window]:
        return [w for unit in work_units(iter(documents), tokenizer, config, **options) for w in unit.windows]

    kept, whole = windows(unreadable={pad: "[PAD]"}, report=report), windows()
    assert kept == [window for window in whole if pad not in window.token_ids] and len(kept) == len(whole) - 1
    assert report.n_skipped == {"unreadable_token": 1} and report.examples == {"unreadable_token": "a"}
    assert report.n_unusable == 0
