"""Rules of `patterns` written in the rule language predict what they predicted as tables."""

from __future__ import annotations

import inspect
import random
from pathlib import Path

import pytest
from support.known_words import WORDS, contexts, evidence
from support.table_clauses import as_clauses
from tokenizers import Tokenizer

from autointerp.records import Context, FeatureEvidence
from autointerp.rules.language.conditions import MAX_CLAUSES, MAX_WORD, Clause, Strings
from autointerp.rules.learning import learn
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule, Table
from autointerp.rules.samples import sample_of

MODEL = Path(__file__).parents[1] / "data" / "demo_model"


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """Tiles of Python source as the demo model's tokenizer cuts it."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    source = "\n".join(inspect.getsource(module) for module in (random, inspect))
    tokens = [source[start:end] for start, end in tokenizer.encode(source, add_special_tokens=False).offsets]
    return [tokens[i : i + 32] for i in range(0, len(tokens), 32)]


def fires(tokens: list[str]) -> list[float]:
    """On `self`, more strongly after a bracket, on what follows `return`, and a little on names in capitals."""
    return [
        4.0 if (t == "self" and b == "(") or b == " return" else 2.0 if t == "self" else float(t.isupper())
        for b, t in zip(["", *tokens], tokens, strict=False)
    ]


def same(rule: Rule, several: list[list[str]]) -> Rule:
    """The rule as clauses, which predicts the same by itself and among many, as it is and as it is stored."""
    written = as_clauses(rule)
    stored = Rule.from_json(written.to_json())
    assert (stored.clauses, stored.combine) == (written.clauses, "sum")
    expected = ManyTexts(several).predict(rule)
    assert ManyTexts(several).predict(stored) == pytest.approx(expected, abs=1e-9)
    alone = [p for text in several for p in written.predict(text)]
    assert alone == pytest.approx(expected.tolist(), abs=1e-9)
    return written


def test_a_rule_learned_on_source_text_is_the_same_as_clauses(texts: list[list[str]]) -> None:
    shown, held_out = texts[::4], texts[1::4]
    found = [
        Context(i, 0, "explain", "sampled", None, 5, i, f"d{i % 40}", 32 * i, text, fires(text))
        for i, text in enumerate(shown)
    ]
    rule = learn(sample_of(FeatureEvidence(1, 0, "live", 0.1, 4.0, sampled=found)))
    written = same(rule, held_out)
    assert 5 < len(written.clauses) <= MAX_CLAUSES
    raised = [weight for table in rule.tables for weight in table.weights.values() if weight > 0]
    left = [weight for table in written.tables for weight in table.weights.values() if weight > 0]
    assert sum(left) < 0.8 * sum(raised)


def test_rules_of_planted_words_are_the_same_as_clauses() -> None:
    for feature in range(len(WORDS)):
        rule = learn(sample_of(evidence(feature)))
        written = same(rule, [context.tokens for context in contexts(feature, "report")])
        assert Strings("exact", (WORDS[feature],)) in {one for clause in written.clauses for one in clause.conditions}


def test_what_no_clause_can_say_stays_in_its_table() -> None:
    long = "y" * (MAX_WORD + 1)
    rule = Rule(
        0.5,
        [
            Table(("token", "before"), {("a", "b"): 2.0, ("c", "b"): 2.0, ("a", "^"): 3.0, ("x", "b"): -1.0}),
            Table(("kind", "line"), {("word", "def"): 1.0}),
            Table(("kind", "before_kind"), {("word", "mark:("): 1.5, ("word", "newline"): 1.0}),
            Table(("folded",), {("",): 1.0, (long,): 1.0, ("e\u0301",): 1.0, ("big",): 12.0, ("z",): 1.0}),
        ],
    )  # fmt: skip
    written = same(rule, [["a", "b", "a", "b", "c"], ["^", "a", " w", "b", "x", long], ["(", " w", "\n", " z"]])
    assert [table.weights for table in written.tables] == [
        {("a", "^"): 3.0, ("x", "b"): -1.0},
        {("word", "def"): 1.0},
        {("",): 1.0, (long,): 1.0, ("e\u0301",): 1.0, ("big",): 12.0},
    ]
    assert len(written.clauses) == 4 and written.combine == "sum"


def test_a_rule_of_which_no_clause_can_say_anything_stays_as_it_is() -> None:
    for rule in (Rule(0.5), Rule(0.5, [Table(("word",), {("a",): 1.0})])):
        assert as_clauses(rule) == rule


def test_a_rule_that_has_clauses_is_refused() -> None:
    rule = Rule(0.0, [], None, [Clause((Strings("word", ("a",)),), 1.0)])
    with pytest.raises(ValueError, match="1 clauses already"):
        as_clauses(rule)


def test_a_rule_without_clauses_is_stored_as_before() -> None:
    rule = Rule(0.5, [Table(("token",), {("a",): 1.0}, 0.25)], 0.5)
    assert rule.to_json() == (
        '{"version":1,"base":0.5,"fit":0.5,"tables":[{"of":["token"],"gain":0.25,"rows":[["a",1.0]]}]}'
    )
    assert Rule.from_json(rule.to_json()) == rule
