"""Tokens of stored evidence, of the explain split alone, for statistics on where features fire.

Sampled contexts are uniform over the tiles in which a feature fires; negatives of tier `random` are tiles of the corpus
at large. A place counts from 1, the first token of the window's own text. In windows that begin a document it is the
place in the document too; all other windows lie further on, since the first one is as long as windows get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autointerp.records import source_of
from autointerp.store.first_tokens import WINDOW_BEGINS_DOCUMENT
from autointerp.store.store import Store

AHEAD = 8
"""Tokens read beyond a stretch, so that its last word can be completed."""

_CHOSEN = f"""
    SELECT c.feature, c.positions, c."values", c."offset" - w.n_prefix + 1 AS first_place,
        {WINDOW_BEGINS_DOCUMENT} AS begins_document,
        w.tokens[c."offset" + 1 : c."offset" + c.length] AS tokens
    FROM evidence.context_rows AS c JOIN evidence.windows AS w USING (window_id)
    WHERE c.dictionary_id = ? AND c.harvest_id = ? AND c.split = 'explain' AND c.kind IN (SELECT unnest(?::VARCHAR[]))
        AND c.feature BETWEEN ? AND ? AND c.feature IN (SELECT unnest(?::INTEGER[]))
"""
_ACTIVE = f"""
    WITH chosen AS ({_CHOSEN}),
    active AS (
        SELECT feature, begins_document, first_place + unnest(positions) AS place, unnest("values") AS "value",
            unnest(list_transform(positions, lambda p: tokens[p + 1])) AS token
        FROM chosen
    )
    SELECT feature, token, place, begins_document, count(*), sum("value") FROM active
    GROUP BY feature, token, place, begins_document ORDER BY feature, token, place, begins_document
"""
_RECALL = f"""
    WITH chosen AS ({_CHOSEN}),
    unigrams AS (SELECT unnest(?::INTEGER[]) AS feature, unnest(?::VARCHAR[]) AS token)
    SELECT feature, sum(len(list_filter(c.tokens, lambda t: t = u.token))),
        sum(len(list_filter(c.positions, lambda p: c.tokens[p + 1] = u.token)))
    FROM chosen AS c JOIN unigrams AS u USING (feature)
    GROUP BY feature
"""
_BACKGROUND = """
    SELECT DISTINCT c.window_id, c."offset", c.length
    FROM evidence.context_rows AS c
    WHERE c.dictionary_id = ? AND c.harvest_id = ? AND c.split = 'explain' AND c.tier = 'random'
    ORDER BY c.window_id, c."offset"
"""
_TILES = f"""
    WITH chosen AS (SELECT unnest(?::BIGINT[]) AS window_id, unnest(?::INTEGER[]) AS "offset",
        unnest(?::INTEGER[]) AS length)
    SELECT w.tokens[c."offset" + 1 : c."offset" + c.length],
        array_to_string(w.tokens[c."offset" + c.length + 1 : c."offset" + c.length + {AHEAD}], ''),
        CASE WHEN c."offset" > w.n_prefix THEN w.tokens[c."offset"] ELSE '' END, w.document
    FROM chosen AS c JOIN evidence.windows AS w USING (window_id)
    ORDER BY c.window_id, c."offset"
"""
# The tokens up to the peak; the tile's own end plays no part.
_UP_TO_PEAK = f"""
    WITH chosen AS (
        SELECT c.feature, c.rank, w.document, w.tokens, w.n_prefix, c."offset",
            c.position - w.start + w.n_prefix + 1 AS "end"
        FROM evidence.context_rows AS c JOIN evidence.windows AS w USING (window_id)
        WHERE c.dictionary_id = ? AND c.harvest_id = ? AND c.split = 'explain' AND c.kind = 'sampled'
            AND c.feature BETWEEN ? AND ?
            AND (?::INTEGER[] IS NULL OR c.feature IN (SELECT unnest(?::INTEGER[])))
    )
    SELECT feature, tokens["offset" + 1 : "end"], array_to_string(tokens["end" + 1 : "end" + {AHEAD}], ''),
        CASE WHEN "offset" > n_prefix THEN tokens["offset"] ELSE '' END, document
    FROM chosen ORDER BY feature, rank
"""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive tokens of a window, with what stands around them."""

    tokens: list[str]
    ahead: str
    """The text of the next AHEAD tokens."""
    before: str
    """The token in front; empty at the beginning of the window's text."""
    document: str
    """What it was cut from: blocks of a huge document are one document."""


@dataclass(frozen=True, slots=True)
class WindowCount:
    """How many windows of one kind there are."""

    length: int
    """In tokens of their own text."""
    is_first: bool
    """Whether they are the first of their document, or of a block of a huge one."""
    begins_document: bool
    """Whether they begin a document; a block other than the first does not."""
    n: int


