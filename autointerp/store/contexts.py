"""Stored contexts: with dense activations, for explainers and scorers; with their windows, to be computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autointerp.records import Context, Split
from autointerp.store.connection import StoreConnection
from autointerp.store.first_tokens import BEGINS_DOCUMENT, BEGINS_WINDOW
from autointerp.store.named_rows import select_list

_COLUMNS = select_list(
    Context,
    "c",
    without=("activations",),
    document="w.document",
    tokens='w.tokens[c."offset" + 1 : c."offset" + c.length]',
    begins_document=BEGINS_DOCUMENT,
    begins_window=BEGINS_WINDOW,
)
_CONTEXTS = f"""
    WITH chosen AS (
        SELECT context_id, feature, split, kind, tier, decile, rank, position, positions, "values", window_id, "offset",
               length
        FROM evidence.context_rows
        WHERE dictionary_id = ? AND harvest_id = ? AND split = ? AND feature BETWEEN ? AND ?
          AND feature IN (SELECT unnest(?::INTEGER[])) AND kind IN (SELECT unnest(?::VARCHAR[]))
        QUALIFY row_number() OVER (PARTITION BY feature, kind ORDER BY rank, tier, context_id)
             <= list_extract(?::BIGINT[], list_position(?::VARCHAR[], kind))
    )
    SELECT {_COLUMNS}, c.positions, c."values"
    FROM chosen AS c JOIN evidence.windows AS w USING (window_id)
    ORDER BY c.feature, c.kind, c.rank, c.tier, c.context_id
"""
EVERY = 2**31 - 1
"""A limit that limits nothing."""


class StoreContexts(StoreConnection):
    """Tables windows and context_rows of the evidence file, which only a merge writes."""

    def contexts_of(
        self, dictionary_id: int, harvest_id: int, features: Sequence[int], split: Split,
        kinds: Mapping[str, int | None],
    ) -> dict[int, list[Context]]:  # fmt: skip
        """Contexts of many features in one query, dense. Every feature asked for has an entry, even if it is empty.

        `kinds` maps top, sampled, negative to how many of each at most (None: all). They come in order of rank within a
        kind, the tiers of the negatives taken in turn.
        """
        result: dict[int, list[Context]] = {int(f): [] for f in features}
        if not result or not kinds:
            return result
        limits = [EVERY if n is None else n for n in kinds.values()]
        names = list(kinds)
        wanted = list(result)
        found = self.dicts(
            _CONTEXTS,
            [dictionary_id, harvest_id, split, min(wanted), max(wanted), wanted, names, limits, names],
        )
        for row in found:
            dense = [0.0] * len(row["tokens"])
            for position, value in zip(row.pop("positions"), row.pop("values"), strict=True):
                dense[position] = value
            context = Context(**row, activations=dense)
            result[context.feature].append(context)
        return result


@dataclass(frozen=True, slots=True)
class StoredContext:
    """One stored context with its whole window: all that is needed to compute its activations again."""

    context_id: int
    feature: int
    window_id: int
    token_ids: list[int]
    """The token ids of the whole window."""
    n_prefix: int
    offset: int
    """Place of the context's first token among the window's tokens."""
    length: int
    positions: list[int]
    """Places of the active tokens, relative to `offset`, ascending."""
    values: list[float]
    """Their activations, raw units."""


_STORED = select_list(StoredContext, "c", token_ids="w.token_ids", n_prefix="w.n_prefix")


def stored_contexts(store: StoreConnection, dictionary_id: int, n: int, seed: int = 0) -> list[StoredContext]:
    """`n` contexts of the dictionary drawn at random (all, where there are fewer), the same ones for the same seed."""
    return store.records(
        StoredContext,
        f"SELECT {_STORED} FROM (SELECT * FROM evidence.context_rows WHERE dictionary_id = ? "
        "ORDER BY hash(context_id, ?), context_id LIMIT ?) AS c JOIN evidence.windows AS w USING (window_id) "
        "ORDER BY c.context_id",
        [dictionary_id, seed, n],
    )


def strongest_contexts(
    store: StoreConnection, dictionary_id: int, features: Sequence[int], n: int
) -> list[StoredContext]:
    """The `n` strongest contexts of each of the features on the explain split, by feature and rank."""
    wanted = [int(f) for f in features]
    if not wanted:
        return []
    return store.records(
        StoredContext,
        f"SELECT {_STORED} FROM evidence.context_rows AS c JOIN evidence.windows AS w USING (window_id) "
        "WHERE c.dictionary_id = ? AND c.split = 'explain' AND c.kind = 'top' AND c.rank < ? "
        "AND c.feature BETWEEN ? AND ? AND c.feature IN (SELECT unnest(?::INTEGER[])) ORDER BY c.feature, c.rank",
        [dictionary_id, n, min(wanted), max(wanted), wanted],
    )
