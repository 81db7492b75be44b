"""The labels that still wait for a scorer, perhaps a million. Only their ids are held; rows are read when needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from autointerp.records import Explanation
from autointerp.store.connection import StoreConnection
from autointerp.store.named_rows import select_list

AT_ONCE = 256
"""Labels that one query reads for access by index. The last query's labels stay in memory."""
AT_ONCE_OF_ALL = 8192
"""Labels that one query reads for an iteration over all."""

LabelKey = tuple[str, int]
"""(explanation_id, feature)"""


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """What is known of a label without reading it."""

    explanation_id: str
    feature: int
    model: str
    """The explainer LLM, or the name of the rule."""
    density: float
    """Of the feature."""

    @property
    def key(self) -> LabelKey:
        return self.explanation_id, self.feature


def keys_of(labels: Sequence[Explanation]) -> Sequence[LabelKey]:
    """The key of each label. None of LabelsLeft is read for it."""
    return labels.keys if isinstance(labels, LabelsLeft) else [(e.explanation_id, e.feature) for e in labels]


class LabelsLeft(Sequence[Explanation]):
    """The labels with the given ids, as a sequence. A label with a text never changes, so it does not matter when it is
    read. Several threads may use it."""

    def __init__(self, store: StoreConnection, dictionary_id: int, keys: Sequence[LabelKey]) -> None:
        """`keys`: one for every label. Neighbours in this order are read together."""
        self._store, self._dictionary_id, self._keys = store, dictionary_id, keys
        self._lock = threading.Lock()
        self._held: list[Explanation] = []
        self._held_from = 0

    @property
    def keys(self) -> Sequence[LabelKey]:
        """The keys of all labels, in order."""
        return self._keys

    def among(self, others: LabelsLeft) -> LabelsLeft:
        """The labels that are also among the others, in the order of this sequence."""
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
        # The bounds let the scan skip row groups that hold none of them.
        found = self._store.records(
            Explanation,
            f"SELECT {select_list(Explanation)} FROM explanations WHERE dictionary_id = ? AND feature BETWEEN ? AND ? "
            "AND explanation_id IN (SELECT unnest(?::VARCHAR[]))",
            [self._dictionary_id, min(features), max(features), [key[0] for key in keys]],
        )
        by_id = {explanation.explanation_id: explanation for explanation in found}
        return [by_id[explanation_id] for explanation_id, _ in keys]
