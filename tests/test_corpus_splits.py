"""Splits: a function of content alone, in the shares asked for, with something for every split from a single file."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.sources import split_rule
from autointerp.corpus.splits import (
    Piece,
    gap_characters,
    require_all_splits,
    run_splits,
    split_documents,
    split_of,
)
from autointerp.errors import InputError
from autointerp.records import Document, source_of

WORDS = ["the", "tide", "came", "in", "and", "boats", "turned", "slowly", "on", "their", "ropes", "under", "a", "sky"]


def prose(n_characters: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    words = rng.choices(WORDS, k=n_characters)
    ends = rng.choices((" ", ". ", ".\n", ".\n\n"), weights=(20, 1, 1, 1), k=n_characters)
    return "".join(map("".join, zip(words, ends, strict=True)))[:n_characters]


def documents_of(
    texts: list[str], chunk: int = 10**9, config: CorpusConfig | None = None
) -> tuple[list[Document], CorpusReport]:
    """Through the splitter, each text arriving in pieces of `chunk` characters."""

    def pieces() -> Iterator[Piece]:
        for i, text in enumerate(texts):
            for start in range(0, len(text), chunk):
                yield Piece(f"d{i}", text[start : start + chunk], True)
            yield Piece(f"d{i}", "", False)

    report = CorpusReport()
    return list(split_documents(pieces(), config or CorpusConfig(), report)), report


def test_the_split_ignores_whitespace_and_names() -> None:
    for seed in range(50):
        text = prose(200, seed)
        assert split_of(text, 0.5) == split_of("\n" + text.replace(" ", "  \t") + " ", 0.5)


@pytest.mark.parametrize("heldout", [0.2, 0.5, 0.8])
def test_shares_are_as_configured(heldout: float) -> None:
    n = 4000
    counts = Counter(split_of(f"document {i}", heldout) for i in range(n))
    for split, share in (("explain", 1 - heldout), ("select", heldout / 2), ("report", heldout / 2)):
        assert abs(counts[split] / n - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_more_held_out_text_never_moves_a_document_back_to_the_explainer() -> None:
    for i in range(300):
        if split_of(f"d{i}", 0.3) != "explain":
            assert split_of(f"d{i}", 0.6) != "explain"


def test_a_corpus_of_many_documents_is_left_whole() -> None:
    texts = [prose(3000, seed) for seed in range(64)]
    documents, report = documents_of(texts)
    assert [d.text for d in documents] == texts
    assert [d.name for d in documents] == [f"d{i}" for i in range(64)]
    require_all_splits(report)


def test_one_file_feeds_all_three_splits() -> None:
    text = prose(300_000)
    documents, report = documents_of([text])
    assert 50 <= len(documents) <= 70
    assert [d.name for d in documents] == [f"d0#{i}" for i in range(len(documents))]
    require_all_splits(report)
    block = 300_000 // 64
    position = 0
    for i, document in enumerate(documents):
        found = text.index(document.text, position)
        assert len(document.text) <= block
        if i:
            assert found - position >= gap_characters(block)
            assert text[found - 1] in " \n"
        position = found + len(document.text)


@pytest.mark.parametrize("heldout", [0.1, 0.3, 0.5, 0.8])
def test_no_report_block_lies_beside_an_explain_block(heldout: float) -> None:
    """In files of any number of blocks. Split block by block, more than half of the report blocks would."""
    for n, is_backwards in itertools.product(range(3, 130), (False, True)):
        splits = run_splits(n, heldout, is_backwards)
        assert len(splits) == n and set(splits) == {"explain", "select", "report"}
        assert all({a, b} != {"explain", "report"} for a, b in itertools.pairwise(splits))
        if n >= 32:
            counts = Counter(splits)
            assert counts["select"] == counts["report"]
            assert counts["explain"] / n == pytest.approx(1 - heldout, abs=0.07)
            assert sum(a != b for a, b in itertools.pairwise(splits)) <= n // 8  # few borders


@pytest.mark.parametrize("n_files", [1, 3, 9, 40])
def test_small_corpora_are_split_by_runs(n_files: int) -> None:
    texts = [prose(300_000 // n_files, seed) for seed in range(n_files)]
    documents, report = documents_of(texts)
    require_all_splits(report)
    beside = [(a, b) for a, b in itertools.pairwise(documents) if source_of(a.name) == source_of(b.name)]
    assert beside and not any({a.split, b.split} == {"explain", "report"} for a, b in beside)
    by_block = [(split_of(a.text, 0.5), split_of(b.text, 0.5)) for a, b in beside]
    assert sum({"explain", "report"} == set(pair) for pair in by_block) > len(beside) / 10  # the rule before
    assert {source_of(d.name) for d in documents} == {f"d{i}" for i in range(n_files)}


def test_a_file_of_two_blocks_is_not_divided() -> None:
    documents = documents_of([prose(3500, seed) for seed in range(20)])[0]
    splits: dict[str, set[str]] = {}
    for document in documents:
        splits.setdefault(source_of(document.name), set()).add(document.split)
    assert len(documents) == 40 and all(len(found) == 1 for found in splits.values())
    assert set().union(*splits.values()) == {"explain", "select", "report"}


def test_larger_corpora_are_split_by_content_as_before() -> None:
    """64 documents, or as much text as 64 full blocks: every document and block by its own hash."""
    config = CorpusConfig(block_characters=1000)
    for texts in ([prose(900 + 2000 * (seed % 2), seed) for seed in range(64)], [prose(90_000)]):
        documents = documents_of(texts, config=config)[0]
        assert len(documents) > 64
        assert [d.split for d in documents] == [split_of(d.text, 0.5) for d in documents]
    digest = hashlib.sha256("".join(d.split[0] for d in documents_of([prose(3000, i) for i in range(80)])[0]).encode())
    assert digest.hexdigest()[:16] == "3721468d2b2c64ec"


def test_an_id_that_looks_like_a_block_is_its_own_source() -> None:
    pieces = [Piece(name, prose(500, i), False) for i, name in enumerate(("page#1", "page#2", "plain"))]
    documents = list(split_documents(iter(pieces), CorpusConfig(), CorpusReport()))
    assert [d.name for d in documents] == ["page#1#0", "page#2#0", "plain"]
    assert [source_of(d.name) for d in documents] == ["page#1", "page#2", "plain"]


def test_the_rule_is_known_from_the_beginning_of_the_corpus(tmp_path: Path) -> None:
    for i in range(64):
        (tmp_path / f"{i:02}.txt").write_text(prose(300, i))
    assert split_rule(CorpusConfig(source=str(tmp_path))) == "hash"
    (tmp_path / "00.txt").unlink()
    assert split_rule(CorpusConfig(source=str(tmp_path))) == "runs"
    assert split_rule(CorpusConfig(source="hf:some/where")) == "hash"


def test_a_small_corpus_keeps_small_documents_whole() -> None:
    texts = [prose(900, seed) for seed in range(20)]
    assert [d.text for d in documents_of(texts)[0]] == texts


def test_copies_of_a_document_stand_on_one_side() -> None:
    original = prose(50_000)
    documents, _ = documents_of([original, prose(9000, 1), original])
    split = {d.name.replace("d2", "d0"): d.split for d in documents if d.name.startswith(("d0", "d2"))}
    for document in documents:
        if document.name.startswith(("d0", "d2")):
            assert document.split == split[document.name.replace("d2", "d0")]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=70),
    chunk=st.integers(1, 5000),
    block=st.integers(1000, 4000),
)
def test_blocks_do_not_depend_on_how_the_text_arrives(sizes: list[int], chunk: int, block: int) -> None:
    texts = [prose(size, seed) for seed, size in enumerate(sizes)]
    config = CorpusConfig(block_characters=block)
    whole, whole_report = documents_of(texts, config=config)
    parts, parts_report = documents_of(texts, chunk=max(chunk, 50), config=config)
    assert whole == parts
    assert (whole_report.n_documents, whole_report.n_skipped) == (parts_report.n_documents, parts_report.n_skipped)
    assert all(0 < len(d.text) <= block for d in whole)
    assert whole_report.n_skipped["empty"] == sum(not text.strip() for text in texts)


def test_text_without_any_boundary_is_cut_all_the_same() -> None:
    documents, _ = documents_of(["x" * 10_000], config=CorpusConfig(block_characters=1000))
    assert len(documents) > 8 and max(len(d.text) for d in documents) == 1000


def test_a_missing_split_is_named() -> None:
    report = documents_of(["too short to part"])[1]
    with pytest.raises(InputError, match=r"no document for .* and .*heldout_fraction"):
        require_all_splits(report)
