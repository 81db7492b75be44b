from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.known_words import RAW_MAX, WORDS, contexts, evidence, with_tokens

from autointerp import jackknife
from autointerp.ask.explanation_row import MAX_LABEL
from autointerp.ask.scale import scaled
from autointerp.records import Context, FeatureEvidence, PromotedToken
from autointerp.rules import samples
from autointerp.rules.labels import by_patterns, by_token_lookup
from autointerp.rules.learning import MAX_ROWS, learn, token_lookup
from autointerp.rules.patterns import Rule
from autointerp.rules.samples import sample_of, whole_words
from autointerp.rules.sentences import lookup_sentence, sentence
from autointerp.rules.token_facts import facts_of, kind_of
from autointerp.rules.token_names import group_of, listed, quoted, token_name


def tokenized(text: str) -> list[str]:
    """A text with | between its tokens."""
    return text.split("|")


def made(active: dict[str, list[str]], silent: list[str], promoted: list[str] | None = None) -> FeatureEvidence:
    """Evidence from texts with | between tokens; `*` after a token marks it as active (`**`: half as much)."""

    def context(i: int, kind: str, text: str) -> Context:
        tokens = tokenized(text)
        values = [2.0 if t.endswith("**") else 4.0 if t.endswith("*") else 0.0 for t in tokens]
        return Context(
            i, 0, "explain", kind, None, None, i, f"{kind}{i}", 10 * i, [t.rstrip("*") for t in tokens], values  # type: ignore[arg-type]
        )  # fmt: skip

    found = {kind: [context(i, kind, t) for i, t in enumerate(texts)] for kind, texts in active.items()}
    return FeatureEvidence(
        1, 0, "live", 0.1, 4.0, top=found.get("top", []), sampled=found.get("sampled", []),
        negatives=[context(100 + i, "negative", t) for i, t in enumerate(silent)],
        promoted=[PromotedToken(t, 9.0 - i, i, 1) for i, t in enumerate(promoted or [])],
    )  # fmt: skip


def label_of(e: FeatureEvidence) -> str | None:
    sample = sample_of(e)
    return sentence(sample, learn(sample))


# --- facts ----------------------------------------------------------------------------------------------------------


def test_facts_look_back_only() -> None:
    tokens = tokenized("\n|    |def| imp|ort|_|all|(|self|,| x|):| #| a| (|note|\n|'|it|'|[|0|]")
    whole = facts_of(tokens)
    for n in range(len(tokens)):
        assert facts_of(tokens[:n]) == whole[:n]


def test_facts_of_a_line_of_code() -> None:
    tokens = tokenized("x|\n       | def| run|_|all|(|self|):|  # (|note|\n|'|it|'|[|0")
    at = dict(zip(tokens, facts_of(tokens), strict=True))
    assert at["x"].line == "?" and at["x"].indent == "?" and at["x"].before == "^"
    assert at["all"].word == "run_all" and at["all"].line == "def" and at["all"].indent == "8"
    assert at["self"].bracket == "run_all(" and at["self"].mark == "("
    assert at["self"].before == "(" and at["self"].before2 == "all" and at["self"].last_word == "run_all"
    assert at["):"].bracket == ""
    assert at["note"].quoted == "#" and at["note"].bracket == ""
    assert at["it"].quoted == "'" and at["["].quoted == ""
    assert at["0"].kind == "number" and at["0"].bracket == "it["


def test_words_end_before_a_space_where_the_tokenizer_puts_it_there() -> None:
    """The tokens of a `</w>` tokenizer: the same words and shapes as with the space in front."""
    behind = facts_of(tokenized("the |key|board |( |keys "))
    assert [fact.word for fact in behind] == ["the", "key", "keyboard", "( ", "keys"]
    assert [fact.last_word for fact in behind] == ["^", "the", "the", "keyboard", "keyboard"]
    assert [fact.kind for fact in behind] == ["word", "piece", "word", "mark:(", "word"]
    assert facts_of(tokenized("ab|c("))[-1].last_word == "abc"


