"""One string for each token of many texts, such as the token itself. What is asked of strings is asked of each
different one once, and where they stand is looked up."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property, lru_cache
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.rules.language.conditions import fold, normalised
from autointerp.rules.language.linear_regex import linear_regex

Codes = NDArray[np.intp]
"""Numbers of different strings."""
Places = NDArray[np.intp]
"""Indices of tokens in the long list of all."""
PATTERNS_KEPT = 256
"""Patterns whose matches are kept at a time: more than a rule may have. Texts are asked about by all rules of a run."""


class Column:
    def __init__(self, codes: NDArray[np.int32], strings: Sequence[str]) -> None:
        self.codes = codes
        """[tokens]: which of `strings` each has."""
        self.strings = strings
        self._matches_of = lru_cache(PATTERNS_KEPT)(lambda pattern: np.full(len(strings), -1, dtype=np.int8))
        """For each pattern, of every string: 1 if it matches, 0 if not, -1 if nobody asked yet."""

    def places(self, chosen: Codes) -> Places:
        """Where the chosen strings stand, in no order."""
        if len(chosen) == 1:
            return self._order[self._ends[chosen[0]] : self._ends[chosen[0] + 1]]
        parts = [self._order[self._ends[code] : self._ends[code + 1]] for code in chosen.tolist()]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.intp)

    def count(self, chosen: Codes) -> int:
        return int((self._ends[chosen + 1] - self._ends[chosen]).sum())

    def exactly(self, strings: Iterable[str]) -> Codes:
        return _all_of(self._by_exact, strings)

    def folded(self, strings: Iterable[str]) -> Codes:
        return _all_of(self._by_folded, strings)

    def with_prefix(self, prefixes: Collection[str]) -> Codes:
        return _within(self._ascending, prefixes)

    def with_suffix(self, suffixes: Collection[str]) -> Codes:
        return _within(self._ascending_reversed, [suffix[::-1] for suffix in suffixes])

    def matching(self, pattern: str, of: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether each of some strings, by their codes, matches the pattern without its surrounding white space. Each
        is matched once, however often it is asked about, as long as the pattern is one of those that are kept."""
        known = self._matches_of(pattern)
        asked = np.zeros(len(known), dtype=np.bool_)
        asked[of] = True
        regex = linear_regex(pattern)
        for code in np.flatnonzero(asked & (known == -1)).tolist():
            known[code] = regex.matches(self.strings[code].strip())
        return known[of] == 1

    @cached_property
    def fold_numbers(self) -> NDArray[np.int64]:
        """Of every string: the number that it shares with those that are the same when folded."""
        return stats.numbered(self._folded)[0]

    @cached_property
    def _folded(self) -> list[str]:
        return [fold(one) for one in self.strings]

    @cached_property
    def _by_folded(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for code, one in enumerate(self._folded):
            found.setdefault(one, []).append(code)
        return found

    @cached_property
    def _by_exact(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for code, one in enumerate(self.strings):
            found.setdefault(one if one.isascii() else normalised(one), []).append(code)
        return found

    @cached_property
    def _ascending(self) -> tuple[list[str], Codes]:
        return _sorted(self._folded)

    @cached_property
    def _ascending_reversed(self) -> tuple[list[str], Codes]:
        return _sorted([one[::-1] for one in self._folded])

    @cached_property
    def _order(self) -> Places:
        # Numbers of 16 bits are sorted several times as fast.
        codes = self.codes.astype(np.uint16) if len(self.strings) <= 1 << 16 else self.codes
        return np.argsort(codes, kind="stable")

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """[strings + 1]: where the places of each string begin in `_order`."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.codes, minlength=len(self.strings)))])


def _all_of(index: dict[str, list[int]], strings: Iterable[str]) -> Codes:
    return np.array([code for one in strings for code in index.get(one, ())], dtype=np.intp)


def _sorted(strings: Sequence[str]) -> tuple[list[str], Codes]:
    order = sorted(range(len(strings)), key=strings.__getitem__)
    return [strings[i] for i in order], np.array(order, dtype=np.intp)


def _within(ascending: tuple[list[str], Codes], prefixes: Collection[str]) -> Codes:
    """The codes of the strings that begin with one of the prefixes."""
    strings, codes = ascending
    spans = []
    for prefix in prefixes:
        first = bisect_left(strings, prefix)
        last = bisect_right(strings, prefix, lo=first, key=itemgetter(slice(len(prefix))))
        spans.append(codes[first:last])
    return distinct(np.concatenate(spans))


def distinct(numbers: NDArray[np.intp]) -> NDArray[np.intp]:
    """The different numbers, ascending. Sorting takes less time than np.unique, which hashes them."""
    ascending = np.sort(numbers)
    return ascending[np.flatnonzero(np.diff(ascending, prepend=-1))]
