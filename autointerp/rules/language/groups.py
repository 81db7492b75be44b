"""Where each of some numbers stands in a long list of numbers."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.intp]
"""Numbers of different strings, forms or texts."""
Places = NDArray[np.intp]
"""Where they stand in a long list."""
Flags = NDArray[np.bool_]
_LONG = 64
"""Runs of so many places are copied one by one."""


class Groups:
    def __init__(self, codes: Codes, n: int) -> None:
        """`codes`: the list, of numbers below `n`."""
        self._codes, self.n = codes, n

    def places(self, chosen: Codes) -> Places:
        """Where the chosen numbers stand: those of the first number, ascending, then those of the next one."""
        if len(chosen) == 1:
            return self._order[self._ends[chosen[0]] : self._ends[chosen[0] + 1]]
        first, sizes = self._ends[chosen], self.counts(chosen)
        if int(sizes.sum()) > _LONG * len(chosen):
            spans = zip(first.tolist(), (first + sizes).tolist(), strict=True)
            return np.concatenate([self._order[start:end] for start, end in spans])
        return self._order[ranges(first, sizes)]

    def counts(self, chosen: Codes) -> Codes:
        """How often each of the chosen numbers stands in the list."""
        return self._ends[chosen + 1] - self._ends[chosen]

    @cached_property
    def _order(self) -> Places:
        # Numbers of 16 bits are sorted many times as fast as larger ones: those are sorted by their halves.
        order = np.argsort(self._codes.astype(np.uint16), kind="stable")
        for shift in range(16, (self.n - 1).bit_length() if self.n else 0, 16):
            higher = (self._codes >> shift).astype(np.uint16)
            order = order[np.argsort(higher[order], kind="stable")]
        return order

    @cached_property
    def _ends(self) -> Codes:
        """[n + 1]: where the places of each number begin in `_order`."""
        return np.concatenate([[0], np.cumsum(np.bincount(self._codes, minlength=self.n))])


def ranges(first: Codes, lengths: Codes) -> Codes:
    """The numbers from each of `first` on, as many as its length says, one range after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(first - before, lengths) + np.arange(int(lengths.sum()))


def flagged(flags: Flags) -> Places:
    """Where the flags are set. Of few among many np.flatnonzero takes twice as long."""
    whole = len(flags) // 8 * 8
    eights = flags[:whole].view(np.uint64)
    some = np.flatnonzero(eights != 0)
    within = np.flatnonzero(eights[some].view(np.bool_))
    found = some[within >> 3] * 8 + (within & 7)
    return np.append(found, np.flatnonzero(flags[whole:]) + whole) if whole < len(flags) else found


def distinct(numbers: NDArray[np.intp]) -> NDArray[np.intp]:
    """The different numbers, ascending. Sorting takes less time than np.unique, which hashes them."""
    ascending: NDArray[np.intp] = np.sort(numbers)
    return ascending[np.flatnonzero(np.diff(ascending, prepend=-1))]
