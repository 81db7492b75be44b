"""Regular expressions that take time in proportion to the text, whoever wrote them (RE2)."""

from __future__ import annotations

from functools import lru_cache

import re2

MAX_MEMORY = 1 << 20
"""Bytes that one pattern may take, compiled and while it runs."""
MAX_PROGRAM = 15_000
"""Instructions of a compiled pattern: a character costs time in proportion to them at worst."""
MAX_TEXT = 256
"""Characters of the longest text that is matched; a longer one does not match."""


class LinearRegex:
    """A pattern that must match the whole text. ValueError where RE2 does not take it."""

    def __init__(self, pattern: str) -> None:
        options = re2.Options()
        options.max_mem = MAX_MEMORY
        options.log_errors = False
        options.never_capture = True
        try:
            self._compiled = re2.compile(pattern.encode(), options)
        except re2.error as error:
            raise ValueError(_reason(error)) from None
        if self._compiled.programsize > MAX_PROGRAM:
            raise ValueError("pattern too large")

    def matches(self, text: str) -> bool:
        # Text may hold halves of surrogate pairs, which have no UTF-8 form.
        return len(text) <= MAX_TEXT and self._compiled.fullmatch(text.encode(errors="replace")) is not None


@lru_cache(maxsize=512)
def linear_regex(pattern: str) -> LinearRegex:
    return LinearRegex(pattern)


def _reason(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
