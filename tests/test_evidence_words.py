"""Words that go with firing: planted ones in a real store, a second opinion by loops and scipy, and random features."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, false_discovery_control, hypergeom
from support.tile_store import TILE, tile_store

from autointerp.evidence import words as module
from autointerp.evidence.words import Background, find_input_words, words_in, words_of
from autointerp.store import Store
from autointerp.store.findings import MethodRun
from autointerp.store.sampled_tokens import Stretch

VOCABULARY = [f" {a}{b}" for a in ("ba", "do", "ki", "lu", "me") for b in ("ran", "tol", "pis", "zem", "fug", "wad")]
FILLERS = [" the", " the", " the", " of", ",", ".", " 7"]
AFTER_HARBOUR, BEFORE_LATER, ON_PIECE, ALWAYS, SILENT = range(5)


def texts(n: int, seed: int = 0) -> list[list[str]]:
    """Windows of Zipf-like words; one tile in nine names the harbour, one in nine has ` im` `port` ` later`."""
    rng = random.Random(seed)
    weights = [1 / (i + 1) for i in range(len(VOCABULARY))]
    windows = []
    for _ in range(n):
        window = [
            rng.choice(FILLERS) if rng.random() < 0.4 else rng.choices(VOCABULARY, weights)[0]
            for _ in range(rng.choice((4 * TILE, 4 * TILE - 5)))
        ]
        for at in range(0, 3 * TILE, TILE):
            kind = rng.randrange(9)
            if kind == 0:
                window[at + rng.randrange(4)] = " Harbour"
            elif kind == 1:
                start = at + rng.randrange(TILE - 3)
                window[start : start + 3] = [" im", "port", " later"]
        windows.append(window)
    return windows


def fires(feature: int, number: int, window: Sequence[str]) -> list[float]:
    values = [0.0] * len(window)
    for at in range(0, len(window), TILE):
        tile = window[at : at + TILE]
        if feature == AFTER_HARBOUR and " Harbour" in tile:
            values[at + min(tile.index(" Harbour") + 4, len(tile) - 1)] = 3.0
        if feature in (BEFORE_LATER, ON_PIECE) and " im" in tile:
            # the one on ` im` itself, the other on what stands there before `port`: neither has seen ` later`
            values[at + tile.index(" im")] = 3.0
        if feature == ALWAYS:
            values[at + 8 if len(tile) > 8 else at] = 1.0
    return values


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    windows = texts(120)
    windows += [[" Reportword" if t == " Harbour" else t for t in w] for w in texts(40, 1)]
    features = {f: lambda number, window, f=f: fires(f, number, window) for f in range(5)}  # type: ignore[misc]
    path = tmp_path_factory.mktemp("words") / "s.duckdb"
    store, _, _ = tile_store(path, windows, features, report=40, negatives=60)
    yield store
    store.close()


def listed(columns: dict[str, list[object]], feature: int) -> list[object]:
    return [word for f, word in zip(columns["feature"], columns["word"], strict=True) if f == feature]


def test_planted_words_come_first(planted: Store) -> None:
    columns = find_input_words(planted, 1, 1, 5)
    assert listed(columns, AFTER_HARBOUR)[0] == "harbour"
    assert listed(columns, ON_PIECE)[0] == "import"  # the peak's word, read to its end
    every = set(columns["word"])
    assert not {"the", "later", "port", "im", "reportword"} & every
    assert not listed(columns, ALWAYS) and not listed(columns, SILENT)
    assert all(pmi > 0 for pmi in columns["pmi"]) and all(p < 0.05 for p in columns["p_value"])
    first = columns["word"].index("harbour")
    # 20 sampled contexts, in fewer documents: each document counts once
    documents = planted.rows(
        "SELECT count(DISTINCT window_id) FROM evidence.context_rows WHERE feature = ? AND kind = 'sampled' "
        "AND split = 'explain'", [AFTER_HARBOUR],
    )  # fmt: skip
    assert columns["n_with_word"][first] == documents[0][0] < 20 and columns["rank"][first] == 0


def test_columns_are_what_the_store_takes(planted: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = find_input_words(planted, 1, 1, 5)
    monkeypatch.setattr(module, "FEATURES_AT_ONCE", 2)
    assert find_input_words(planted, 1, 1, 5) == columns
    some = find_input_words(planted, 1, 1, 1, [ON_PIECE])
    assert (some["feature"], some["word"]) == ([ON_PIECE], ["import"])
    planted.replace_findings("words", 1, 1, "sha", [MethodRun(f) for f in range(5)], columns)
    stored = planted.findings_of(1, [AFTER_HARBOUR, SILENT])
    assert stored[AFTER_HARBOUR]["input_words"][0].word == "harbour"
    assert stored[SILENT] == {}


def test_without_a_background_nothing_is_said(tmp_path: Path) -> None:
    features = {f: lambda number, window, f=f: fires(f, number, window) for f in range(5)}  # type: ignore[misc]
    store, _, _ = tile_store(tmp_path / "s.duckdb", texts(20), features, negatives=0)
    with store:
        assert find_input_words(store, 1, 1, 5)["feature"] == []


def test_against_loops_and_scipy() -> None:
    """Every number of a feature's words, from the definition: each background tile cut at each of its lengths."""
    rng = random.Random(4)
    tiles = [
        Stretch(list(window[: rng.choice((TILE, TILE, 11))]), "", "", f"d{i // 4 if i < 40 else i}")
        for i, window in enumerate(texts(60, 2))
    ]
    contexts = [window[: rng.randrange(1, TILE + 1)] for window in texts(25, 3)]
    for tokens in contexts[:15]:
        tokens[0] = " lumin"
    tiles[0].tokens[0] = " lumin"

    def words(tokens: Sequence[str]) -> set[str]:
        return {w.lower() for w in re.findall(r"[a-zA-Z]{2,}", "".join(tokens))}

    names = sorted(set().union(*(words(tokens) for tokens in contexts)))
    background = set().union(*(words(tile.tokens) for tile in tiles))
    rows, p_values = [], []
    n = len(contexts)
    n_tiles = round(float(np.mean([sum(len(tile.tokens) >= len(c) for tile in tiles) for c in contexts])))
    sizes = {tile.document: sum(other.document == tile.document for other in tiles) for tile in tiles}
    for name in names:
        a = sum(name in words(tokens) for tokens in contexts)
        shares = []
        for weighs in (lambda tile: 1.0, lambda tile: 1 / sizes[tile.document]):
            of_context = []
            for c in contexts:
                long = [tile for tile in tiles if len(tile.tokens) >= len(c)]
                held = [weighs(tile) for tile in long if name in words(tile.tokens[: len(c)])]
                of_context.append(sum(held) / sum(map(weighs, long)))
            shares.append(float(np.mean(of_context)))
        b = max(shares) * n_tiles
        pmi = math.log((a + 0.5) / (n + 1) / ((b + 0.5) / (n_tiles + 1)))
        table = [[a, n - a], [b, n_tiles - b]]
        g = chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
        rows.append((name, pmi, g, a))
        whole = math.ceil(b - 1e-6)
        p_values.append(hypergeom.sf(a - 1, n + n_tiles, n, a + whole))
    n_tests = len(background | set(names))
    adjusted = false_discovery_control([*p_values, *[1.0] * (n_tests - len(p_values))])[: len(rows)]
    wanted = [
        (name, pmi, g, p, a)
        for (name, pmi, g, a), p in zip(rows, adjusted, strict=True)
        if pmi > 0 and p < 0.05 and a > 2
    ]
    wanted.sort(key=lambda row: -row[2])
    found = words_of([(words_in(c, "", ""), len(c)) for c in contexts], Background(tiles))
    assert wanted[0][0] == "lumin"
    assert [row[0] for row in found] == [row[0] for row in wanted]
    for own, other in zip(found, wanted, strict=True):
        assert own[1:] == pytest.approx(other[1:], rel=1e-9)