@pytest.mark.parametrize(
    ("token", "kind", "group"),
    [
        (" self", "word", "lower-case words"), ("elf", "piece", "parts of lower-case names"),
        (" Error", "Word", "capitalised words"), (" HTTP", "WORD", "words in capitals"), ("42", "number", "numbers"),
        ("\n    ", "newline", "line breaks"), ("  ", "space", "runs of spaces"),
        ("", "bytes", "parts of characters outside ASCII"),
        ("__", "mark:_", "underscores"), ("):", "mark:)", "punctuation"), (")", "mark:)", "closing brackets"),
        (" ==", "mark:=", "operators"), ("0x", "mixed", "mixtures of digits and letters"),
        ("東京", "piece", "parts of lower-case names"),
        ("_name", "piece", "names that begin with an underscore"), (" T", "Word", "single capital letters"),
    ],
)  # fmt: skip
def test_kinds_and_groups(token: str, kind: str, group: str) -> None:
    assert (kind_of(token), group_of(token)) == (kind, group)


def test_names() -> None:
    assert token_name(" self") == token_name("self") == "`self`"
    assert token_name("\n") == "a line break" and token_name("\n       ") == "a line break with indentation"
    assert token_name("\n\n") == "an empty line" and token_name("   ") == "3 spaces"
    assert token_name("):\n") == "`):` at a line's end" and token_name("\n#") == "`#` after a line break"
    assert token_name("") == "an incomplete character" and token_name("\x0b") == "white space"
    assert quoted("`") == "the backtick" and quoted("a`b\x00") == "`a´b·`"
    assert len(quoted("x" * 100)) < 30


def test_whole_words() -> None:
    assert whole_words(["(", "key", "board", "_", "x", " (", "(y", "\n"]) == [
        "", "keyboard_x", "keyboard_x", "keyboard_x", "keyboard_x", "", "y", "",
    ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=20), st.integers(0, 2**20 - 1))
def test_any_text_can_be_described(tokens: list[str], active: int) -> None:
    """No text breaks the facts, the rule or the sentence, and a rule survives its own JSON."""
    values = [float(active >> i & 1) * (i + 1) for i in range(len(tokens))]
    top = Context(0, 0, "explain", "top", None, 9, 0, "a", 0, tokens, values)
    other = Context(1, 0, "explain", "sampled", None, 3, 0, "b", 0, tokens[::-1], values[::-1])
    e = FeatureEvidence(1, 0, "live", 0.1, max(values), top=[top], sampled=[other])
    sample = sample_of(e)
    rule = learn(sample)
    text = sentence(sample, rule)
    assert text is None or (0 < len(text) <= MAX_LABEL and text.isprintable())
    if not any("\ud800" <= c <= "\udfff" for c in "".join(tokens)):
        assert Rule.from_json(rule.to_json()).predict(tokens) == rule.predict(tokens)
    assert all(0.0 <= p <= 10.0 for p in rule.predict(tokens))


# --- rules ----------------------------------------------------------------------------------------------------------


def held_out(rule: Rule, feature: int) -> float:
    found = contexts(feature, "report")
    value = jackknife.pooled_correlation(
        [scaled(c.activations, RAW_MAX) for c in found],
        [rule.predict(c.tokens) for c in found],
        [c.document for c in found],
    ).value
    assert value is not None
    return value


def test_a_planted_rule_is_found_and_beats_token_lookup() -> None:
    """The word fires twice as strongly after ` the`: a table of tokens cannot know, one of pairs does."""
    for feature in range(len(WORDS)):
        sample = sample_of(evidence(feature))
        rule, lookup = learn(sample), token_lookup(sample)
        assert held_out(rule, feature) > 0.97
        assert 0.8 < held_out(lookup, feature) < held_out(rule, feature) - 0.02
        assert rule.fit is not None and rule.fit > 0.95


def test_an_unseen_token_falls_back_on_what_stands_before() -> None:
    """Whatever follows ` import` fires; a name never seen does too."""
    names = ["os", "sys", "re", "json", "math", "abc", "cmd", "csv"]
    e = made(
        {"top": [f"x|\n|import| {n}*|\n|y| =| {n}|(|1|)" for n in names]},
        [f"z| =| {n}|.|f|(|2|)|\n" for n in names] * 2,
    )
    rule = learn(sample_of(e))
    tokens = tokenized("a|\n|import| zipfile|\n|b| =| zipfile")
    predicted = rule.predict(tokens)
    assert predicted[3] > 3 and max(predicted[:3] + predicted[4:]) < 1.5
    assert max(token_lookup(sample_of(e)).predict(tokens)) < 1.5


