"""Different strings by number, to which more may come. What is found out about a string is found out once."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from operator import itemgetter

import numpy as np

from autointerp import stats
from autointerp.rules.language.conditions import fold, normalised
from autointerp.rules.language.groups import Codes, Flags
from autointerp.rules.language.pattern_matches import PatternMatches


class StringTable:
    def __init__(self) -> None:
        self.strings: list[str] = []
        self.matches = PatternMatches(self.strings)
        self._numbers = _Numbers()
        self._by_exact = _Index(self.strings, normalised)
        self._by_folded = _Index(self.strings, fold)
        self._ascending = _Ascending(self._by_folded)
        self._from_the_end = _Ascending(self._by_folded, backwards=True)
        self._flags: dict[str, Flags] = {}
        self._fold_numbers: Codes = np.zeros(0, dtype=np.intp)

    def __len__(self) -> int:
        return len(self.strings)

    def numbered(self, strings: Iterable[str], n: int) -> Codes:
        """The numbers of `n` strings; those that are new come into the table."""
        codes = np.fromiter(map(self._numbers.__getitem__, strings), dtype=np.intp, count=n)
        self.strings += islice(self._numbers, len(self.strings), None)
        return codes

    @property
    def by_exact(self) -> Mapping[str, Sequence[int]]:
        """The numbers of the strings, by what they are in one Unicode form."""
        return self._by_exact.codes

    @property
    def by_folded(self) -> Mapping[str, Sequence[int]]:
        """The numbers of the strings, by what they are when folded."""
        return self._by_folded.codes

    @property
    def folded(self) -> Sequence[str]:
        """What each string is when folded."""
        return self._by_folded.keys

    def with_prefix(self, prefixes: Collection[str]) -> Flags:
        """[strings]: which begin with one of the prefixes when folded."""
        return self._ascending.within(prefixes)

    def with_suffix(self, suffixes: Collection[str]) -> Flags:
        return self._from_the_end.within([suffix[::-1] for suffix in suffixes])

    def flags(self, name: str, test: Callable[[str], bool]) -> Flags:
        """[strings]: whether the test of this name holds on each."""
        found = self._flags.get(name, np.zeros(0, dtype=np.bool_))
        if len(found) < len(self.strings):
            found = np.append(found, np.array([bool(test(one)) for one in self.strings[len(found) :]], dtype=np.bool_))
            self._flags[name] = found
        return found

    @property
    def fold_numbers(self) -> Codes:
        """Of every string: the number that it shares with those that are the same when folded."""
        if len(self._fold_numbers) < len(self.strings):
            self._fold_numbers = stats.numbered(self.folded)[0]
        return self._fold_numbers


class _Numbers(dict[str, int]):
    """The number of each string, from 0 in the order in which they first come."""

    def __missing__(self, string: str) -> int:
        number = self[string] = len(self)
        return number


class _Index:
    """Finds strings by what `key` makes of them."""

    def __init__(self, strings: Sequence[str], key: Callable[[str], str]) -> None:
        self._strings, self._key = strings, key
        self._keys: list[str] = []
        self._codes: dict[str, list[int]] = {}

    @property
    def keys(self) -> list[str]:
        """The key of each string."""
        self._read()
        return self._keys

    @property
    def codes(self) -> dict[str, list[int]]:
        """The numbers of the strings of each key."""
        self._read()
        return self._codes

    def _read(self) -> None:
        n = len(self._keys)
        if n < len(self._strings):
            self._keys += map(self._key, self._strings[n:])
            for code, key in enumerate(self._keys[n:], n):
                self._codes.setdefault(key, []).append(code)


class _Ascending:
    """Strings in their order, read from their ends if `backwards`."""

    def __init__(self, index: _Index, backwards: bool = False) -> None:
        self._index, self._step = index, -1 if backwards else 1
        self._strings: list[str] = []
        self._order: list[int] = []
        self._codes: Codes = np.zeros(0, dtype=np.intp)

    def within(self, prefixes: Collection[str]) -> Flags:
        """[strings]: which begin with one of the prefixes."""
        self._read()
        found = np.zeros(len(self._codes), dtype=np.bool_)
        for prefix in prefixes:
            first = bisect_left(self._strings, prefix)
            last = bisect_right(self._strings, prefix, lo=first, key=itemgetter(slice(len(prefix))))
            found[self._codes[first:last]] = True
        return found

    def _read(self) -> None:
        keys, n = self._index.keys, len(self._order)
        if n < len(keys):
            read = keys if self._step == 1 else [one[::-1] for one in keys]
            self._order += range(n, len(keys))
            self._order.sort(key=read.__getitem__)  # what was in order already takes little
            self._strings = [read[code] for code in self._order]
            self._codes = np.array(self._order, dtype=np.intp)
