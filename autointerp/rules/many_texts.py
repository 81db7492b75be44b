"""Applies rules to thousands of texts at once. The facts of the texts are read once, for all rules."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.records import Begins
from autointerp.rules.language.forms import Forms
from autointerp.rules.language.groups import Places
from autointerp.rules.language.matching import predicted_of
from autointerp.rules.language.token_texts import Texts
from autointerp.rules.patterns import Rule, Table
from autointerp.rules.token_facts import Facts, facts_of


class ManyTexts(Texts):
    """Texts as lists of tokens, each a context of its own. `predict` gives what Rule.predict gives for each of them."""

    def __init__(
        self, texts: Sequence[Sequence[str]], begins: Sequence[Begins | None] | None = None, forms: Forms | None = None
    ) -> None:
        super().__init__(texts, begins, forms)
        self._facts: list[Facts] | None = None
        self._numbered: dict[str, tuple[NDArray[np.int64], dict[str, int]]] = {}
        self._keys: dict[tuple[str, ...], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def predict(self, rule: Rule) -> NDArray[np.float64]:
        """The predicted activation, 0..10, of every token of every text, [tokens]."""
        totals = np.full(self.n_tokens, rule.base)
        for table in rule.tables:
            totals += self.added(table)
        if rule.clauses:
            places, strengths = predicted_of(rule.clauses, rule.combine, self)
            totals[places] += strengths
        return np.clip(totals, 0.0, 10.0)

    def claims(self, rule: Rule, at_least: float) -> tuple[Places, NDArray[np.float64]]:
        """(the tokens on which the rule predicts so much, ascending; what it predicts there). Where it has no tables,
        the other tokens are not looked at."""
        if rule.tables or not rule.clauses or min(max(rule.base, 0.0), 10.0) >= at_least:
            predicted = self.predict(rule)
            places = np.flatnonzero(predicted >= at_least)
            return places, predicted[places]
        places, strengths = predicted_of(rule.clauses, rule.combine, self)
        predicted = np.clip(rule.base + strengths, 0.0, 10.0)
        is_claimed = predicted >= at_least
        return places[is_claimed], predicted[is_claimed]

    def added(self, table: Table) -> NDArray[np.float64]:
        """What a table adds to the prediction of each token, [tokens]."""
        keys, of_token = self._keys_of(table.of)
        return self._weights(table, keys)[of_token]

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

    def _codes(self, name: str) -> tuple[NDArray[np.int64], dict[str, int]]:
        """(the number of the fact on each token, the numbers of its different values)."""
        if name not in self._numbered:
            if self._facts is None:
                self._facts = [fact for text in self.texts for fact in facts_of(text)]
            self._numbered[name] = stats.numbered(map(itemgetter(Facts._fields.index(name)), self._facts))
            if len(self._numbered) == len(Facts._fields):
                self._facts = []  # they take more memory than all numbers of them
        return self._numbered[name]

    def _keys_of(self, of: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(the different keys as numbers, ascending; the index of each token's key among them)."""
        if of not in self._keys:
            joint = np.zeros(self.n_tokens, dtype=np.int64)
            for name in of:
                codes, values = self._codes(name)
                joint = joint * max(1, len(values)) + codes
            self._keys[of] = np.unique(joint, return_inverse=True)
        return self._keys[of]

    def _weights(self, table: Table, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        """What the table adds for each of the keys."""
        weights = np.zeros(len(keys))
        if not len(keys) or not table.weights:
            return weights
        numbers = np.zeros(len(table.weights), dtype=np.int64)
        is_known = np.ones(len(table.weights), dtype=np.bool_)
        for name, values in zip(table.of, zip(*table.weights, strict=True), strict=True):
            _, index = self._codes(name)
            codes = np.array([index.get(value, -1) for value in values], dtype=np.int64)
            numbers = numbers * len(index) + codes
            is_known &= codes >= 0
        at = np.minimum(np.searchsorted(keys, numbers), len(keys) - 1)
        found = is_known & (keys[at] == numbers)
        weights[at[found]] = np.array(list(table.weights.values()))[found]
        return weights