def topical(n_documents: int, seed: int, vocabulary: int = 3000) -> list[list[list[str]]]:
    """Tiles of documents, [documents, tiles, words]: each document has 25 words of its own that make up half of it,
    and the short ones have a line at the head that stands in a third of them."""
    rng = np.random.default_rng(seed)
    chance = 1 / np.arange(5, vocabulary + 5)
    chance /= chance.sum()
    names = np.array([f" w{''.join(chr(97 + int(d)) for d in np.base_repr(i, 9))}" for i in range(vocabulary)])
    documents = []
    for _ in range(n_documents):
        n_tiles = int(rng.choice((2, 6, 30)))
        own = rng.choice(vocabulary, 25, p=chance)
        ids = np.where(
            rng.random((n_tiles, TILE)) < 0.5,
            rng.choice(own, (n_tiles, TILE)),
            rng.choice(vocabulary, (n_tiles, TILE), p=chance),
        )
        tiles = [list(row) for row in names[ids]]
        if n_tiles == 2 and rng.random() < 1 / 3:
            for tile in tiles:
                tile[0] = " licence"
        documents.append(tiles)
    return documents


TILE_OF_TEXT = dict[str, int]


@pytest.fixture(scope="module")
def null_world() -> tuple[list[list[TILE_OF_TEXT]], Background]:
    """Documents whose tiles a feature may fire on, and a background of other documents of the same kind."""
    documents = topical(200, 1)
    chosen = [Stretch(t, "", "", f"d{i}") for i, tiles in enumerate(topical(200, 2)) for t in tiles]
    return [[words_in(t, "", "") for t in tiles] for tiles in documents], Background(chosen)


