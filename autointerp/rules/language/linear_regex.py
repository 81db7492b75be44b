"""Regular expressions that take time in proportion to the text, whoever wrote them (RE2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import re2

MAX_MEMORY = 1 << 20
"""Bytes that one pattern may take, compiled and while it runs."""
MAX_PROGRAM = 15_000
"""Instructions of a compiled pattern, and of all patterns of a set: a character costs time in proportion to them at
worst."""
MAX_TEXT = 256
"""Characters of the longest text that is matched; a longer one does not match."""
MAX_SET = 32
"""Patterns of one set."""
MAX_SET_MEMORY = 8 * MAX_MEMORY
MAX_SETS = 8
_UTF_8 = "utf-8", "replace"
"""Text may hold halves of surrogate pairs, which have no UTF-8 form."""


class LinearRegex:
    """A pattern that must match the whole text. ValueError where RE2 does not take it."""

    def __init__(self, pattern: str) -> None:
        try:
            self._compiled = re2.compile(pattern.encode(), _options(MAX_MEMORY))
        except re2.error as error:
            raise ValueError(_reason(error)) from None
        self.program_size: int = self._compiled.programsize
        if self.program_size > MAX_PROGRAM:
            raise ValueError("pattern too large")

    def matches(self, text: str) -> bool:
        return len(text) <= MAX_TEXT and self._compiled.fullmatch(text.encode(*_UTF_8)) is not None


class LinearRegexSet:
    """Patterns that are asked of a text all at once: one question takes most of its time to be put. ValueError where
    together they take too much memory."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = tuple(patterns)
        self._compiled = re2.Set.FullMatchSet(_options(MAX_SET_MEMORY))
        try:
            for pattern in patterns:
                self._compiled.Add(pattern.encode())
            self._compiled.Compile()
        except re2.error as error:
            raise ValueError(_reason(error)) from None

    def matches(self, texts: Iterable[str]) -> list[tuple[int, int]]:
        """(the number of a text, the number of a pattern that matches the whole of it), each pair once."""
        match = self._compiled.Match
        found = []
        for number, text in enumerate(texts):
            if len(text) <= MAX_TEXT:
                which = match(text.encode(*_UTF_8))
                if which:
                    found += [(number, one) for one in which]
        return found


@lru_cache(maxsize=128)
def linear_regex(pattern: str) -> LinearRegex:
    return LinearRegex(pattern)


def sets_of(patterns: Iterable[str]) -> list[LinearRegexSet]:
    """The patterns in sets. What finds no place in MAX_SETS of them is left out, and so is a pattern by itself."""
    groups: list[list[str]] = [[]]
    room = MAX_PROGRAM
    for pattern in dict.fromkeys(patterns):
        size = linear_regex(pattern).program_size
        if len(groups[-1]) == MAX_SET or size > room:
            groups.append([])
            room = MAX_PROGRAM
        groups[-1].append(pattern)
        room -= size
    return [LinearRegexSet(group) for group in groups[:MAX_SETS] if len(group) > 1]


def _options(max_memory: int) -> re2.Options:
    options = re2.Options()
    options.max_mem = max_memory
    options.log_errors = False
    options.never_capture = True
    return options


def _reason(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
