"""A clause in English, for clauses that nobody has put into words and for labels that follow a rule."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.rules.language.conditions import (
    Classes,
    Clause,
    Condition,
    Inside,
    Left,
    Near,
    Not,
    Regex,
    Starts,
    Strings,
    Topic,
)
from autointerp.rules.token_names import listed, quoted

_Subject = Strings | Classes | Regex | Near
SHOWN = 5
"""Words of a list that are named."""
_CLASS_NAMES = {
    "word": "beginnings of words", "piece": "continued words", "lower": "lower-case words",
    "capitalised": "capitalised words", "capitals": "words in capitals", "number": "numbers",
    "mixed": "mixtures of digits and letters", "punctuation": "punctuation", "quote": "quotation marks",
    "bracket": "brackets", "newline": "line breaks", "space": "runs of spaces",
    "incomplete": "parts of characters",
}  # fmt: skip
_INSIDE = {
    "(": "round brackets", "[": "square brackets", "{": "braces", "quote": "quotation marks", "comment": "a comment",
}  # fmt: skip


def clause_in_words(clause: Clause) -> str:
    """What it says of itself, or its conditions in words: '`rise` or `rose` directly after `prices`'."""
    return clause.says or conditions_in_words(clause.conditions)


def conditions_in_words(conditions: Sequence[Condition]) -> str:
    refused = [one.condition for one in conditions if isinstance(one, Not)]
    subject = " that are also ".join(_subject(one) for one in conditions if isinstance(one, _Subject))
    others = "".join(f" but not {_subject(one)}" for one in refused if isinstance(one, _Subject))
    places = [_place(one) for one in conditions if not isinstance(one, _Subject | Not)]
    places += [f"not {_place(one)}" for one in refused if not isinstance(one, _Subject)]
    return f"{subject or 'any token'}{others} {' and '.join(places)}".strip()


def _subject(condition: _Subject) -> str:
    match condition:
        case Strings("lemma", of):
            return f"forms of {_either(of)}"
        case Strings("prefix", of):
            return f"words that begin with {_either(of)}"
        case Strings("suffix", of):
            return f"words that end with {_either(of)}"
        case Strings(_, of):
            return _either(of)
        case Classes(of):
            return listed([_class_name(name) for name in of], "and")
        case Regex(pattern):
            return f"what matches {quoted(pattern)}"
        case Near(given, _, _):
            return f"words with meanings near to {_either(given)}"


def _place(condition: Left | Starts | Inside | Topic) -> str:
    match condition:
        case Left(test, 1):
            return f"directly after {_subject(test)}"
        case Left(test, within):
            return f"with {_subject(test)} among the {within} tokens before"
        case Starts(of):
            return f"at the start of {listed([f'a {what}' for what in of], 'or')}"
        case Inside(of):
            return f"inside {listed([_INSIDE[what] for what in of], 'or')}"
        case Topic(test, 1):
            return f"in texts with {_subject(test)}"
        case Topic(test, least):
            return f"in texts with at least {least} of {_subject(test)}"


def _class_name(name: str) -> str:
    return _CLASS_NAMES.get(name) or f"tokens of the kind {quoted(name.removeprefix('kind:'))}"


def _either(words: Sequence[str]) -> str:
    shown = [quoted(word) for word in words[:SHOWN]]
    more = len(words) - len(shown)
    return listed([*shown, f"{more} more"] if more else shown, "or")