@pytest.mark.parametrize("n_documents", [3, 8, 20])
def test_a_feature_that_knows_no_words_lists_none(
    null_world: tuple[list[list[TILE_OF_TEXT]], Background], n_documents: int
) -> None:
    """The null: it fires at random in the documents it fires in, be they three (where counting contexts listed a word
    for 91 of 100 features) or many. At most 1 feature in 20 may list a word."""
    documents, background = null_world
    rng = random.Random(n_documents)
    n_listed = 0
    for _ in range(200):
        one_of_each = [rng.choice(tiles) for tiles in rng.sample(documents, n_documents)]
        n_listed += bool(words_of([(words, TILE) for words in one_of_each], background))
    assert n_listed <= 10


def test_a_word_of_a_tenth_of_the_documents_is_found(
    null_world: tuple[list[list[TILE_OF_TEXT]], Background],
) -> None:
    """The power that remains: a rare word in 6 of 20 documents."""
    documents, background = null_world
    rng = random.Random(0)
    contexts = [(rng.choice(tiles), TILE) for tiles in rng.sample(documents, 20)]
    for words, _ in contexts[:6]:
        words["harbour"] = 3
    assert words_of(contexts, background)[0][0] == "harbour"
    assert words_of(contexts, background)[0][4] == 6


@pytest.mark.parametrize("n", [3, 12])
def test_contexts_of_three_documents_are_three(n: int, tmp_path: Path) -> None:
    """20 contexts from three documents, be they cut into blocks or not, in which a word stands everywhere, weigh as
    much as three contexts."""
    windows = texts(60, 7)
    rng = random.Random(1)
    for window in windows[:n]:
        for at in range(0, len(window), TILE):
            window[at] = " harbour" if rng.random() < 0.9 else window[at]
    fires_early = {0: lambda number, window: [float(number < n and i % TILE == 8) for i in range(len(window))]}

    def named(i: int) -> str:
        return f"huge{i % 3}#{i // 3}" if i < n else f"d{i}"

    path = tmp_path / "s.duckdb"
    store, _, _ = tile_store(path, windows, fires_early, sampled=20, negatives=200, named=named)
    with store:
        found = find_input_words(store, 1, 1, 50)
    assert all(n <= 3 for n in found["n_with_word"])


def test_a_background_without_any_word() -> None:
    shares, n_tiles = Background([Stretch(["1", " 2"], "", "", "d")]).shares(["harbour", "the"], [1, 2, 9])
    assert shares.tolist() == [0.0, 0.0] and n_tiles == 1


def test_words_at_the_edges() -> None:
    assert words_in(["port", " the", " im"], "port them", "") == {"port": 0, "the": 1, "import": 2}
    assert words_in(["port", " the", " im"], "port them", " im") == {"the": 1, "import": 2}
    assert words_in(["Zo", "ë", " 東京", "_x9y", " The", " the"], "", "") == {"zoë": 0, "東京": 2, "the": 4}
    assert words_in([], "ahead", "") == {}


PIECES = st.lists(st.sampled_from(["a", "bc", " d", " ef", "", "1", "_", " ", "É"]), max_size=12)


@given(PIECES, st.integers(0, 12), PIECES)
def test_a_word_counts_from_the_token_it_begins_in(tokens: list[str], cut: int, ahead: list[str]) -> None:
    """Cutting a text after any number of tokens leaves the words that begin before: what `Background` relies on."""
    whole = words_in(tokens, "".join(ahead), "")
    head = words_in(tokens[:cut], "".join([*tokens[cut:], *ahead]), "")
    assert head == {word: at for word, at in whole.items() if at < cut}
