"""Tables of a rule as clauses of the rule language, which predict the same: it can say what `patterns` learns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from autointerp.rules.language.conditions import (
    MAX_CLAUSES,
    MAX_JSON,
    MAX_STRENGTH,
    MAX_WORD,
    MAX_WORDS,
    Classes,
    Clause,
    Condition,
    Left,
    Strings,
    normalised,
)
from autointerp.rules.language.parsing import clauses_of, is_kind, json_bytes, rule_to_json
from autointerp.rules.patterns import Key, Rule, Table
from autointerp.rules.token_facts import START

_CONDITIONS: Mapping[str, Callable[[tuple[str, ...]], Condition]] = {
    "token": lambda values: Strings("exact", values),
    "folded": lambda values: Strings("token", values),
    "kind": lambda values: Classes(tuple(f"kind:{value}" for value in values)),
    "before": lambda values: Left(Strings("exact", values)),
    "before_kind": lambda values: Left(Classes(tuple(f"kind:{value}" for value in values))),
}
"""The facts that have a condition, which holds where the fact has one of some values."""


def as_clauses(rule: Rule) -> Rule:
    """The rule with rows of its tables written as clauses, those that add most first, as many as a rule may have. Rows
    that no clause can say stay in their tables: those that lower the prediction, which strengths cannot, and those of
    facts that have no condition."""
    if rule.clauses:
        raise ValueError(f"the rule has {len(rule.clauses)} clauses already")
    groups = [group for i, table in enumerate(rule.tables) for group in _groups(i, table)]
    chosen = sorted(groups, key=lambda group: -group.weight * len(group.keys))[:MAX_CLAUSES]
    clauses = [group.clause(rule.tables[group.table].of) for group in chosen]
    while json_bytes(clauses, "sum") > MAX_JSON:
        chosen, clauses = chosen[:-1], clauses[:-1]
    if not clauses:
        return rule
    clauses, combine = clauses_of(rule_to_json(clauses, "sum"))  # in the order in which they are read
    said: dict[int, set[Key]] = defaultdict(set)
    for group in chosen:
        said[group.table].update(group.keys)
    left = [
        replace(table, weights={key: w for key, w in table.weights.items() if key not in said[i]})
        for i, table in enumerate(rule.tables)
    ]
    return replace(rule, tables=[table for table in left if table.weights], clauses=clauses, combine=combine)


@dataclass(frozen=True)
class _Group:
    """Rows of one table with one weight, whose keys differ in the first fact only."""

    table: int
    weight: float
    keys: Sequence[Key]

    def clause(self, of: Key) -> Clause:
        values = zip(*self.keys, strict=True)
        return Clause(
            tuple(_CONDITIONS[fact](tuple(sorted(set(own)))) for fact, own in zip(of, values, strict=True)), self.weight
        )


def _groups(i: int, table: Table) -> list[_Group]:
    found: dict[tuple[float, Key], list[Key]] = defaultdict(list)
    for key, weight in table.weights.items():
        if 0.0 < weight <= MAX_STRENGTH and all(map(_can_be_said, table.of, key)):
            found[weight, key[1:]].append(key)
    return [
        _Group(i, weight, keys[at : at + MAX_WORDS])
        for (weight, _), keys in found.items()
        for at in range(0, len(keys), MAX_WORDS)
    ]


def _can_be_said(fact: str, value: str) -> bool:
    if fact in ("kind", "before_kind"):
        return is_kind(f"kind:{value}")
    # START stands for the border of the text too, which no condition sees.
    is_known = fact in _CONDITIONS and not (fact == "before" and value == START)
    return is_known and 0 < len(value) <= MAX_WORD and normalised(value) == value
