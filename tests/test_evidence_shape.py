"""Shapes of planted features in a real store, and the measure of how much a token's place says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tile_store import tile_store

from autointerp.evidence import shape as module
from autointerp.evidence.shape import find_shapes, position_dependence, shape_facts
from autointerp.records import ShapeFacts
from autointerp.rules.patterns import Rule
from autointerp.rules.shape_labels import describe
from autointerp.store import Store
from autointerp.store.findings import MethodRun

FILLERS = [" the", " a", " of", ",", " is", " tree", " seven", " (", ")", " ünï", " foo", " bar",
           " red", " green", " blue", " wide", " low", " old", " new", " far"]  # fmt: skip
TOKEN, SOMETIMES, FIRST, FIRST_FOUR, DENSE, SCATTERED, RARE, DEAD, HALF_FIRST, ALSO_OTHERS, PLACE_9, PIECES = range(12)


def fires(feature: int, number: int, window: Sequence[str]) -> list[float]:
    chance = random.Random(1000 * feature + number).random
    if feature == HALF_FIRST and chance() < 0.5:
        return [0.0] * len(window)
    tests: dict[int, Callable[[int, str, str], bool]] = {
        TOKEN: lambda i, token, before: token == " foo",
        SOMETIMES: lambda i, token, before: token == " foo" and before != " the",
        FIRST: lambda i, token, before: i == 0,
        FIRST_FOUR: lambda i, token, before: i < 4,
        DENSE: lambda i, token, before: chance() < 0.3,
        SCATTERED: lambda i, token, before: chance() < 0.02,
        RARE: lambda i, token, before: token == " foo" and number < 3,
        DEAD: lambda i, token, before: False,
        HALF_FIRST: lambda i, token, before: i == 0,
        ALSO_OTHERS: lambda i, token, before: token in (" foo", " bar"),
        PLACE_9: lambda i, token, before: i == 8,
        PIECES: lambda i, token, before: token == "",
    }
    test = tests[feature]
    befores = ["", *window]
    return [2.0 + 2.0 * (i % 2) if test(i, token, befores[i]) else 0.0 for i, token in enumerate(window)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    rng = random.Random(0)
    windows = [[rng.choice([*FILLERS, *FILLERS[:6], ""]) for _ in range(rng.choice((64, 64, 20)))] for _ in range(300)]
    features = {f: lambda number, window, f=f: fires(f, number, window) for f in range(12)}  # type: ignore[misc]
    # In the report split ` bar` is what ` foo` is elsewhere: none of it may be read.
    windows[-40:] = [[" bar" if t == " foo" else t for t in w] for w in windows[-40:]]
    store, _, _ = tile_store(tmp_path_factory.mktemp("shapes") / "s.duckdb", windows, features, report=40)
    yield store
    store.close()


@pytest.fixture(scope="module")
def facts(planted: Store) -> dict[int, ShapeFacts]:
    return {found.feature: found for found in shape_facts(planted, 1, 1)}


def test_kinds(facts: dict[int, ShapeFacts]) -> None:
    assert {feature: found.kind for feature, found in facts.items()} == {
        TOKEN: "token", SOMETIMES: "other", FIRST: "position", FIRST_FOUR: "position", DENSE: "dense",
        SCATTERED: "other", RARE: "rare", HALF_FIRST: "other", ALSO_OTHERS: "other", PLACE_9: "position",
        PIECES: "other",
    }  # fmt: skip


def test_tokens(facts: dict[int, ShapeFacts]) -> None:
    token, sometimes = facts[TOKEN], facts[SOMETIMES]
    assert (token.unigram, token.unigram_purity, token.unigram_recall) == (" foo", 1.0, 1.0)
    assert 0.5 < token.unigram_strength < 1.0
    assert sometimes.unigram_purity == 1.0
    assert sometimes.unigram_recall is not None and sometimes.unigram_recall < 0.9
    other = facts[ALSO_OTHERS].unigram_purity
    assert other is not None and 0.4 < other < 0.7
    assert facts[PIECES].unigram == ""


def test_places(facts: dict[int, ShapeFacts]) -> None:
    for feature, places in ((FIRST, (1, 1)), (FIRST_FOUR, (1, 4)), (PLACE_9, (9, 9)), (HALF_FIRST, (1, 1))):
        assert facts[feature].places == places
    for feature in (FIRST, FIRST_FOUR, PLACE_9):
        dependence, recall = facts[feature].position_dependence, facts[feature].place_recall
        assert dependence is not None and dependence > 0.9
        assert recall is not None and recall > 0.9
    for feature in (TOKEN, SOMETIMES, DENSE, SCATTERED):
        dependence = facts[feature].position_dependence
        assert dependence is not None and dependence < 0.12
    half = facts[HALF_FIRST].position_dependence
    assert half is not None and 0.5 < half < 0.8  # the place says where it does not fire, not where it does


def test_columns_are_what_the_store_takes(planted: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = find_shapes(planted, 1, 1, describe)
    assert columns["is_dense"] == [f == DENSE for f in columns["feature"]]
    assert columns["is_rare"] == [f == RARE for f in columns["feature"]]
    text = dict(zip(columns["feature"], columns["text"], strict=True))
    assert text == dict.fromkeys(text, None) | {
        TOKEN: "the token ` foo`",
        FIRST: "the first token of the text window (place 1)",
        FIRST_FOUR: "the first 4 tokens of the text window (places 1 to 4)",
        PLACE_9: "the token at place 9 of the text window",
    }
    rules = {f: rule for f, rule in zip(columns["feature"], columns["rule"], strict=True) if rule}
    assert set(rules) == {TOKEN}
    predicted = Rule.from_json(rules[TOKEN]).predict([" the", " foo", "foo"])
    assert predicted[1] > 5 and predicted[0] == predicted[2] == 0.0

    monkeypatch.setattr(module, "FEATURES_AT_ONCE", 5)
    assert find_shapes(planted, 1, 1, describe) == columns
    some = find_shapes(planted, 1, 1, describe, [FIRST, DEAD, DENSE])
    assert some["feature"] == [FIRST, DENSE]

    runs = [MethodRun(f) for f in range(12)]
    planted.replace_findings("shape", 1, 1, "sha", runs, columns)
    stored = planted.findings_of(1, [TOKEN, DEAD])
    assert stored[TOKEN]["shape"].text == "the token ` foo`" and stored[TOKEN]["shape"].unigram == " foo"
    assert stored[DEAD] == {}


def test_random_places_say_nothing_and_the_first_place_says_all() -> None:
    rng = np.random.default_rng(0)
    for n_places in (31, 127, 1023):
        everywhere = np.ones(n_places)
        found = []
        for seed in range(50):
            counts = np.bincount(rng.integers(0, n_places, 20), minlength=n_places).astype(float)
            found.append(position_dependence(counts, everywhere, 1e-3, seed))
        assert np.mean(found) < 0.05 and max(found) < 0.2
        first = np.zeros(n_places)
        first[0] = 20
        assert position_dependence(first, everywhere, 1 / n_places, 0) > 0.99


def test_short_documents_are_no_dependence_on_place() -> None:
    """Where most windows are short, early places hold more tokens and so more of any feature's."""
    tokens_at = np.where(np.arange(127) < 8, 1000.0, 20.0)
    rng = np.random.default_rng(1)
    found = [
        position_dependence(rng.multinomial(40, tokens_at / tokens_at.sum()).astype(float), tokens_at, 0.01, seed)
        for seed in range(50)
    ]
    assert np.mean(found) < 0.05 and max(found) < 0.2


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=40),
    st.lists(st.integers(1, 100), min_size=40, max_size=40),
    st.floats(0.0, 1.0),
)
def test_dependence_is_a_share(counts: list[int], tokens_at: list[int], density: float) -> None:
    placed = np.array(counts, dtype=float)
    if placed.sum():
        value = position_dependence(placed, np.array(tokens_at[: len(counts)], dtype=float), density, 0)
        assert 0.0 <= value <= 1.0


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(any))
def test_the_shortest_stretch(counts: list[int]) -> None:
    n, wanted = len(counts), module.PLACE_SHARE * sum(counts)
    holding = [(b - a, a + 1, b) for a in range(n) for b in range(a + 1, n + 1) if sum(counts[a:b]) >= wanted - 1e-9]
    assert module._shortest_stretch(np.array(counts, dtype=float)) == min(holding)[1:]
