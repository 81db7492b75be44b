"""A rule that predicts where a feature fires, without an LLM.

The rule is a short sum of tables: predicted activation = base + table_1[facts] + table_2[facts] + ..., not below 0.
Each table maps a few facts of a token (itself, the token before, the first word of its line, ... see token_facts.py)
to a number, so a rule is data: it is stored as JSON in `Explanation.rule`, and anyone can check it against any text.
With one table of tokens it is the token-lookup baseline of Bills et al. (2023); with tables of preceding tokens it does
what Neuron-to-Graph (Foote et al. 2023) does. sentences.py says a rule in English.

learning.py learns rules from samples of tokens (samples.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import add, itemgetter
from typing import Any

import numpy as np

from autointerp.rules.token_facts import Facts, facts_of

TABLES: tuple[tuple[str, ...], ...] = (
    ("token",),
    ("folded",),
    ("token", "before"),
    ("token", "before", "before2"),
    ("before",),
    ("kind", "before"),
    ("before2",),
    ("kind", "line"),
    ("kind", "indent"),
    ("kind",),
    ("kind", "before_kind"),
    ("kind", "before_kind", "before2_kind"),
    ("kind", "bracket"),
    ("word",),
    ("kind", "last_word"),
    ("kind", "quoted"),
    ("kind", "mark"),
)
"""Tables a `patterns` rule may use."""
TOKEN_LOOKUP: tuple[tuple[str, ...], ...] = (("token",),)
RULE_VERSION = 1

Key = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Adds `weights[the values of the facts named in `of`]` to the prediction, or nothing where that key is missing."""

    of: tuple[str, ...]
    weights: dict[Key, float]
    gain: float = 0.0
    """Share of the variance that it explains beyond the tables before it, on documents it was not fitted on."""


@dataclass(frozen=True)
class Rule:
    """Predicts a feature's activation on each token of a text, as 0..10 of its maximum on the explain split."""

    base: float
    tables: list[Table] = field(default_factory=list)
    fit: float | None = None
    """Correlation on the documents of the evidence, each predicted by tables fitted without it. None: undefined."""

    def predict(self, tokens: Sequence[str]) -> list[float]:
        """One number, 0..10, per token."""
        return self.predict_from(facts_of(tokens))

    def predict_from(self, facts: Sequence[Facts]) -> list[float]:
        """`predict` from the facts of the tokens, which several rules can share."""
        totals = [self.base] * len(facts)
        for table in self.tables:
            key_of = itemgetter(*(Facts._fields.index(name) for name in table.of))
            weights: dict[Any, float] = table.weights
            if len(table.of) == 1:  # of one place itemgetter gives the value, of several a tuple
                weights = {key: weight for (key,), weight in weights.items()}
            added = map(weights.get, map(key_of, facts), repeat(0.0))
            totals = list(map(add, totals, added))
        clipped: list[float] = np.clip(np.array(totals), 0.0, 10.0).tolist()
        return clipped

    def to_json(self) -> str:
        tables = [
            {"of": list(t.of), "gain": round(t.gain, 4), "rows": [[*key, weight] for key, weight in t.weights.items()]}
            for t in self.tables
        ]
        fit = None if self.fit is None else round(self.fit, 4)
        return json.dumps(
            {"version": RULE_VERSION, "base": self.base, "fit": fit, "tables": tables},
            ensure_ascii=False,
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Rule:
        """Raises ValueError on anything that `to_json` does not write."""
        try:
            data = json.loads(text)
            if data["version"] != RULE_VERSION:
                raise ValueError(f"rule version {data['version']}, this program reads {RULE_VERSION}")
            tables = []
            for t in data["tables"]:
                of = tuple(t["of"])
                unknown = set(of) - set(Facts._fields)
                if not of or unknown or any(len(row) != len(of) + 1 for row in t["rows"]):
                    raise ValueError(f"bad table over {of}")
                tables.append(Table(of, {tuple(row[:-1]): float(row[-1]) for row in t["rows"]}, float(t["gain"])))
            return cls(float(data["base"]), tables, data["fit"])
        except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
            raise ValueError(f"not a stored rule: {error!r}") from None
