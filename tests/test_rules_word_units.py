"""How labels name words: what tells, its forms, related words, topics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.rules.learning import learn
from autointerp.rules.near import NearWords
from autointerp.rules.occurrences import active_of
from autointerp.rules.reference import Reference
from autointerp.rules.samples import Sample
from autointerp.rules.sentences import sentence
from autointerp.rules.token_facts import facts_of
from autointerp.rules.topics import topic_words
from autointerp.rules.word_forms import are_forms, families
from autointerp.rules.word_units import named_words


@pytest.mark.parametrize(
    ("one", "other"),
    [("move", "moving"), ("moved", "moves"), ("happy", "happier"), ("run", "running"), ("war", "wars"),
     ("family", "families"), ("eat", "eaten"), ("look", "look"), ("big", "bigger")],
)  # fmt: skip
def test_forms_of_one_word(one: str, other: str) -> None:
    assert are_forms(one, other) and are_forms(other, one)


@pytest.mark.parametrize(
    ("one", "other"), [("war", "warranty"), ("rise", "rose"), ("the", "they"), ("state", "statue"), ("in", "is")]
)
def test_other_words(one: str, other: str) -> None:
    assert not are_forms(one, other)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("abcdeings", min_size=1, max_size=7), unique=True, max_size=12))
def test_each_word_is_in_one_family(words: list[str]) -> None:
    assert sorted(word for family in families(words) for word in family) == sorted(words)


def sample(texts: list[tuple[str, ...]], active: tuple[str, ...], ordinary: list[list[str]]) -> Sample:
    silent = [fact for tokens in ordinary for fact in facts_of(tokens)]
    y = [8.0 if token in active else 0.0 for tokens in texts for token in tokens]
    document = [i for i, tokens in enumerate(texts) for _ in tokens]
    n = len(silent)
    return Sample(
        [list(tokens) for tokens in texts],
        np.array(y + [0.0] * n),
        np.array(document + [len(texts)] * n),
        np.array([1.0] * len(y) + [5.0] * n),
        silent,
    )


ORDINARY = [[" a", " of", " the", " tree", "."]] * 40


def test_a_label_names_the_words_with_their_forms() -> None:
    words = [" rise", " rises", " rising", " oath"]
    texts = [(f" w{i}", words[i % 4], f" v{i}", ".") for i in range(24)]
    found = sample(texts, tuple(words), ORDINARY)
    label = sentence(found, learn(found))
    assert label is not None and label.startswith("the words `rise` (`rises`, `rising`) and `oath`"), label


def test_a_common_word_is_named_with_the_one_before_it() -> None:
    """` of` is active after ` end` alone, and silent all over ordinary text."""
    texts = [(f" w{i}", " end", " of", f" v{i}", ".") for i in range(24)]
    found = sample(texts, (" of",), ORDINARY)
    named = named_words(active_of(found), learn(found), NearWords({}))
    assert named is not None and named.text == "`end of`" and named.says_before


def test_related_words_are_near_and_in_the_rule() -> None:
    words = [f"r{chr(97 + i)}" for i in range(12)]
    every = [*words, "covenant"]
    near = NearWords({word: [(w, 0.9) for w in every if w != word] for word in every})
    found = sample(
        [(f" w{i}", f" {word}", f" v{i}", ".") for i, word in enumerate(words)], tuple(f" {w}" for w in words), ORDINARY
    )
    named = named_words(active_of(found), learn(found, [("folded",)], near=near), near)
    assert named is not None and named.others.endswith("related words (`covenant`)"), named


class Texts(Reference):
    """Ordinary text of 100 tiles, in which ` war` and ` army` are rare."""

    @property
    def n_texts(self) -> int:
        return 100

    def n_texts_with(self, word: str) -> int:
        return {"battle": 1, "army": 1, "with": 60}.get(word, 0)


def test_topic_words_stand_out_from_ordinary_text() -> None:
    texts = [(f" w{i}", " battle", " army", " with", " fell", ".") for i in range(12)]
    found = active_of(sample(texts, (" fell",), ORDINARY))
    assert topic_words(found, Texts(), []) == ["army", "battle"]
    assert topic_words(found, Texts(), ["battles"]) == []  # one word is no topic
    assert topic_words(found, Reference(), []) == []
