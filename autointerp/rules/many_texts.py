"""Applies rules to thousands of texts at once. The facts of the texts are read once, for all rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from autointerp.rules.patterns import Key, Rule, Table
from autointerp.rules.token_facts import Facts, facts_of


def numbered(values: Iterable[str]) -> tuple[NDArray[np.int64], dict[str, int]]:
    """(the number of each value, the numbers of the different ones), in the order in which they first come."""
    index: dict[str, int] = {}
    return np.array([index.setdefault(value, len(index)) for value in values], dtype=np.int64), index


class ManyTexts:
    """Texts as lists of tokens, each a context of its own. `predict` gives what Rule.predict gives for each of them."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        facts = [fact for text in texts for fact in facts_of(text)]
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        """[texts + 1]: where each text's tokens begin in the long list of all."""
        self._codes: dict[str, NDArray[np.int64]] = {}
        self._values: dict[str, dict[str, int]] = {}
        for place, name in enumerate(Facts._fields):
            self._codes[name], self._values[name] = numbered(map(itemgetter(place), facts))
        self._keys: dict[tuple[str, ...], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return len(self.starts) - 1

    def predict(self, rule: Rule) -> NDArray[np.float64]:
        """The predicted activation, 0..10, of every token of every text, [tokens]."""
        totals = np.full(int(self.starts[-1]), rule.base)
        for table in rule.tables:
            keys, of_token = self._keys_of(table.of)
            totals += self._weights(table, keys)[of_token]
        return np.clip(totals, 0.0, 10.0)

    def peaks(self, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
        """The largest of `predicted` [tokens] in each text, [texts]; 0 for an empty text."""
        if not len(self):
            return np.zeros(0)
        filled = self.starts[:-1] < self.starts[1:]
        found = np.zeros(len(self))
        if filled.any():
            found[filled] = np.maximum.reduceat(predicted, self.starts[:-1][filled])
        return found

    def sums(
        self, predicted: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(number of tokens, sum of `predicted`, sum of its squares) of each text, each [texts]."""
        first, last = self.starts[:-1], self.starts[1:]
        running = [np.concatenate([[0.0], np.cumsum(values)]) for values in (predicted, predicted**2)]
        total, squares = (ends[last] - ends[first] for ends in running)
        return (last - first).astype(np.float64), total, np.maximum(squares, 0.0)

    def _keys_of(self, of: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(the different keys as numbers, ascending; the index of each token's key among them)."""
        if of not in self._keys:
            joint = np.zeros(int(self.starts[-1]), dtype=np.int64)
            for name in of:
                joint = joint * max(1, len(self._values[name])) + self._codes[name]
            self._keys[of] = np.unique(joint, return_inverse=True)
        return self._keys[of]

    def _weights(self, table: Table, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        """What the table adds for each of the keys."""
        weights = np.zeros(len(keys))
        for key, weight in table.weights.items():
            number = self._number(table.of, key)
            if number is not None:
                at = int(np.searchsorted(keys, number))
                if at < len(keys) and keys[at] == number:
                    weights[at] = weight
        return weights

    def _number(self, of: tuple[str, ...], key: Key) -> int | None:
        number = 0
        for name, value in zip(of, key, strict=True):
            code = self._values[name].get(value)
            if code is None:
                return None
            number = number * len(self._values[name]) + code
        return number
