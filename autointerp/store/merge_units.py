"""Merges the folders of harvested units into a new evidence file, which replaces the old one, and into table features.

The rows depend only on the union of the units, and ids are assigned in a fixed order, so any sharding or folding gives
the same tables. All work is done in temporary tables of a cursor, within a memory limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from autointerp.config import HarvestConfig
from autointerp.errors import InputError
from autointerp.progress import Counting, uncounted
from autointerp.records import SPLITS
from autointerp.store.connection import quoted, sql_file
from autointerp.store.evidence_file import has_known_tiles, run_inside
from autointerp.store.store import Store
from autointerp.store.unit_tables import ListBounds, copy, read_units, reading_units, reduce_units

PER_TOKEN, PER_NEIGHBOUR, MOST_DRAWS = 8, 3, 64
"""Candidate tiles for each wanted negative: per token, per neighbour, and the most that are drawn at random."""
_ORDERS = 0x5B1E
"""Sets the keys of the candidates' orders apart from those of the random draws."""
WINDOWS_AT_ONCE = 2048
"""The number of windows that one statement decodes or writes."""
FEATURES_AT_ONCE = 256
"""The number of features whose contexts one statement writes."""


@dataclass(frozen=True, slots=True)
class UnitTotals:
    """Sums over all units, by split."""

    n_tokens: Mapping[str, int]
    n_tiles: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class HistogramEdges:
    """The upper edge of each bin, which is the lower edge of the next, for tokens and for tiles' maxima. The last bin
    has no upper edge."""

    tokens: np.ndarray
    tiles: np.ndarray


@dataclass(frozen=True, slots=True)
class MergeSource:
    """The input of a merge."""

    folders: Sequence[Path]
    neighbours: Mapping[str, np.ndarray]
    """Columns feature, neighbour: the nearest features of each feature by decoder cosine."""
    d_sae: int
    totals: UnitTotals
    edges: HistogramEdges
    pieces: Sequence[str | None]
    """The string of each token id that can be decoded alone; None for the others."""
    tokens: Callable[[Sequence[int]], list[str]]
    """Decodes the ids of a window together, for windows in which a character is split over several tokens."""


@dataclass(frozen=True, slots=True)
class MergeTarget:
    """The ids of the rows to which a merge belongs (made by Store.add_dictionary, add_corpus and add_harvest)."""

    dictionary_id: int
    corpus_id: int
    harvest_id: int


def bounds_of(config: HarvestConfig) -> ListBounds:
    """The lengths of the lists in units and folds: twice what a merge keeps, since a merge drops texts that are also in
    an earlier split."""
    return ListBounds(2 * config.top_contexts, 2 * config.sampled_contexts, config.negative_pool_windows)


def merge_units(
    store: Store,
    source: MergeSource,
    target: MergeTarget,
    config: HarvestConfig,
    *,
    memory_limit: str | None = None,
    threads: int | None = None,
    counting: Counting = uncounted,
) -> dict[str, int]:
    """Replaces the dictionary's evidence and features by those of the units. Other dictionaries are not changed.
    `counting` is told of the steps in which contexts are chosen, the windows that are decoded and written, and the
    features whose contexts are written.

    Returns counts (contexts, windows, features of each status). Raises DiskFullError, DamagedError (a Parquet file
    cannot be read) and InputError (there are no units).
    """
    if not source.folders:
        raise InputError("there are no harvested units to merge; run `autointerp harvest` first")
    new_file = _new_file(store)
    with reading_units(store.evidence_path):
        try:
            return _merge(store, source, target, config, new_file, memory_limit, threads, counting)
        except duckdb.OutOfMemoryException:
            if memory_limit is None:
                raise
            # The rows are the same either way, so using more memory is better than failing.
            return _merge(store, source, target, config, new_file, None, threads, counting)


def remove_leftovers(store: Store) -> None:
    """Deletes what a killed merge has left beside the store."""
    new_file = _new_file(store)
    for leftover in (new_file, new_file.with_name(new_file.name + ".wal"), _features_file(new_file)):
        leftover.unlink(missing_ok=True)


def _new_file(store: Store) -> Path:
    return store.evidence_path.with_name(store.evidence_path.name + ".new")


def _features_file(new_file: Path) -> Path:
    return new_file.with_name(new_file.name + ".features.parquet")


