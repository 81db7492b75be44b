"""The label of a feature whose shape alone explains it: it fires on one token, or at one place of the text window or
of the document."""

from __future__ import annotations

from typing import Literal

from autointerp.records import ShapeFacts
from autointerp.rules.patterns import Rule, Table
from autointerp.rules.token_names import quoted, token_name

PLACE_RECALL_FROM = 0.8
"""A position feature is labelled by its places where it fires on at least this share of the tokens there. The share is
estimated from the feature's density and the stored windows, so the threshold is lower than that for tokens."""


def describe(facts: ShapeFacts) -> tuple[str | None, str | None]:
    """(text, rule) for `evidence.shape.find_shapes`."""
    return shape_text(facts), shape_rule(facts)


def shape_text(facts: ShapeFacts) -> str | None:
    """The label; None where the shape does not explain the feature. That it fires nearly everywhere (dense) or hardly
    ever (rare) does not explain it."""
    if facts.kind == "token" and facts.unigram:
        return _token_text(facts.unigram)
    if facts.kind == "position" and facts.places is not None and (facts.place_recall or 0.0) >= PLACE_RECALL_FROM:
        return _place_text(*facts.places, facts.place_in)
    return None


def shape_rule(facts: ShapeFacts) -> str | None:
    """JSON of the rule that the label states: the feature's mean activation on its token, 0 elsewhere. A rule sees
    the text alone and no places in it, so a label about places has no rule."""
    if facts.kind != "token" or not facts.unigram:
        return None
    weight = round(min(10.0, 10.0 * facts.unigram_strength * (facts.unigram_recall or 0.0)), 3)
    return Rule(0.0, [Table(("token",), {(facts.unigram,): weight})]).to_json()


def _token_text(token: str) -> str:
    """Spaces belong to a token and are shown with it: ` foo` and `foo` are two tokens."""
    name = token_name(token) if not token.strip() or "\n" in token else quoted(token)
    return f"the token {name}" if name.startswith("`") else name


def _place_text(first: int, last: int, place_in: Literal["window", "document"]) -> str:
    whole = "the text window" if place_in == "window" else "a document"
    if first == last:
        at_start = f"the first token of {whole} (place 1)"
        return at_start if first == 1 else f"the token at place {first} of {whole}"
    if first == 1:
        return f"the first {last} tokens of {whole} (places 1 to {last})"
    return f"tokens at places {first} to {last} of {whole}"
