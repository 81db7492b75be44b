"""The conditions of a clause as plain frozen records, and the bounds of the rule language.

A clause holds on a token where all its conditions hold. Records that this package made are normalised: parsing.py
makes them from what an LLM or a store wrote, matching.py says where they hold, wording.py puts them into words.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

from autointerp.rules.token_facts import folded

MAX_CLAUSES = 24
MAX_CONDITIONS = 6
"""In one clause."""
MAX_WORDS = 100
"""In one list."""
MAX_WORD = 64
"""Characters of a word."""
MAX_REGEX = 200
"""Characters of a regular expression."""
MAX_SAYS = 200
"""Characters of what a clause says."""
MAX_JSON = 32 * 1024
"""Bytes of the clauses of a rule as JSON."""
MAX_WITHIN = 32
"""Tokens to the left that a condition may look at."""
MAX_STRENGTH = 10.0

Combine = Literal["max", "sum"]

StringKey = Literal["word", "token", "exact", "lemma", "prefix", "suffix"]
STRING_KEYS: tuple[StringKey, ...] = ("word", "token", "exact", "lemma", "prefix", "suffix")
CLASSES = (
    "word", "piece", "lower", "capitalised", "capitals", "number", "mixed", "punctuation", "quote", "bracket",
    "newline", "space", "incomplete",
)  # fmt: skip
"""What `class` may name, besides `kind:` and a kind of token_facts.kind_of.

word: begins a word; piece: continues one; lower, capitalised, capitals: by the case of its letters; mixed: digits and
letters; newline, space: white space with a line break in it or without; incomplete: a part of a character."""
KINDS = ("newline", "space", "number", "word", "Word", "WORD", "piece", "Piece", "PIECE", "mixed", "bytes")
"""The kinds of token_facts.kind_of, besides `mark:` and a character."""
PLACES = ("line", "document", "window")
"""What a token may be the first of."""
OPENINGS = ("(", "[", "{", "quote", "comment")
"""What a token may stand inside of."""


@dataclass(frozen=True)
class Strings:
    """The token, or the word up to it, is one of some strings."""

    key: StringKey
    of: tuple[str, ...]


@dataclass(frozen=True)
class Classes:
    of: tuple[str, ...]


@dataclass(frozen=True)
class Regex:
    pattern: str


Test = Strings | Classes | Regex
"""What can be asked of a token by itself."""


@dataclass(frozen=True)
class Left:
    """The test holds on at least one of the tokens before this one, at most `within` away."""

    test: Test
    within: int = 1


@dataclass(frozen=True)
class Starts:
    """The token is the first one, white space apart, of one of these."""

    of: tuple[str, ...]


@dataclass(frozen=True)
class Inside:
    """One of these was opened to the left in the text, and the token does not close it."""

    of: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """At least so many of the words stand in the text. A pattern counts different tokens."""

    test: Test
    least: int = 1


@dataclass(frozen=True)
class Near:
    """The word is one of `words`: those given, and those near to them in the model's input embedding."""

    given: tuple[str, ...]
    least: float
    words: tuple[str, ...]


Positive = Strings | Classes | Regex | Left | Starts | Inside | Topic | Near


@dataclass(frozen=True)
class Not:
    condition: Positive


Condition = Positive | Not


@dataclass(frozen=True)
class Clause:
    """Predicts `strength` where all of its conditions hold."""

    conditions: tuple[Condition, ...]
    strength: float
    says: str = ""
    """What it means in words; empty where nobody said it (see wording.py)."""


def normalised(text: str) -> str:
    """The text in one Unicode form, in which all strings are compared."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def fold(text: str) -> str:
    """The text as all conditions but `exact` and `regex` compare it: without surrounding white space and case too."""
    return normalised(folded(text))
