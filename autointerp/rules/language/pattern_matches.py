"""Which strings of a table match a regular expression. A string is matched once by each pattern, and by all patterns of
a set at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from autointerp.rules.language.groups import Codes, Flags
from autointerp.rules.language.linear_regex import LinearRegexSet, linear_regex

PATTERNS_KEPT = 256
"""Patterns whose matches are kept at a time: more than a rule may have. Texts are asked about by all rules of a run."""


class PatternMatches:
    def __init__(self, strings: Sequence[str]) -> None:
        """`strings`: to which more may come."""
        self._strings = strings
        self._known = lru_cache(PATTERNS_KEPT)(lambda pattern: _Known())
        self._together: dict[str, _Together] = {}

    def expect(self, sets: Sequence[LinearRegexSet]) -> None:
        """That all strings are going to be asked about, by these patterns."""
        for one in sets:
            self._together |= dict.fromkeys(one.patterns, _Together(one, self._strings))

    def of(self, pattern: str, codes: Codes) -> Flags:
        """Whether each of some strings, by their codes, matches the pattern without its surrounding white space."""
        together = self._together.get(pattern)
        if together is not None:
            return together.matches(pattern)[codes]
        return self._known(pattern).matches(pattern, self._strings, codes)


class _Known:
    """The matches of one pattern, which is asked about a string when somebody asks."""

    def __init__(self) -> None:
        self._known: NDArray[np.int8] = np.zeros(0, dtype=np.int8)
        """[strings]: 1 if it matches, 0 if not, -1 if nobody asked yet."""

    def matches(self, pattern: str, strings: Sequence[str], codes: Codes) -> Flags:
        new = len(strings) - len(self._known)
        if new:
            self._known = np.append(self._known, np.full(new, -1, dtype=np.int8))
        asked = np.zeros(len(strings), dtype=np.bool_)
        asked[codes] = True
        regex = linear_regex(pattern)
        for code in np.flatnonzero(asked & (self._known == -1)).tolist():
            self._known[code] = regex.matches(strings[code].strip())
        found: Flags = self._known[codes] == 1
        return found


class _Together:
    """The matches of all patterns of a set."""

    def __init__(self, patterns: LinearRegexSet, strings: Sequence[str]) -> None:
        self._set, self._strings = patterns, strings
        self._found = np.zeros((len(patterns.patterns), 0), dtype=np.bool_)
        """[patterns, strings]"""

    def matches(self, pattern: str) -> Flags:
        """[strings]"""
        known = self._found.shape[1]
        if known < len(self._strings):
            pairs = self._set.matches(map(str.strip, self._strings[known:]))
            at, which = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
            found = np.zeros((len(self._found), len(self._strings) - known), dtype=np.bool_)
            found[which, at] = True
            self._found = np.concatenate([self._found, found], axis=1)
        return self._found[self._set.patterns.index(pattern)]
