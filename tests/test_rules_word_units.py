"""How labels name words: what tells, its forms, related words, topics."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rule_samples import ORDINARY, sample

from autointerp.rules.learning import learn
from autointerp.rules.named_words import named_words
from autointerp.rules.near import NearWords
from autointerp.rules.occurrences import active_of
from autointerp.rules.reference import Reference
from autointerp.rules.sentences import sentence
from autointerp.rules.topics import topic_words
from autointerp.rules.word_forms import are_forms, families


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
    assert named is not None and [s.text for s in named.main] == ["`of` after `end`"] and named.says_before


def test_words_before_one_and_the_same_word_are_named_together() -> None:
    texts = [(f" w{i}", (" out", " because")[i % 2], " of", f" v{i}", ".") for i in range(24)]
    found = sample(texts, (" of",), ORDINARY)
    assert sentence(found, learn(found)) == "`of` after `because` or `out`"


def test_a_rare_word_is_left_out_unless_it_is_near() -> None:
    """Of 60 texts, 54 fire on ` rise`, and three each on ` oath` and ` soar`."""
    words = [" rise"] * 54 + [" oath", " soar"] * 3
    found = sample([(f" w{i}", word, f" v{i}", ".") for i, word in enumerate(words)], tuple(words), ORDINARY)
    near = NearWords({"rise": [("soar", 0.9)], "soar": [("rise", 0.9)], "oath": []})
    named = named_words(active_of(found), learn(found), near)
    assert named is not None and ([s.text for s in named.main], named.others) == (["`rise`"], "also `soar`")


def test_a_word_of_one_document_is_left_out() -> None:
    texts = [(f" w{i}", " rise", f" v{i}", ".") for i in range(12)]
    found = sample([*texts, (" oath", " v", " oath", " u", " oath")], (" rise", " oath"), ORDINARY)
    assert sentence(found, learn(found)) == "the word `rise`"


def test_a_word_whose_parts_come_from_one_document_is_no_part() -> None:
    texts = [(f" w{i}", " win", f" v{i}", ".") for i in range(6)]
    repeated = [part for i in range(20) for part in (" win", "nertakeall", f" v{i}")]
    found = sample([*texts, tuple(repeated)], (" win",), ORDINARY)
    assert sentence(found, learn(found)) == "the word `win`"


def test_an_extra_is_a_word_or_shown_as_a_part() -> None:
    """` th` is part of longer words in six of ten texts."""
    words = [(" rise",)] * 90 + [(" th",)] * 4 + [(" th", f"{chr(97 + i)}rone") for i in range(6)]
    found = sample([(f" w{i}", *word, f" v{i}", ".") for i, word in enumerate(words)], (" rise", " th"), ORDINARY)
    text = sentence(found, learn(found))
    assert text is not None and text.startswith("the word `rise`; also `th` (beginning of `th"), text
    whole = [(" rise",)] * 90 + [(" oath",)] * 10
    found = sample([(f" w{i}", *word, f" v{i}", ".") for i, word in enumerate(whole)], (" rise", " oath"), ORDINARY)
    assert sentence(found, learn(found)) == "the word `rise`; also `oath`"


def test_words_that_hold_little_are_examples() -> None:
    """Forty words, four of them in several documents, and none carries much."""
    words = [" rise", " oath", " war", " tea"] * 3 + [f" x{chr(97 + i // 6)}{chr(97 + i % 6)}" for i in range(36)]
    found = sample([(f" w{i}", word, f" v{i}", ".") for i, word in enumerate(words)], tuple(words), ORDINARY)
    label = sentence(found, learn(found))
    assert label is not None and label == "loosely: words such as `oath`, `rise`, `tea` and `war`", label


def test_names_in_capitals_are_named_by_their_form() -> None:
    words = [f" {first}{last}" for first in ("HA", "PA", "CI") for last in ("LL", "RK", "TY", "KE")]
    found = sample([(f" w{i}", words[i % 12], f" v{i}", ".") for i in range(36)], tuple(words), ORDINARY)
    label = sentence(found, learn(found))
    assert label is not None and label.startswith("words in capitals (such as `"), label


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
