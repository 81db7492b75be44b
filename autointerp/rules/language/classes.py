"""Which tokens are of a class by themselves (token_facts.kind_of)."""

from __future__ import annotations

from collections.abc import Callable

from autointerp.rules.token_facts import kind_of

_WORDS = ("word", "Word", "WORD", "piece", "Piece", "PIECE")
_BY_KIND: dict[str, tuple[str, ...]] = {
    "word": _WORDS,
    "piece": (*_WORDS, "number", "mixed"),
    "lower": ("word", "piece"),
    "capitalised": ("Word", "Piece"),
    "capitals": ("WORD", "PIECE"),
    "number": ("number",),
    "mixed": ("mixed",),
    "newline": ("newline",),
    "space": ("space",),
    "incomplete": ("bytes",),
}
_BY_MARK = {"quote": "\"'`“”‘’«»„‹›", "bracket": "()[]{}<>"}
BEGINS_WORD = "word"
CONTINUES_WORD = "piece"
"""Of these two classes only tokens are that begin a word, or continue one."""


def in_class(name: str) -> Callable[[str], bool]:
    """Whether a token is of the class, as far as it can be told from the token alone."""
    if name.startswith("kind:"):
        kind = name.removeprefix("kind:")
        return lambda token: kind_of(token) == kind
    if name == "punctuation":
        return _is_signs
    if name in _BY_MARK:
        marks = _BY_MARK[name]
        return lambda token: _is_signs(token) and token.strip()[0] in marks
    kinds = _BY_KIND[name]
    return lambda token: kind_of(token) in kinds


def _is_signs(token: str) -> bool:
    return kind_of(token).startswith("mark:") and not any(map(str.isalnum, token))
