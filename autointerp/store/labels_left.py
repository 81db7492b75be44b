"""Labels that wait for something, a million of them maybe: which they are is held, their rows are read as asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import overload

from autointerp.records import Explanation
from autointerp.store.connection import StoreConnection
from autointerp.store.named_rows import select_list

AT_ONCE = 256
"""Labels read in one query where they are looked at one by one; the last so many stay in memory."""
AT_ONCE_OF_ALL = 8192
"""Where all are gone through."""


class LabelsLeft(Sequence[Explanation]):
    """A sequence of the labels with the given ids. A label does not change once it has a text, so it does not matter
    when it is read. May be used from several threads."""

    def __init__(self, store: StoreConnection, dictionary_id: int, keys: Sequence[tuple[str, int]]) -> None:
        """`keys`: (explanation_id, feature) of every label; those that stand close together are read together."""
        self._store, self._dictionary_id, self._keys = store, dictionary_id, keys
        self._lock = threading.Lock()
        self._held: list[Explanation] = []
        self._held_from = 0

    @property
    def keys(self) -> Sequence[tuple[str, int]]:
        """(explanation_id, feature) of every label, in order."""
        return self._keys

    def among(self, others: LabelsLeft) -> LabelsLeft:
        """Those that are among the others too, in this order."""
        ids = {explanation_id for explanation_id, _ in others._keys}
        return LabelsLeft(self._store, self._dictionary_id, [key for key in self._keys if key[0] in ids])

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, place: int) -> Explanation: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Explanation]: ...
    def __getitem__(self, place: int | slice) -> Explanation | Sequence[Explanation]:
        if isinstance(place, slice):
            return LabelsLeft(self._store, self._dictionary_id, self._keys[place])
        at = range(len(self._keys))[place]
        with self._lock:
            if not 0 <= at - self._held_from < len(self._held):
                self._held_from = at - at % AT_ONCE
                self._held = self._read(self._held_from, AT_ONCE)
            return self._held[at - self._held_from]

    def __iter__(self) -> Iterator[Explanation]:
        for low in range(0, len(self._keys), AT_ONCE_OF_ALL):
            yield from self._read(low, AT_ONCE_OF_ALL)

    def _read(self, low: int, n: int) -> list[Explanation]:
        keys = self._keys[low : low + n]
        features = [feature for _, feature in keys]
        # The bounds let the scan pass over the row groups without any of them.
        found = self._store.records(
            Explanation,
            f"SELECT {select_list(Explanation)} FROM explanations WHERE dictionary_id = ? AND feature BETWEEN ? AND ? "
            "AND explanation_id IN (SELECT unnest(?::VARCHAR[]))",
            [self._dictionary_id, min(features), max(features), [key[0] for key in keys]],
        )
        by_id = {explanation.explanation_id: explanation for explanation in found}
        return [by_id[explanation_id] for explanation_id, _ in keys]