def test_nothing_to_learn() -> None:
    assert learn(sample_of(FeatureEvidence(1, 0, "dead", 0.0, 0.0))).predict(["a", "b"]) == [0.0, 0.0]
    silent = made({}, ["a|b|c"])
    assert learn(sample_of(silent)).tables == [] and token_lookup(sample_of(silent)).tables == []
    assert label_of(silent) is None and lookup_sentence(token_lookup(sample_of(silent))) is None


def test_noise_is_not_learned() -> None:
    rng = np.random.default_rng(0)
    vocabulary = [f" w{i}" for i in range(50)]

    def noise(i: int, kind: str) -> Context:
        tokens = [vocabulary[j] for j in rng.integers(0, 50, size=32)]
        return Context(i, 0, "explain", kind, None, None, i, f"d{i}", 0, tokens, list(rng.random(32)))  # type: ignore[arg-type]

    e = FeatureEvidence(
        1, 0, "live", 0.1, 1.0, [noise(i, "top") for i in range(20)], [noise(i, "sampled") for i in range(20)]
    )
    rule = learn(sample_of(e))
    assert len(rule.tables) <= 1 and (rule.fit is None or rule.fit < 0.2)


def test_evidence_of_a_single_document_still_gives_a_rule() -> None:
    e = evidence(0)
    for kind in (e.top, e.sampled, e.negatives):
        kind[:] = [replace(c, document="only") for c in kind]
    rule = learn(sample_of(e))
    assert rule.fit is None and len(rule.tables) == 1
    assert held_out(rule, 0) > 0.8


def test_a_context_that_is_both_top_and_sampled_counts_once() -> None:
    e = evidence(0)
    e.sampled[0] = replace(e.top[0], kind="sampled", context_id=999)
    assert len(sample_of(e).facts) == 16 * (8 + 8 + 8 - 1)


def test_learning_is_the_same_every_time() -> None:
    assert learn(sample_of(evidence(1))).to_json() == learn(sample_of(evidence(1))).to_json()


def test_a_rule_is_checkable_json() -> None:
    rule = learn(sample_of(evidence(0)))
    data = json.loads(rule.to_json())
    assert set(data) == {"version", "base", "fit", "tables"}
    assert [" alpha", " the"] in [
        row[:2] for t in data["tables"] if t["of"] == ["token", "before"] for row in t["rows"]
    ]
    for bad in ("{}", "[]", "nonsense", '{"version": 99}', json.dumps({**data, "tables": [{"of": ["x"], "rows": []}]})):
        with pytest.raises(ValueError, match="rule|table"):
            Rule.from_json(bad)


def test_tables_are_bounded() -> None:
    big = made({"top": [f" w{i}*| v{i}|{i}*" for i in range(400)]}, ["a|b"])
    rule = learn(sample_of(big))
    assert all(len(t.weights) <= MAX_ROWS for t in rule.tables)


# --- sentences ------------------------------------------------------------------------------------------------------

FILL = [
    "print|(|x|)|\n|y| =| 3",
    "for| i| in| xs|:|\n| a|.|b",
    "return| None|\n|z| =| f|(|y|)",
    "# a comment|\n|while| True|:",
]


def test_label_of_one_token_in_one_place() -> None:
    e = made(
        {
            "top": [f"def| f{i}|(|self*|,| a|):|\n" for i in range(8)],
            "sampled": [f" def| g{i}|(|self*|):|\n" for i in range(8)],
        },
        [f"x{i}| =| self|.|y|\n|    |self|.|z" for i in range(10)] + FILL,
    )
    assert label_of(e) == "the word `self` after `(`; always followed by `):` or `,`"


def test_label_of_what_follows_a_word() -> None:
    names = ["os", "sys", "re", "json", "math", "abc", "cmd", "csv"]
    e = made(
        {"top": [f"x|\n|import| {n}*|\n|y| =| {n}|(|1|)" for n in names]},
        [f"z| =| {n}|.|f|(|2|)|\n" for n in names] * 2,
    )
    assert str(label_of(e)).startswith("what follows `import`, for example ")


