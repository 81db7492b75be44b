"""Tokens that stand in the lists of many features (promoted, suppressed, the same by a Jacobian lens, said more, said
less): what recurs says
nothing of a single feature. They are counted once, over every feature that has such a list, so that a label does not
depend on which features happen to be labelled.
"""

from __future__ import annotations

from typing import Any

from autointerp.store.connection import StoreConnection

LISTS = {
    "vocab_projection": ("promoted", "suppressed"),
    "lens_tokens": ("lens_promoted", "lens_suppressed"),
    "token_changes": ("raised", "lowered"),
}
"""By table, what its tokens of sign 1 and of sign -1 are called."""
LEAST_SHARE, LEAST_FEATURES, TIMES_CHANCE = 0.02, 4, 4
"""A token recurs where it stands in the lists of at least this share of the features, of at least this number, and of
so many times as chance would have it: 20 / 50,000 for lists of 20 tokens, but 1 in 10 with a vocabulary of 200."""

_HELD = "FROM recurring_tokens WHERE dictionary_id = ? AND list IN (?, ?)"
_COUNTED = """
    SELECT ? AS dictionary_id, if(sign = 1, ?, ?) AS list, token, count(DISTINCT feature) AS n_features,
        count(DISTINCT feature) / any_value(n_listed) AS share, any_value(length / n_tokens) AS by_chance
    FROM {table}
    JOIN (
        SELECT sign, count(DISTINCT feature) AS n_listed, count(*) / count(DISTINCT feature) AS length,
            max(max(token_id)) OVER () + 1 AS n_tokens
        FROM {table} WHERE dictionary_id = ? GROUP BY sign
    ) USING (sign)
    WHERE dictionary_id = ?
    GROUP BY sign, token
    HAVING count(DISTINCT feature) > 1
"""


def count_recurring_tokens(store: StoreConnection, dictionary_id: int, table: str) -> None:
    """Counts anew in how many features' lists each token stands, of the lists in `table`, a key of LISTS. What is
    counted is written only where it differs from what is there."""
    if is_counted(store, dictionary_id, table):
        return
    with store.transaction() as con:
        con.execute(f"DELETE {_HELD}", [dictionary_id, *LISTS[table]])
        con.execute(
            f"INSERT INTO recurring_tokens BY NAME {_COUNTED.format(table=table)} "
            "ORDER BY list, n_features DESC, token",
            _parameters(dictionary_id, table),
        )


def is_counted(store: StoreConnection, dictionary_id: int, table: str) -> bool:
    """Whether the counts are those of the rows that `table` has now."""
    now = f"FROM ({_COUNTED.format(table=table)})"
    held_of = [dictionary_id, *LISTS[table]]
    return store.gives_the_same(_HELD, held_of, now, _parameters(dictionary_id, table))


def _parameters(dictionary_id: int, table: str) -> list[Any]:
    """Those of _COUNTED."""
    return [dictionary_id, *LISTS[table], dictionary_id, dictionary_id]


def recurring_tokens(store: StoreConnection, dictionary_id: int) -> dict[str, frozenset[str]]:
    """By list, the tokens that recur."""
    found = store.rows(
        "SELECT list, token FROM recurring_tokens WHERE dictionary_id = ? AND share >= ? AND n_features >= ? "
        "AND share >= ? * by_chance",
        [dictionary_id, LEAST_SHARE, LEAST_FEATURES, TIMES_CHANCE],
    )
    by_list: dict[str, set[str]] = {}
    for name, token in found:
        by_list.setdefault(name, set()).add(token)
    return {name: frozenset(tokens) for name, tokens in by_list.items()}
