"""A rule that predicts where a feature fires, without an LLM.

The rule is a short sum of tables: predicted activation = base + table_1[facts] + table_2[facts] + ..., not below 0.
Each table maps a few facts of a token (itself, the token before, the first word of its line, ... see token_facts.py)
to a number, so a rule is data: it is stored as JSON in `Explanation.rule`, and anyone can check it against any text.
With one table of tokens it is the token-lookup baseline of Bills et al. (2023); with tables of preceding tokens it does
what Neuron-to-Graph (Foote et al. 2023) does. sentences.py says a rule in English.

learning.py learns rules from samples of tokens (samples.py).

Beside tables a rule may have clauses of the rule language (language/conditions.py), which say where it fires in terms
that people and LLMs use: predicted activation = base + tables + the strongest, or the sum, of the clauses that hold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from operator import add, itemgetter
from typing import Any, NoReturn

import numpy as np

from autointerp.errors import shown
from autointerp.records import Begins
from autointerp.rules.language.conditions import Clause, Combine
from autointerp.rules.language.matching import predicted_of
from autointerp.rules.language.parsing import clauses_of, rule_to_json
from autointerp.rules.language.token_texts import Texts
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
"""The version of rules without clauses, of which there are very many: they stay as they were written."""
CLAUSES_VERSION = 2
MAX_RULE_JSON = 8 * 1024 * 1024
"""Characters of a stored rule. The largest that is learned has a tenth of them."""
MAX_TABLES_READ = 64

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

    clauses: list[Clause] = field(default_factory=list)
    combine: Combine = "sum"
    """What clauses that hold on one token predict together: their largest strength, or the sum."""

    def predict(self, tokens: Sequence[str], begins: Begins | None = None) -> list[float]:
        """One number, 0..10, per token of a text. `begins`: what its first token begins, if that is known."""
        return self.predict_from(facts_of(tokens) if self.tables else [], Texts([tokens], [begins]))

    def predict_from(self, facts: Sequence[Facts], texts: Texts) -> list[float]:
        """`predict` for all tokens of some texts. Their facts (which only tables need) are read once for many rules."""
        totals = [self.base] * texts.n_tokens
        for table in self.tables:
            key_of = itemgetter(*(Facts._fields.index(name) for name in table.of))
            weights: dict[Any, float] = table.weights
            if len(table.of) == 1:  # of one place itemgetter gives the value, of several a tuple
                weights = {key: weight for (key,), weight in weights.items()}
            added = map(weights.get, map(key_of, facts), repeat(0.0))
            totals = list(map(add, totals, added))
        predicted = np.array(totals)
        if self.clauses:
            places, strengths = predicted_of(self.clauses, self.combine, texts)
            predicted[places] += strengths
        clipped: list[float] = np.clip(predicted, 0.0, 10.0).tolist()
        return clipped

    def to_json(self) -> str:
        tables = [
            {"of": list(t.of), "gain": round(t.gain, 4), "rows": [[*key, weight] for key, weight in t.weights.items()]}
            for t in self.tables
        ]
        fit = None if self.fit is None else round(self.fit, 4)
        version = CLAUSES_VERSION if self.clauses else RULE_VERSION
        clauses = rule_to_json(self.clauses, self.combine) if self.clauses else {}
        return json.dumps(
            {"version": version, "base": self.base, "fit": fit, "tables": tables, **clauses},
            ensure_ascii=False,
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Rule:
        """Raises ValueError on anything that `to_json` does not write. The text may be a stranger's."""
        if len(text) > MAX_RULE_JSON:
            raise ValueError(f"a rule of {len(text)} characters; {MAX_RULE_JSON} are the most")
        try:
            data = json.loads(text, parse_constant=_no_number)
            version = data["version"]
            if version not in (RULE_VERSION, CLAUSES_VERSION):
                raise ValueError(f"rule version {version!r}, this program reads {RULE_VERSION} and {CLAUSES_VERSION}")
            if len(data["tables"]) > MAX_TABLES_READ:
                raise ValueError(f"a rule of {len(data['tables'])} tables; {MAX_TABLES_READ} are the most")
            tables = [_table(t) for t in data["tables"]]
            rule = cls(_finite(data["base"]), tables, None if data["fit"] is None else _finite(data["fit"]))
            if version == RULE_VERSION:
                return rule
            clauses, combine = clauses_of({key: data[key] for key in ("clauses", "combine")})
            return replace(rule, clauses=clauses, combine=combine)
        except (KeyError, TypeError, IndexError, AttributeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"not a stored rule: {type(error).__name__}: {error!s:.200}") from None


def _table(value: Any) -> Table:
    of = tuple(value["of"])
    rows, unknown = value["rows"], set(of) - set(Facts._fields)
    is_bad = any(len(row) != len(of) + 1 or not all(isinstance(key, str) for key in row[:-1]) for row in rows)
    if not of or unknown or is_bad:
        raise ValueError(f"bad table over {of!s:.200}")
    return Table(of, {tuple(row[:-1]): _finite(row[-1]) for row in rows}, _finite(value["gain"]))


def _finite(value: Any) -> float:
    """Of JSON only numbers that can be computed with; 1e999 is read as infinite, and integers may have any length."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e9:
        raise ValueError(f"{shown(value)} in a rule is not a number up to a billion")
    return float(value)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} in a rule is no number")