def test_label_of_a_part_of_words() -> None:
    words = ["per|miss*|ion", " miss*|ing", " miss*|ion", " dis|miss*|ed", " miss*|es", " miss*|iles"]
    label = label_of(made({"top": [f"a| b|{w}| c|\n" for w in words]}, FILL * 4))
    assert str(label).startswith("`miss` (in `")
    whole = label_of(made({"top": [f"a{i}| b| excep|tion*| c|\n" for i in range(6)]}, FILL * 4))
    assert str(whole).startswith("the word `exception`")


def test_label_of_groups() -> None:
    numbers = label_of(made({"top": [f"x| =| |{n}*|\n" for n in range(11, 41)]}, FILL * 8))
    assert str(numbers).startswith("numbers (such as ")
    lines = label_of(made({"top": [f"x{i}|:|\n       *| y|\n|z" for i in range(12)]}, ["a|\n|b|\n|c"] * 8))
    assert str(lines).startswith("line breaks followed by 8 spaces of indentation")
    start = label_of(
        made({"top": [f"a{i}|\n|with*| x|:|\n" for i in range(9)]}, [f"go| {i}| with| you|\n" for i in range(12)])
    )
    assert str(start).startswith("the word `with` at the start of a line")


def test_promoted_tokens_are_named_where_they_do_follow() -> None:
    texts = [f"a{i}| key*|{n}| x" for i, n in enumerate(["board", "word", "s"] * 5)]
    evidence = made({"top": texts}, FILL * 4, ["board", "word", "zzz"])
    found = by_patterns(evidence)
    assert found.output == "`board` and `word`" and found.side == "input"
    # Judges of where it fires read the text alone, which says nothing of what comes next.
    assert found.text == label_of(evidence) == label_of(made({"top": texts}, FILL * 4, ["zzz", "yyy"]))
    assert by_patterns(made({"top": texts}, FILL * 4, ["zzz", "yyy"])).output is None


def test_a_weak_rule_says_so() -> None:
    rng = np.random.default_rng(1)
    texts = [
        "|".join(f" w{j}" + ("*" if rng.random() < 0.15 else "") for j in rng.integers(0, 12, 16)) for _ in range(20)
    ]
    label = label_of(made({"top": texts}, FILL))
    assert label is None or label.startswith("loosely: ")


def test_lookup_sentence() -> None:
    rule = token_lookup(sample_of(evidence(0)))
    assert lookup_sentence(rule) == "tokens most active on average: `alpha`"


def test_a_token_lookup_reads_nothing_around_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading it takes most of the time, and every label has a control by token_lookup."""
    expected = by_token_lookup(evidence(0))
    monkeypatch.delattr(samples, "facts_of")
    monkeypatch.delattr(samples, "whole_words")
    assert by_token_lookup(evidence(0)) == expected
    with pytest.raises(NameError):
        by_patterns(evidence(0))


def test_hostile_tokens_in_a_label() -> None:
    e = made({"top": ["a|\x1b[31m`evil`\u202e*|b"] * 2 + [f"c{i}|\x1b[31m`evil`\u202e*" for i in range(9)]}, FILL * 2)
    label = label_of(e)
    assert label is not None and label.isprintable()


def test_speed() -> None:
    """A bulk run labels tens of thousands of features this way."""
    import time

    base = evidence(0)
    many = replace(base, top=[with_tokens(c, c.tokens * 2, c.activations * 2) for c in (*base.top, *base.sampled)] * 2)
    start = time.process_time()
    for _ in range(5):
        label_of(many)
    assert (time.process_time() - start) / 5 < 0.25


def test_a_name_that_several_tokens_share_is_said_once() -> None:
    """Line breaks with different indentation are different tokens of one name."""
    assert listed(["a line break", "`x`", "a line break"]) == "a line break and `x`"
    tokens = ["a", ":", "\n    ", "b", ":", "\n        ", "c", ":", "\n            ", "d", "=", "="]
    values = [0.0, 4.0, 5.0, 0.0, 4.0, 5.0, 0.0, 4.0, 5.0, 0.0, 0.0, 0.0]
    top = [Context(i, 0, "explain", "top", None, 9, i, f"d{i}", 2, tokens, values) for i in range(6)]
    e = FeatureEvidence(1, 0, "live", 0.1, 5.0, top=top)
    sample = sample_of(e)
    text = sentence(sample, learn(sample))
    assert text is not None and text.count("a line break with indentation") == 1