def _merge(
    store: Store,
    source: MergeSource,
    target: MergeTarget,
    config: HarvestConfig,
    new_file: Path,
    memory_limit: str | None,
    threads: int | None,
    counting: Counting,
) -> dict[str, int]:
    features_file = _features_file(new_file)
    con = store.con.cursor()
    con.execute("DETACH DATABASE IF EXISTS building")  # left by an attempt that failed
    remove_leftovers(store)
    try:
        with _limits(con, memory_limit, threads):
            with counting("choosing contexts", 6, "steps") as update:
                _compute(con, source, config, update)
            con.execute(f"ATTACH {quoted(str(new_file))} AS building")
            counts = _write(con, store, source, target, counting)
            con.execute("DETACH building")
            copy(con, "SELECT * FROM new_features ORDER BY feature", features_file)
        con.close()
        with store.exclusive():  # a snapshot shows both or neither
            store.replace_evidence(new_file)
            with store.transaction() as main:
                main.execute("DELETE FROM features WHERE dictionary_id = $1", [target.dictionary_id])
                main.execute(
                    "INSERT INTO features BY NAME SELECT $1 AS dictionary_id, $2 AS harvest_id, * "
                    "FROM read_parquet($3) ORDER BY feature",
                    [target.dictionary_id, target.harvest_id, str(features_file)],
                )
                counts |= dict(
                    main.execute(
                        "SELECT status, count(*) FROM features WHERE dictionary_id = $1 GROUP BY status "
                        "ORDER BY status",
                        [target.dictionary_id],
                    ).fetchall()
                )
    finally:
        con.close()
        features_file.unlink(missing_ok=True)
    return counts


@contextmanager
def _limits(con: duckdb.DuckDBPyConnection, memory_limit: str | None, threads: int | None) -> Iterator[None]:
    """Sets DuckDB's limits for the time of a merge, then resets them. They apply to every connection to the store."""
    wanted = {"memory_limit": memory_limit, "threads": threads, "preserve_insertion_order": False}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    try:
        for name, value in wanted.items():
            con.execute(f"SET GLOBAL {name} = {quoted(str(value))}")
        yield
    finally:
        for name in wanted:  # current_setting rounds sizes, so the old value cannot be put back as text
            con.execute(f"RESET GLOBAL {name}")


def _compute(
    con: duckdb.DuckDBPyConnection, source: MergeSource, config: HarvestConfig, update: Callable[[int], None]
) -> None:
    """Makes the temporary tables active_contexts, negative_contexts and new_features, and tells `update` the number of
    the step that is done."""
    read_units(con, source.folders)
    bounds = bounds_of(config)
    reduce_units(con, bounds)
    update(1)
    variables: dict[str, Any] = {
        "n_top": config.top_contexts,
        "n_sampled": config.sampled_contexts,
        "sample_size": bounds.sampled,
        "n_negatives": config.negatives,
        "per_token": PER_TOKEN * config.negatives,
        "per_neighbour": PER_NEIGHBOUR * config.negatives,
        "d_sae": source.d_sae,
        "n_tokens": max(1, sum(source.totals.n_tokens.values())),
        "n_tiles": max(1, sum(source.totals.n_tiles.values())),
        "rare_below": config.rare_below,
        "known_tiles": config.known_tiles,
        "edges": [0.0, *source.edges.tokens.tolist(), float(np.finfo(np.float32).max)],
    }
    for name, value in variables.items():
        con.execute(f"SET VARIABLE {name} = $1", [value])
    tiles = source.edges.tiles
    _table(con, "tile_edges", bin=np.arange(1, len(tiles), dtype=np.int16), low=tiles[:-1], high=tiles[1:])
    con.execute("INSERT INTO tile_edges VALUES (0, NULL, NULL), ($1, NULL, NULL)", [len(tiles)])
    _table(con, "neighbours", **{name: np.asarray(c, dtype=np.int32) for name, c in source.neighbours.items()})
    con.execute(sql_file("merge/contexts.sql"))
    update(2)
    con.execute(sql_file("merge/tiles.sql"))
    update(3)
    _draw_random_tiles(con, config)
    update(4)
    con.execute(sql_file("merge/negatives.sql"))
    update(5)
    con.execute(sql_file("merge/features.sql"))
    update(6)


def _table(con: duckdb.DuckDBPyConnection, name: str, **columns: np.ndarray) -> None:
    con.register("given_columns", columns)
    con.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT * FROM given_columns")
    con.unregister("given_columns")


def _draw_random_tiles(con: duckdb.DuckDBPyConnection, config: HarvestConfig) -> None:
    """Makes table random_tiles (feature, split, tile_id, turn): uniform draws with replacement for every feature and
    split. Their number is such that about twice `negatives` of the tiles are silent, but at most MOST_DRAWS times
    `negatives`. Table draw_orders (feature, split, factor) holds the factor by which each puts candidates of the other
    tiers into an order of its own (see negatives.sql)."""
    rows = con.execute(_ACTIVE_SHARES).fetchnumpy()
    feature, split, n_tiles = (np.asarray(rows[c], dtype=np.int64) for c in ("feature", "split", "n_tiles"))
    silent = np.maximum(1 - np.asarray(rows["n_active"], dtype=np.int64) / n_tiles, 1 / MOST_DRAWS)
    n_draws = np.minimum(np.ceil((2 * config.negatives + 8) / silent), MOST_DRAWS * config.negatives).astype(np.int64)
    owner = np.repeat(np.arange(len(feature)), n_draws)
    turn = np.arange(len(owner)) - np.repeat(np.cumsum(n_draws) - n_draws, n_draws)
    own = _splitmix(feature * len(SPLITS) + split + (config.seed << 40))
    key = _splitmix(own[owner] + turn.astype(np.uint64))
    _table(
        con,
        "random_tiles",
        feature=feature[owner].astype(np.int32),
        split=split[owner].astype(np.int8),
        tile_id=(key % n_tiles[owner].astype(np.uint64)).astype(np.int64),
        turn=turn,
    )
    _table(
        con,
        "draw_orders",
        feature=feature.astype(np.int32),
        split=split.astype(np.int8),
        factor=(_splitmix(own ^ np.uint64(_ORDERS)) % np.uint64(2**31 - 2)).astype(np.int64) + 1,
    )