@dataclass(frozen=True, slots=True)
class FiringFeature:
    """How often and how strongly a feature fires."""

    feature: int
    status: str
    token_density: float
    """Share of all tokens on which it fires."""
    largest: float
    """Its largest activation on the explain split, raw units."""


def firing_features(store: Store, dictionary_id: int, features: Sequence[int] | None = None) -> list[FiringFeature]:
    """The features that are not dead, or those of them that are given; by number."""
    rows = store.rows(
        "SELECT feature, status, token_density, explain_max_activation FROM features WHERE dictionary_id = ? "
        "AND status <> 'dead' AND (?::INTEGER[] IS NULL OR feature IN (SELECT unnest(?::INTEGER[]))) ORDER BY feature",
        [dictionary_id, None if features is None else list(features), list(features or [])],
    )
    return [FiringFeature(*row) for row in rows]


def active_tokens(
    store: Store, dictionary_id: int, harvest_id: int, features: Sequence[int]
) -> list[tuple[int, str, int, bool, int, float]]:
    """(feature, token, place, whether its window begins a document, how often it fires there, the sum of its
    activations) over the sampled contexts."""
    key = [dictionary_id, harvest_id, ["sampled"], min(features), max(features), list(features)]
    return store.rows(_ACTIVE, key)


def occurrences(
    store: Store, dictionary_id: int, harvest_id: int, token_of: Mapping[int, str]
) -> list[tuple[int, int, int]]:
    """(feature, occurrences of its token, those on which it fires) over its sampled contexts and its negatives.

    `token_of`: one token for each feature.
    """
    if not token_of:
        return []
    features = list(token_of)
    key = [dictionary_id, harvest_id, ["sampled", "negative"], min(features), max(features), features]
    return store.rows(_RECALL, [*key, features, list(token_of.values())])


def stored_windows(store: Store, dictionary_id: int, harvest_id: int) -> list[WindowCount]:
    """The windows that hold a context of this harvest: what other dictionaries keep of the same corpus changes
    nothing."""
    return store.records(
        WindowCount,
        f"SELECT len(w.token_ids) - w.n_prefix AS length, w.start = 0 AS is_first, {WINDOW_BEGINS_DOCUMENT} AS "
        "begins_document, count(*) AS n FROM evidence.windows AS w WHERE w.split = 'explain' AND w.window_id IN ("
        "SELECT window_id FROM evidence.context_rows WHERE dictionary_id = ? AND harvest_id = ?) "
        "GROUP BY ALL ORDER BY ALL",
        [dictionary_id, harvest_id],
    )


def share_of_first_windows(store: Store, harvest_id: int) -> float | None:
    """Which share of all windows of the harvested text are the first of their document or block; None where the harvest
    did not count them."""
    found = store.rows(
        "SELECT (report ->> 'n_documents')::DOUBLE / nullif((report ->> 'n_windows')::DOUBLE, 0) FROM harvests "
        "WHERE harvest_id = ?",
        [harvest_id],
    )
    return None if not found or found[0][0] is None else float(found[0][0])


def random_tiles(store: Store, dictionary_id: int, harvest_id: int) -> list[tuple[int, int, int]]:
    """(window_id, offset, length) of every tile that is a random negative of any feature; each once, in order."""
    return store.rows(_BACKGROUND, [dictionary_id, harvest_id])


def tile_texts(store: Store, tiles: Sequence[tuple[int, int, int]]) -> list[Stretch]:
    """The tiles' tokens, in order of windows and offsets."""
    windows, offsets, lengths = ([tile[i] for tile in tiles] for i in range(3))
    return [_stretch(*row) for row in store.rows(_TILES, [windows, offsets, lengths])]


def texts_up_to_peak(
    store: Store, dictionary_id: int, harvest_id: int, low: int, high: int, features: Sequence[int] | None = None
) -> list[tuple[int, Stretch]]:
    """(feature, tokens of one sampled context from its beginning to its peak), by feature and rank, for the features
    from `low` to `high`, or those of them that are in `features`."""
    own = None if features is None else list(features)
    rows = store.rows(_UP_TO_PEAK, [dictionary_id, harvest_id, low, high, own, own or []])
    return [(feature, _stretch(*stretch)) for feature, *stretch in rows]


def _stretch(tokens: list[str], ahead: str, before: str | None, document: str) -> Stretch:
    return Stretch(tokens, ahead, before or "", source_of(document))


def last_feature(store: Store, dictionary_id: int) -> int:
    """The number of the dictionary's last feature; -1 before the first merge."""
    rows = store.rows("SELECT max(feature) FROM features WHERE dictionary_id = ?", [dictionary_id])
    return -1 if rows[0][0] is None else int(rows[0][0])
