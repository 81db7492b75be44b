"""Labels made from a feature's shape alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.records import ShapeFacts
from autointerp.rules.patterns import Rule
from autointerp.rules.shape_labels import describe


def facts(kind: str, unigram: str = " foo", places: tuple[int, int] = (1, 1), recall: float = 1.0) -> ShapeFacts:
    return ShapeFacts(0, kind, unigram, 1.0, 0.95, 0.8, 1.0, places, recall, False, kind == "rare")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (" foo", "the token ` foo`"), ("(", "the token `(`"), ("\n\n", "an empty line"), ("    ", "4 spaces"),
        (";\n", "the token `;` at a line's end"), ("`", "the backtick"),
    ],
)  # fmt: skip
def test_tokens_in_words(token: str, text: str) -> None:
    assert describe(facts("token", token))[0] == text


def test_only_tokens_and_places_explain() -> None:
    for kind in ("dense", "rare", "other"):
        assert describe(facts(kind)) == (None, None)
    assert describe(facts("position", places=(60, 64))) == ("tokens at places 60 to 64 of the text window", None)
    assert describe(facts("position", recall=0.4)) == (None, None)  # it fires on few of the tokens there
    assert describe(facts("token", "")) == (None, None)


@given(st.text(min_size=1, max_size=40))
def test_any_token_gives_one_line_and_a_rule_that_predicts_it(token: str) -> None:
    text, rule = describe(facts("token", token))
    assert text is not None and len(text.splitlines()) == 1 and len(text) < 80
    assert rule is not None
    assert Rule.from_json(rule).predict([token]) == [7.6]
