"""Tokens and groups of tokens as a person reads them: `self`, a line break, closing brackets."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from autointerp.rules.token_facts import kind_of

MAX_SHOWN = 24
"""Characters of one token shown in a label."""

_COUNTED = {" ": "space", "\t": "tab", "\r": "carriage return", "\f": "form feed"}


def _spaces(text: str) -> str:
    """White space in words: 'a line break', 'an empty line', '4 spaces'. The depth of an indentation is not named: a
    tokenizer may leave its last space to the next token, so the number would mislead."""
    if "\n" in text:
        name = "a line break" if text.count("\n") == 1 else "an empty line"
        return f"{name} with indentation" if text.rsplit("\n", 1)[1] else name
    counts = [(text.count(c), name) for c, name in _COUNTED.items() if c in text]
    if sum(n for n, _ in counts) < len(text):
        return "white space"
    return " and ".join(f"a {name}" if n == 1 else f"{n} {name}s" for n, name in counts)


def quoted(text: str) -> str:
    """`text` in backticks: shortened, on one line, without control characters. A backtick itself is put in words."""
    visible = "".join(c if c.isprintable() else " " if unicodedata.category(c) == "Zs" else "·" for c in text)
    if len(visible) > MAX_SHOWN:
        visible = visible[: MAX_SHOWN - 1] + "…"
    if visible == "`":
        return "the backtick"
    return "`" + visible.replace("`", "´") + "`"


def token_name(token: str) -> str:
    """One token in words. `self` and ` self` have one name, since a reader cannot tell them apart."""
    core = token.strip()
    if not core:
        return _spaces(token) if token else "an incomplete character"
    name = quoted(core)
    at = token.index(core)
    before, after = token[:at], token[at + len(core) :]
    if "\n" in after:
        return f"{name} at a line's end"
    return f"{name} after a line break" if "\n" in before else name


def cased(token: str) -> str:
    """`token` in lower case and without the spaces around it, line breaks kept. Tokens that give the same have one
    name, except for case."""
    core = token.strip()
    if not core:
        return token
    at = token.index(core)
    before, after = token[:at], token[at + len(core) :]
    return ("\n" if "\n" in before else "") + core.lower() + ("\n" if "\n" in after else "")


def listed(names: Sequence[str], last: str = "and") -> str:
    """'`a`, `b` and `c`', each once, since several tokens may have one name (line breaks before different indentations
    do)."""
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


_GROUPS: tuple[tuple[str, frozenset[str]], ...] = (
    ("closing brackets", frozenset(")]}")),
    ("opening brackets", frozenset("([{")),
    ("quotation marks", frozenset("\"'`“”‘’«»")),
    ("commas and full stops", frozenset(",.;")),
    ("operators", frozenset("=+-*/%<>!&|^~@")),
)

WHOLE_WORDS = frozenset({"lower-case words", "capitalised words", "words in capitals"})
WORD_GROUPS = frozenset(
    {
        "lower-case words", "capitalised words", "parts of lower-case names", "capitalised parts of names",
        "single letters", "single capital letters",
    }
)  # fmt: skip
"""Groups that nearly every text is full of: their form says little."""


def group_of(token: str) -> str:
    """The plural noun for tokens of the shape of this one."""
    kind = kind_of(token)
    core = token.strip()
    plain = {
        "newline": "line breaks",
        "space": "runs of spaces",
        "number": "numbers",
        "bytes": "parts of characters outside ASCII",
        "mark:_": "underscores",
        "mixed": "mixtures of digits and letters",
        "WORD": "words in capitals",
        "PIECE": "names in capitals",
        "Word": "capitalised words",
        "Piece": "capitalised parts of names",
        "word": "lower-case words",
        "piece": "parts of lower-case names",
    }
    if len(core) == 1 and core.isalpha():
        return "single capital letters" if core.isupper() else "single letters"
    if kind in plain:
        if core.startswith("_") and kind.lower() in ("word", "piece"):
            return "names that begin with an underscore"
        return plain[kind]
    if not core.isascii():
        return "characters outside ASCII"
    for noun, members in _GROUPS:
        if set(core) <= members:
            return noun
    return "punctuation"


def is_word(token: str) -> bool:
    """Whether the token is a word or a part of one."""
    return kind_of(token).lower() in ("word", "piece", "mixed")
