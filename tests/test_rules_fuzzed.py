"""The rule language against whatever anyone may write, and against its definition."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.plain_rules import PlainText

from autointerp.records import Begins
from autointerp.rules.language.conditions import CLASSES, OPENINGS, PLACES
from autointerp.rules.language.forms import LONGEST_WORD, Forms
from autointerp.rules.language.linear_regex import LinearRegex
from autointerp.rules.language.matching import holds, patterns_of, predicted_of
from autointerp.rules.language.parsing import CONDITION_KEYS, RuleError, clauses_of, rule_to_json
from autointerp.rules.language.token_texts import Texts
from autointerp.rules.language.wording import conditions_in_words
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.near import NearWords
from autointerp.rules.patterns import Rule, Table

FEW = 100
MANY = pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])
NEAR = NearWords({"sea": [("ocean", 0.8), ("water", 0.6)], "ocean": [], "water": []})
PIECES = [
    "the", " The", " sea", "ing", " rise", "rose", "s", "'s", " don't", "(", ")", " [", "f(x)", '"', "'", "\n", "\n\n",
    "  ", "\n    ", "", "#", "//", "12", " a1", "_x", "É", "e\u0301", "Σ", "İ", "key ", "a\nb", ".\n", "\x1c", "ﬁ",
]  # fmt: skip
PATTERNS = [r"[a-z]+", r"\w*", r".*s", r"(?i)the|sea", r"\d+", r"[^a-z]+", r"(?s).+", r"\p{L}{2,}"]

words = st.lists(st.sampled_from([*(p for p in PIECES if p and " " not in p.strip()), "ocean", "cat"]), min_size=1)
tests = st.one_of(
    st.fixed_dictionaries({"word": words.map(lambda of: [w.strip() or w for w in of])}),
    st.sampled_from(["token", "exact", "lemma", "prefix", "suffix"]).flatmap(
        lambda key: st.fixed_dictionaries({key: words})
    ),
    st.fixed_dictionaries({"class": st.lists(st.sampled_from([*CLASSES, "kind:Word", "kind:mark:("]), min_size=1)}),
    st.fixed_dictionaries({"regex": st.sampled_from(PATTERNS)}),
)
topics = st.one_of(
    st.fixed_dictionaries({"word": words}, optional={"least": st.just(1)}),
    st.fixed_dictionaries({"lemma": words}),
    st.fixed_dictionaries({"regex": st.sampled_from(PATTERNS), "least": st.integers(1, 4)}),
)
positives = st.one_of(
    tests,
    st.tuples(tests, st.integers(1, 32)).map(lambda pair: {"left": {**pair[0], "within": pair[1]}}),
    st.fixed_dictionaries({"starts": st.lists(st.sampled_from(PLACES), min_size=1)}),
    st.fixed_dictionaries({"inside": st.lists(st.sampled_from(OPENINGS), min_size=1)}),
    st.fixed_dictionaries({"topic": topics}),
    st.fixed_dictionaries({"near": st.fixed_dictionaries({"word": words, "least": st.floats(0.1, 1.0)})}),
)
conditions = st.one_of(positives, positives.map(lambda one: {"not": one}))
clauses = st.builds(
    lambda first, others, strength, says: {"says": says, "strength": strength, "all": [first, *others]},
    positives, st.lists(conditions, max_size=2), st.integers(0, 10), st.text(max_size=20),
)  # fmt: skip
rules = st.fixed_dictionaries(
    {"clauses": st.lists(clauses, min_size=1, max_size=5), "combine": st.sampled_from(["max", "sum"])}
)
tokens = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=12)
texts = st.lists(st.tuples(tokens, st.sampled_from([None, "document", "window"])), max_size=4)

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(CONDITION_KEYS),
    st.sampled_from(["a" * 70, 10**400, 1e308, "\ud800", "(a{1000}){1000}", "(" * 150, "\x00", "x" * 5000]),
)  # fmt: skip
keys = st.one_of(
    st.sampled_from([*CONDITION_KEYS, "clauses", "all", "strength", "within", "least", "words"]), st.text(max_size=5)
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=20,
)


def fuzzed(examples: int, check: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=slow)
    @given(st.tuples(*strategies))
    def run(drawn: tuple[Any, ...]) -> None:
        check(*drawn)

    run()


def read(value: object) -> None:
    """Anything is either refused by RuleError or read as a rule that can be stored, read again and put into words."""
    try:
        found, combine = clauses_of(value, NEAR)
    except RuleError as error:
        assert str(error).isprintable() and len(str(error)) < 1000
        return
    stored = json.loads(json.dumps(rule_to_json(found, combine)))
    assert clauses_of(stored) == (found, combine)
    assert all(len(conditions_in_words(clause.conditions)) > 0 for clause in found)
    rule = Rule(0.5, [Table(("token",), {("a",): -1.0})], None, found, combine)
    assert Rule.from_json(rule.to_json()) == rule


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_any_json_is_read_or_refused(examples: int) -> None:
    fuzzed(examples, read, values)


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_a_damaged_rule_is_read_or_refused(examples: int) -> None:
    def check(rule: dict[str, Any], seed: int, value: object) -> None:
        damaged = copy.deepcopy(rule)
        damage(damaged, random.Random(seed), value)
        read(rule)
        read(damaged)

    fuzzed(examples, check, rules, st.integers(0, 10**6), values)


def damage(node: Any, rng: random.Random, value: object) -> None:
    """Puts the value somewhere into the nested lists and objects of the node, or takes something out."""
    while True:
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not places:
            return
        at = rng.choice(places)
        if not isinstance(node[at], dict | list) or rng.random() < 0.2:
            how = rng.randrange(3)
            if how == 0:
                del node[at]
            elif how == 1 or not isinstance(node, dict):
                node[at] = value
            else:
                node[rng.choice(CONDITION_KEYS)] = value
            return
        node = node[at]


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_a_stored_rule_of_a_stranger_raises_value_errors_only(examples: int) -> None:
    good = {"version": 2, "base": 0.1, "fit": None, "tables": [{"of": ["token"], "gain": 0.1, "rows": [["a", 1.0]]}]}

    def check(rule: dict[str, Any], seed: int, value: object) -> None:
        stored = copy.deepcopy({**good, **rule})
        damage(stored, random.Random(seed), value)
        try:
            found = Rule.from_json(json.dumps(stored))
        except ValueError:
            return
        assert all(0.0 <= p <= 10.0 for p in found.predict(["a", " the", "("]))

    fuzzed(examples, check, rules, st.integers(0, 10**6), values)


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_many_texts_are_predicted_as_each_by_itself_and_as_the_definition_reads(examples: int) -> None:
    def check(value: dict[str, Any], several: list[tuple[list[str], Begins | None]]) -> None:
        try:
            found, combine = clauses_of(value, NEAR)
        except RuleError:  # a word that is only white space once it is folded, and such
            return
        rule = Rule(0.0, [], None, found, combine)
        together = ManyTexts([text for text, _ in several], [begins for _, begins in several]).predict(rule).tolist()
        alone = [p for text, begins in several for p in rule.predict(text, begins)]
        plain = [p for text, begins in several for p in PlainText(text, begins).predict(found, combine)]
        assert together == alone == plain
        assert all(0.0 <= p <= 10.0 for p in together)

    fuzzed(examples, check, rules, texts)


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_many_rules_find_together_what_each_finds_by_itself(examples: int) -> None:
    """Over texts that come in blocks, with what is known of their words kept from block to block."""

    def check(values: list[dict[str, Any]], blocks: list[list[tuple[list[str], Begins | None]]]) -> None:
        read = []
        for value in values:
            with contextlib.suppress(RuleError):
                read.append(clauses_of(value, NEAR))
        forms = Forms(patterns_of(clause for found, _ in read for clause in found))
        for block in blocks:
            texts, begins = [text for text, _ in block], [begins for _, begins in block]
            together = Texts(texts, begins, forms)
            for found, combine in read:
                held, predicted = predicted_of(found, combine, together)
                alone, expected = predicted_of(found, combine, Texts(texts, begins))
                assert held.tolist() == alone.tolist() and predicted.tolist() == expected.tolist()

    fuzzed(examples, check, st.lists(rules, max_size=4), st.lists(texts, max_size=3))


@pytest.mark.parametrize("examples", [FEW, MANY])
def test_words_are_those_of_the_facts(examples: int) -> None:
    def check(several: list[tuple[list[str], Begins | None]]) -> None:
        read = Texts([text for text, _ in several])
        words = [read.forms.words.strings[code] for code in read.forms.word_of[read.form_of].tolist()]
        assert words == [fact.word for text, _ in several for fact in PlainText(text).facts]

    fuzzed(examples, check, texts)


def test_a_pattern_is_asked_of_each_different_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    matches = LinearRegex.matches
    monkeypatch.setattr(LinearRegex, "matches", lambda self, text: asked.append(text) or matches(self, text))  # type: ignore[func-returns-value]
    made = random.Random(0)
    some = [[made.choice(PIECES) for _ in range(50)] for _ in range(400)]
    regex = {"regex": "[a-z]+"}
    value = {
        "clauses": [
            {
                "strength": 1,
                "all": [regex, {"left": {**regex, "within": 32}}, {"not": {"topic": {**regex, "least": 3}}}],
            },
            {"strength": 2, "all": [{"word": ["the"]}, {"left": regex}]},
        ]
    }
    read = Texts(some)
    held = [holds(clause, read) for clause in clauses_of(value)[0]]
    assert len(asked) <= len(read.forms.tokens) + len(read.forms.words) < 5000
    assert held[1].any() and read.n_tokens == 20_000


def test_long_words_and_many_marks_are_read_as_the_definition_reads() -> None:
    """Longer ones than the stretches in which they are read: a word of 600 pieces, rows of quotes and comments."""
    made = random.Random(0)
    marks = ['"', "'", "“", "”", "«", "»", "#", "//", "\n", "a", " b", "it's", ' "x', "://", '#"', "'\n"]
    lengths = [0, 1, 70, 900, 5, 0, 200, 64, 65]
    several = [["a", "b", "c"] * 200, *([made.choice(marks) for _ in range(n)] for n in lengths)]
    read, plain = Texts(several), [PlainText(text) for text in several]
    words = [read.forms.words.strings[code] for code in read.forms.word_of[read.form_of].tolist()]
    assert words == [fact.word[:LONGEST_WORD] for text in plain for fact in text.facts]
    for number, what in ((1, "quote"), (2, "comment")):
        assert read.inside(what).tolist() == [one == number for text in plain for one in text.quoted]


def test_hostile_texts_and_rules_take_little() -> None:
    """One word of very many pieces, all tokens different, brackets that never close, every bound of a rule reached."""
    n = 5_000
    hostile = [["a"] * n, [f"t{i}(" for i in range(n)], ["(["] * n, ["\n", "'"] * (n // 2), ['"#'] * n]
    listed = [f"w{i}" for i in range(100)]
    all_left = [{"left": {"regex": r"(\w?){20}\w{1,20}", "within": 32 - i}} for i in range(5)]
    value = {
        "clauses": [
            {"strength": 1, "all": [{"regex": "(?s).*"}, *all_left]},
            {"strength": 1, "all": [{"inside": ["(", "[", "{", "quote", "comment"]}]},
            {"strength": 1, "all": [{"topic": {"lemma": listed}}, {"prefix": listed}, {"suffix": listed}]},
            {"strength": 1, "all": [{"starts": ["line", "window", "document"]}, {"class": list(CLASSES)}]},
        ]
    }
    found, combine = clauses_of(value)
    predicted = ManyTexts(hostile).predict(Rule(0.0, [], None, found, combine))
    assert len(predicted) == sum(map(len, hostile)) and np.isfinite(predicted).all()


@pytest.mark.parametrize(
    "pattern", ["(a{1000}){1000}", r"(\pL{100}){10}", "(?=a)b", "(a", r"(a)\1", "[[:foo:]]", "a{1001}"]
)
def test_patterns_that_are_no_regular_expressions_or_too_large_are_refused(pattern: str) -> None:
    with pytest.raises(RuleError, match="regular expression of RE2"):
        clauses_of({"clauses": [{"strength": 1, "all": [{"regex": pattern}]}]})
