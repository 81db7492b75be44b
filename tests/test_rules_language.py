"""The rule language: what is read, where conditions hold."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from autointerp.rules.language.conditions import MAX_WORDS, Near
from autointerp.rules.language.groups import Groups
from autointerp.rules.language.inflections import forms_of
from autointerp.rules.language.linear_regex import sets_of
from autointerp.rules.language.matching import holds
from autointerp.rules.language.parsing import RuleError, clauses_of, rule_to_json
from autointerp.rules.language.pattern_matches import PATTERNS_KEPT, PatternMatches
from autointerp.rules.language.token_texts import Texts
from autointerp.rules.language.wording import clause_in_words
from autointerp.rules.near import NearWords

NEAR = NearWords({"sea": [("ocean", 0.8), ("water", 0.6), ("rock", 0.2)], "ocean": [], "water": [], "rock": []})
TEXTS = Texts(
    [
        [" The", " prices", " ro", "se", " (", "sharp", "ly", ")", " to", "day", "\n", "\n", "It", "'s", ' "', "we"]
        + ["ird", '"', " #", " x", "\n", " The", " ocean"],
        [" sun", " rise", " it", "'t", " Prices"],
        [" in", " the", " (", " sun"],
    ],
    ["window", None, "document"],
)  # fmt: skip


def where(*conditions: dict[str, Any]) -> list[str]:
    clauses, _ = clauses_of({"clauses": [{"strength": 8, "all": list(conditions)}]}, NEAR)
    held = holds(clauses[0], TEXTS)
    every = [token for text in TEXTS.texts for token in text]
    return [token for token, is_held in zip(every, held, strict=True) if is_held]


@pytest.mark.parametrize(
    ("condition", "tokens"),
    [
        ({"word": ["ROSE", "sharp"]}, ["se", "sharp"]),
        ({"word": ["'s"]}, ["'s"]),
        ({"token": ["ro", "the"]}, [" The", " ro", " The", " the"]),
        ({"exact": ["it", " it", "It"]}, ["It", " it"]),
        ({"lemma": ["rise"]}, ["se", " rise"]),
        ({"prefix": ["sharp"]}, ["sharp", "ly"]),
        ({"suffix": ["y"]}, ["ly", "day"]),
        ({"class": ["piece"]}, ["se", "ly", "day", "ird"]),
        ({"class": ["capitalised"]}, [" The", "It", " The", " Prices"]),
        ({"class": ["quote", "bracket"]}, [" (", ")", ' "', '"', " ("]),
        ({"class": ["kind:mark:'"]}, ["'s", "'t"]),
        ({"regex": "[a-z]{6,}"}, [" prices", "ly"]),
        ({"regex": ["[a-z]{6,}", "[a-z]{2}y"]}, [" prices", "ly", "day"]),
        ({"left": {"word": ["the"]}}, [" prices", " ocean", " ("]),
        ({"left": {"word": ["the", "sun"], "within": 2}}, [" prices", " ro", " ocean", " rise", " it", " (", " sun"]),
        ({"left": {"class": ["newline"], "within": 2}}, ["\n", "It", "'s", " The", " ocean"]),
        ({"starts": "line"}, ["It", " The", " in"]),
        ({"starts": "window"}, [" The", " in"]),
        ({"starts": "document"}, [" in"]),
        ({"inside": "("}, ["sharp", "ly", " sun"]),
        ({"inside": "quote"}, ["we", "ird"]),
        ({"inside": ["comment", "["]}, [" x"]),
        ({"near": {"word": ["sea"], "least": 0.5}}, [" ocean"]),
    ],
)
def test_where_conditions_hold(condition: dict[str, Any], tokens: list[str]) -> None:
    assert where(condition) == tokens
    every = where({"regex": "(?s).*"})
    assert sorted(where({"regex": "(?s).*"}, {"not": condition}) + tokens) == sorted(every)


def test_matches_of_few_patterns_are_kept() -> None:
    """Thousands of rules ask about the same texts, each with patterns of its own."""
    strings = [f"word{i}" for i in range(4000)]
    matches = PatternMatches(strings)
    tracemalloc.start()
    for i in range(4 * PATTERNS_KEPT):
        assert matches.of(f"[a-z]+{i}", np.array([i, i + 1])).tolist() == [True, False]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1.5 * PATTERNS_KEPT * len(strings)


@pytest.mark.parametrize("n", [1, 300, 1 << 16, 200_000])
def test_numbers_of_any_size_are_found_where_they_stand(n: int) -> None:
    codes = np.random.default_rng(0).integers(0, n, 1000)
    groups, chosen = Groups(codes, n), np.unique(codes[:50])
    assert groups.places(chosen).tolist() == [i for one in chosen for i in np.flatnonzero(codes == one)]
    assert groups.counts(chosen).tolist() == [int((codes == one).sum()) for one in chosen]
    assert groups.places(chosen[:1]).tolist() == np.flatnonzero(codes == chosen[0]).tolist()


def test_patterns_of_which_not_all_find_place_in_a_set() -> None:
    """They are asked one by one then."""
    large = [rf"(\w{{{n}}}x){{2}}" for n in range(200, 230)]
    sets = sets_of([*large, *large, "a+", "b+"])
    assert 1 <= len(sets) <= 8 and all(len(one.patterns) > 1 for one in sets)
    small = sets_of([f"a{i}+" for i in range(300)])
    assert [len(one.patterns) for one in small] == [32] * 8
    assert small[1].matches(["a33", "a3333", "a3", "", "a33" * 100]) == [(0, 1), (1, 1)]


def test_topics_are_counted_over_the_text() -> None:
    the = {"word": ["the"]}
    assert len(where(the)) == 3
    assert where({"topic": {"word": ["sun", "moon"]}}, the) == [" the"]
    assert len(where({"topic": {"word": ["rose", "day", "it"]}}, the)) == 2  # `day` is a part of `today`
    assert where({"topic": {"word": ["day"]}}, the) == []
    assert len(where({"topic": {"lemma": ["rise", "price"], "least": 2}}, the)) == 2
    assert where({"topic": {"lemma": ["rise", "sun"], "least": 2}}, {"class": "word"})[:2] == [" sun", " rise"]
    assert where({"topic": {"regex": "[(]|sun", "least": 2}}, the) == [" the"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "the rule is a list of 0; it is an object with clauses, combine"),
        ({}, "clauses is missing; it is a list of 1 to 24 entries"),
        ({"clause": []}, "unknown key 'clause'; it may have clauses, combine. Did you mean clauses?"),
        ({"clauses": [{"strength": 1, "all": [{"wrod": ["a"]}]}]}, r"clauses\[0\].all\[0\] has an unknown key 'wrod'"),
        ({"clauses": [{"strength": 11, "all": [{"word": "a"}]}]}, "strength is 11; it is a number from 0 to 10"),
        ({"clauses": [{"strength": 1, "all": [{"not": {"word": "a"}}]}]}, 'holds only "not"'),
        ({"clauses": [{"strength": 1, "all": [{"word": "new york"}]}]}, "takes single words"),
        ({"clauses": [{"strength": 1, "all": [{"word": "a", "regex": "b"}]}]}, "one of word, .*; it has word, regex$"),
        ({"clauses": [{"strength": 1, "all": [{"left": {"within": 2}}]}]}, "one of word, .*; it has none$"),
        ({"clauses": [{"strength": 1, "all": [{"regex": "(?=a)"}]}]}, "no regular expression of RE2"),
    ],
)
def test_what_cannot_be_used_is_told(value: object, said: str) -> None:
    with pytest.raises(RuleError, match=said):
        clauses_of(value)


def test_what_is_read_is_normalised() -> None:
    near = {"near": {"word": "Sea", "least": 0.5}}
    value = {
        "clauses": [
            {"says": " a\nb ", "strength": 3, "all": [{"word": ["B", "a", "b "]}, near]},
            {"strength": 4, "all": [near, {"word": ["a", "b"]}]},
        ]
    }
    clauses, combine = clauses_of(value, NEAR)
    assert rule_to_json(clauses, combine) == {
        "clauses": [
            {
                "says": "a b",
                "strength": 4.0,
                "all": [
                    {"word": ["a", "b"]},
                    {"near": {"word": ["sea"], "least": 0.5, "words": ["ocean", "sea", "water"]}},
                ],
            }
        ],
        "combine": "max",
    }
    assert clauses_of(rule_to_json(clauses, combine)) == (clauses, combine)


def test_what_a_clause_says_is_normalised_without_its_white_space() -> None:
    value = {"clauses": [{"says": " " * 1000 + "cafe\u0301", "strength": 1, "all": [{"word": "a"}]}]}
    clauses, combine = clauses_of(value)
    assert clauses[0].says == "caf\u00e9"
    assert clauses_of(rule_to_json(clauses, combine)) == (clauses, combine)


def test_of_too_many_near_words_the_nearest_are_taken() -> None:
    """A word is as near as the nearest of the words that are given, whichever of these comes first."""
    far = [(f"w{i}", 0.5) for i in range(MAX_WORDS)]
    near = NearWords({"a": [("x", 0.9), *far], "b": [("x", 0.1), *far], "x": [], **{word: [] for word, _ in far}})
    value = {"clauses": [{"strength": 1, "all": [{"near": {"word": ["a", "b"], "least": 0.05}}]}]}
    ((clause,), _) = clauses_of(value, near)
    (condition,) = clause.conditions
    assert isinstance(condition, Near)
    assert len(condition.words) == MAX_WORDS and {"a", "b", "x"} <= set(condition.words)


def test_equal_clauses_are_one_as_strong_as_they_are_together() -> None:
    def strengths(combine: str, *given: float) -> list[float]:
        value = {"clauses": [{"strength": one, "all": [{"word": "a"}]} for one in given], "combine": combine}
        return [clause.strength for clause in clauses_of(value)[0]]

    assert strengths("max", 3, 8, 5) == [8]
    assert strengths("sum", 3, 8, 5) == [8, 8]  # no clause may be stronger than 10


@pytest.mark.parametrize(
    ("word", "forms", "others"),
    [
        ("rise", "rises rose risen rising", "ris"),
        ("move", "moves moved moving", "mov"),
        ("plan", "plans planned planning", "planed plane"),
        ("visit", "visits visited visiting", "visite"),
        ("try", "tries tried trying", "tryed"),
        ("box", "boxes", "boxs"),
        ("big", "bigger biggest", "bigly"),
        ("numb", "numbs", "number"),
        ("see", "sees saw seen seeing", "seed"),
        ("went", "go goes gone going", "wend"),
        ("children", "child", "childs"),
        ("the", "the", "thing"),
        ("lie", "lies lay lain lying lied", "lien"),
        ("straße", "straße", "straßes"),
    ],
)
def test_the_forms_of_a_word(word: str, forms: str, others: str) -> None:
    assert forms_of(word) >= {word, *forms.split()}
    assert not forms_of(word) & set(others.split())


def test_clauses_in_words() -> None:
    value = [
        {"lemma": ["rise"]},
        {"left": {"word": ["costs", "prices"], "within": 6}},
        {"not": {"topic": {"word": ["sun"]}}},
        {"not": {"word": ["rising"]}},
    ]
    said = {"says": "so", "strength": 1, "all": value[1:2]}
    clauses, _ = clauses_of({"clauses": [{"strength": 1, "all": value}, said]})
    assert [clause_in_words(clause) for clause in clauses] == [
        "forms of `rise` but not `rising` with `costs` or `prices` among the 6 tokens before "
        "and not in texts with `sun`",
        "so",
    ]
