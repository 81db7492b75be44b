"""Rules on text as it comes: what weights, ordinary text and near words change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.rules.learning import MAX_ROWS, learn
from autointerp.rules.near import NO_NEAR_WORDS, NearWords
from autointerp.rules.samples import Sample
from autointerp.rules.token_facts import facts_of


def sample(texts: list[list[str]], active: dict[str, float], ordinary: list[list[str]] | None = None) -> Sample:
    """One document for each text. Ordinary text is silent, and each of its tokens stands for ten."""
    silent = [fact for tokens in ordinary or [] for fact in facts_of(tokens)]
    own = [(i, active.get(token, 0.0)) for i, tokens in enumerate(texts) for token in tokens]
    return Sample(
        texts,
        np.array([y for _, y in own] + [0.0] * len(silent)),
        np.array([i for i, _ in own] + [len(texts)] * len(silent)),
        np.array([1.0] * len(own) + [10.0] * len(silent)),
        silent,
    )


FILL = [" green", " seven", " of", " the", " tree"]


def test_a_word_counts_for_what_it_is_worth_in_ordinary_text() -> None:
    """` of` is active in every context, and silent all over ordinary text."""
    texts = [[f" w{i}", " of", " oath", f" v{i}"] for i in range(12)]
    active = {" of": 5.0, " oath": 5.0}
    alone = learn(sample(texts, active))
    beside = learn(sample(texts, active, [[" a", " of", " b"]] * 60))
    assert min(alone.predict([" x", " of", " oath"])[1:]) > 3.0
    predicted = beside.predict([" x", " of", " oath"])
    assert predicted[2] > 3.0 > 1.0 > predicted[1]


def test_near_words_that_the_evidence_lacks_are_predicted() -> None:
    """Each of the words stands in one text, so nothing but the others tells of it."""
    words = [f"r{chr(97 + i)}" for i in range(15)]
    every = [*words, "ascend"]
    near = NearWords({**{word: [(w, 0.8) for w in every if w != word] for word in every}, "tree": []})
    texts = [[*FILL, f" {word}", *FILL] for word in words]
    found = sample(texts, {f" {word}": 8.0 for word in words})
    smoothed = learn(found, [("folded",)], near=near)
    predicted = smoothed.predict([" ascend", " tree"])
    assert predicted[0] > 4.0 > 1.0 > predicted[1]
    assert learn(found, [("folded",)]).predict([" ascend"])[0] < 1.0


def test_unknown_words_have_no_neighbours() -> None:
    near = NearWords({"a": [("b", 0.5), ("unknown", 0.4)], "b": [("a", 0.5), ("c", -0.1)], "c": []})
    assert near.of("a") == [("b", 0.5)] and near.of("b") == [("a", 0.5)]
    assert near.of("zzz") == [] and not NO_NEAR_WORDS and NO_NEAR_WORDS.of("a") == []
    assert near.handed_on({"a": 6.0}) == {"b": 0.5 * 6.0 / 1.5}


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0.01, 1)))),
    st.lists(st.sampled_from("abcdefghxyz"), min_size=1, max_size=8, unique=True),
    st.integers(1, 4),
)
def test_a_smoother_adds_shares_of_near_words(
    near: dict[str, list[tuple[str, float]]], words: list[str], n: int
) -> None:
    values = np.arange(1.0, len(words) * n + 1).reshape(len(words), n)
    known = NearWords(near)
    (found,) = known.smoothers(words, [2.0])
    expected = values.copy()
    for i, word in enumerate(words):
        for other, cosine in known.of(word):
            if other in words:
                expected[i] += cosine**2 * values[words.index(other)]
    np.testing.assert_allclose(found.spread(values), expected)


def test_equal_weights_of_any_size_make_one_rule() -> None:
    texts = [[f" w{i}", " oath", f" v{i % 3}", " of"] for i in range(20)]
    one = sample(texts, {" oath": 6.0, " of": 1.0})
    more = learn(replace(one, weights=one.weights * 1000.0))
    token = {t.of: t.weights for t in more.tables}
    assert all(len(table.weights) <= MAX_ROWS for table in more.tables) and token
    assert more.predict([" a", " oath"])[1] > learn(one).predict([" a", " oath"])[1] - 0.5
