"""Near words as a rule uses them: what is known of a word is known in part of its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Smoother:
    """Adds to each of some words a share of what its near words have."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    """The word at rows[i] is given shares[i] of what the word at columns[i] has."""
    shares: NDArray[np.float64]

    def spread(self, summed: NDArray[np.float64]) -> NDArray[np.float64]:
        """[words, n]: `summed` [words, n] with the shares of near words added."""
        words, n = summed.shape
        places = (self.rows[:, None] * n + np.arange(n)).ravel()
        added = (self.shares[:, None] * summed[self.columns]).ravel()
        return summed + np.bincount(places, weights=added, minlength=words * n).reshape(words, n)


class NearWords:
    """The nearest words of each word, folded, with their cosines."""

    def __init__(self, near: Mapping[str, Sequence[tuple[str, float]]]) -> None:
        self._words = list(near)
        self._index = {word: i for i, word in enumerate(self._words)}
        pairs = [
            (i, self._index[other], cosine)
            for i, found in enumerate(near.values())
            for other, cosine in found
            if cosine > 0.0 and other in self._index
        ]
        words, others, cosines = zip(*pairs, strict=True) if pairs else ((), (), ())
        self._others, self._cosines = np.array(others, dtype=np.int64), np.array(cosines, dtype=np.float64)
        self._starts = np.searchsorted(np.array(words, dtype=np.int64), np.arange(len(self._words) + 1))

    def __bool__(self) -> bool:
        return bool(self._words)

    def of(self, word: str) -> list[tuple[str, float]]:
        """The words near to this one and their cosines, nearest first; none for an unknown word."""
        at = self._index.get(word)
        if at is None:
            return []
        span = slice(*self._starts[at : at + 2])
        return [
            (self._words[i], c) for i, c in zip(self._others[span].tolist(), self._cosines[span].tolist(), strict=True)
        ]

    def smoothers(self, words: Sequence[str], powers: Sequence[float]) -> Iterator[Smoother]:
        """For each power, the smoother over `words` whose shares are the cosines to that power."""
        known = np.array([self._index.get(word, -1) for word in words], dtype=np.int64)
        place = np.full(len(self._words) + 1, -1, dtype=np.int64)  # the last entry is that of unknown words
        place[known] = np.arange(len(words))
        place[-1] = -1
        at = np.flatnonzero(known >= 0)
        counts = np.diff(self._starts)[known[at]]
        rows = np.repeat(at, counts)
        entries = np.repeat(self._starts[known[at]] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        columns = place[self._others[entries]]
        here = columns >= 0
        for power in powers:
            yield Smoother(rows[here], columns[here], self._cosines[entries][here] ** power)

    def handed_on(self, corrections: Mapping[str, float]) -> dict[str, float]:
        """The corrections of all words near to some whose corrections are known: means over those, by cosine, drawn
        towards 0."""
        found: dict[str, list[tuple[float, float]]] = {}
        for word, correction in corrections.items():
            for other, cosine in self.of(word):
                found.setdefault(other, []).append((cosine, correction))
        return {
            other: sum(c * value for c, value in pairs) / (sum(c for c, _ in pairs) + 1.0)
            for other, pairs in found.items()
        }


NO_NEAR_WORDS = NearWords({})