_ACTIVE_SHARES = """
SELECT a.feature, a.split, n.n_tiles, coalesce(p.n_active, 0) AS n_active
FROM alive AS a
JOIN (SELECT split, count(*) AS n_tiles FROM tiles GROUP BY split) AS n USING (split)
LEFT JOIN (
    SELECT split, feature, sum(bit_count(mask))::BIGINT AS n_active FROM kept_pool GROUP BY split, feature
) AS p USING (split, feature)
ORDER BY a.feature, a.split
"""


def _splitmix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea, Flood 2014) of 64-bit integers, as uint64."""
    with np.errstate(over="ignore"):
        x = x.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _write(
    con: duckdb.DuckDBPyConnection, store: Store, source: MergeSource, target: MergeTarget, counting: Counting
) -> dict[str, int]:
    """Fills the attached database `building` with the new evidence and that of the other dictionaries."""
    run_inside(con, "building", sql_file("evidence_schema.sql"))
    _decode_windows(con, source, counting)
    con.execute("SET VARIABLE dictionary_id = $1", [target.dictionary_id])
    con.execute("SET VARIABLE harvest_id = $1", [target.harvest_id])
    con.execute("SET VARIABLE corpus_id = $1", [target.corpus_id])
    con.execute("SET VARIABLE store_id = $1", [store.store_id])
    con.execute("SET VARIABLE now = $1", [store.now()])
    (n_windows,) = con.execute("SELECT count(*) FROM window_ids").fetchone() or (0,)
    with counting("writing windows", n_windows, "windows") as update:
        _in_parts(con, "merge/write_windows.sql", n_windows, WINDOWS_AT_ONCE, update)
    n_written = 0
    with counting("writing contexts", source.d_sae, "features") as update:
        for low in range(0, source.d_sae, FEATURES_AT_ONCE):
            con.execute("SET VARIABLE n_before = $1", [n_written])
            n_written += _part(con, "merge/write_contexts.sql", low, FEATURES_AT_ONCE)
            update(min(low + FEATURES_AT_ONCE, source.d_sae))
    con.execute(sql_file("merge/write_known_tiles.sql"))
    con.execute(sql_file("merge/write.sql"))
    if has_known_tiles(con):
        con.execute(sql_file("merge/keep_known_tiles.sql"))
    counted = con.execute(
        "SELECT (SELECT count(*) FROM active_contexts), (SELECT count(*) FROM negative_contexts), "
        "(SELECT count(*) FROM window_ids)"
    ).fetchone()
    assert counted is not None
    return dict(zip(("n_active_contexts", "n_negatives", "n_windows"), counted, strict=True))


def _in_parts(con: duckdb.DuckDBPyConnection, name: str, n: int, size: int, update: Callable[[int], None]) -> None:
    """Runs an SQL file for every part low .. high-1 of 0 .. n-1, and tells `update` the end of each."""
    for low in range(0, n, size):
        _part(con, name, low, size)
        update(min(low + size, n))


def _part(con: duckdb.DuckDBPyConnection, name: str, low: int, size: int) -> int:
    """Runs an INSERT for one part. Returns the number of rows."""
    con.execute("SET VARIABLE low = $1", [low])
    con.execute("SET VARIABLE high = $1", [low + size])
    (n_rows,) = con.execute(sql_file(name)).fetchone() or (0,)
    return int(n_rows)


def _decode_windows(con: duckdb.DuckDBPyConnection, source: MergeSource, counting: Counting) -> None:
    """Makes table window_tokens (unit, window, tokens). Windows without split characters come from a join with the
    pieces, the others are decoded one by one."""
    pieces = np.array([(piece or "") for piece in source.pieces], dtype=object)
    whole = np.array([piece is not None for piece in source.pieces])
    _table(con, "pieces", token_id=np.arange(len(pieces), dtype=np.int32), piece=pieces, whole=whole)
    con.execute(sql_file("merge/windows.sql"))
    (n_windows,) = con.execute("SELECT count(*) FROM window_ids").fetchone() or (0,)
    with counting("decoding windows", n_windows, "windows") as update:
        _in_parts(con, "merge/decode.sql", n_windows, WINDOWS_AT_ONCE, update)
    broken = con.execute(
        'SELECT unit, "window", token_ids FROM window_texts '
        'ANTI JOIN window_tokens USING (unit, "window") ORDER BY unit, "window"'
    ).fetchall()
    if broken:
        decoded = [source.tokens(ids) for _, _, ids in broken]
        con.execute(
            "INSERT INTO window_tokens SELECT unnest($1::INTEGER[]), unnest($2::INTEGER[]), unnest($3::VARCHAR[][])",
            [[unit for unit, _, _ in broken], [window for _, window, _ in broken], decoded],
        )
