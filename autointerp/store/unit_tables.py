"""The tables of a harvested work unit as Parquet files, and the SQL that folds many units into one unit.

    windows      the windows that candidates or the pool refer to
    candidates   for each feature and split: the best peaks of documents and of texts, and sampled tiles
    activations  the (position, value) pairs of every candidate's stretch of text; positions are relative to its offset
    stats, token_bins, tile_bins    exact counts, sums, maxima and histograms of every feature that fired
    pool         which features are active in which tiles of the pool's windows, as 64-bit masks
    pool_tiles   the tiles of the pool's windows

Every table is a set chosen by total orders or a sum of integers, so folding in any grouping gives the same rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np

from autointerp.errors import DamagedError
from autointerp.store.connection import connect as plain_connection
from autointerp.store.safety.faults import translated

TABLES: dict[str, dict[str, str]] = {
    "windows": {
        "unit": "INTEGER",
        "window": "INTEGER",
        "document_ordinal": "INTEGER",
        "document": "VARCHAR",
        "start": "INTEGER",
        "n_prefix": "INTEGER",
        "split": "TINYINT",
        "pool_key": "BIGINT",
        "pool_slot": "INTEGER",
        "token_ids": "INTEGER[]",
    },
    "candidates": {
        "unit": "INTEGER",
        "candidate": "INTEGER",
        "split": "TINYINT",
        "feature": "INTEGER",
        "lists": "TINYINT",
        "window": "INTEGER",
        "offset": "INTEGER",
        "length": "INTEGER",
        "peak": "INTEGER",
        "value": "FLOAT",
        "tile_bin": "SMALLINT",
        "text_hash": "BIGINT",
        "sample_key": "BIGINT",
    },
    "activations": {"unit": "INTEGER", "candidate": "INTEGER", "position": "USMALLINT", "value": "FLOAT"},
    "stats": {
        "split": "TINYINT",
        "feature": "INTEGER",
        "n_active_tokens": "BIGINT",
        "n_active_tiles": "BIGINT",
        "scaled_sum": "DECIMAL(38, 0)",
        "max": "FLOAT",
    },
    "token_bins": {"feature": "INTEGER", "bin": "SMALLINT", "n": "BIGINT"},
    "tile_bins": {"feature": "INTEGER", "bin": "SMALLINT", "n": "BIGINT"},
    "pool": {"unit": "INTEGER", "split": "TINYINT", "feature": "INTEGER", "tile_group": "INTEGER", "mask": "BIGINT"},
    "pool_tiles": {
        "unit": "INTEGER",
        "split": "TINYINT",
        "window": "INTEGER",
        "address": "INTEGER",
        "tile": "INTEGER",
        "offset": "INTEGER",
        "length": "INTEGER",
        "text_hash": "BIGINT",
    },
}
"""Columns and types. candidates.lists: bit 0 list of documents, bit 1 list of texts, bit 2 samples. split: 0 explain, 1
select, 2 report. pool_tiles.address: tile_group * 64 + bit. `unit`, `window` and `candidate` go on naming a
row after folding."""


@dataclass(frozen=True, slots=True)
class ListBounds:
    """How many rows the lists keep: top and sampled for each feature and split, pool_windows for each split."""

    top: int
    sampled: int
    pool_windows: int


def working_memory(n_features: int, threads: int | None = None) -> str:
    """How much folding and merging may hold in memory, as DuckDB writes sizes; beyond it they spill to disk.

    It grows with the features and the threads, never with the amount of text.
    """
    threads = threads or os.cpu_count() or 1
    return f"{64 * threads + (n_features * 32 >> 10)}MiB"


def connect(folder: Path, memory_limit: str | None = None, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that spills into `folder`."""
    con = plain_connection()
    con.execute("SET temp_directory = $1", [str(folder / "spill")])
    con.execute("SET preserve_insertion_order = false")
    if memory_limit is not None:
        con.execute("SET memory_limit = $1", [memory_limit])
    if threads is not None:
        con.execute("SET threads = $1", [threads])
    return con


def write_unit(unit: int, tables: Mapping[str, Mapping[str, np.ndarray]], folder: Path) -> None:
    """Writes one Parquet file for each table into the existing `folder`. The columns are named as in TABLES, without
    `unit`; a table `tokens` (window, position, token_id) stands for windows.token_ids. A missing table is empty.
    Raises DiskFullError."""
    with translated(folder), connect(folder, threads=1) as con:
        for name, columns in tables.items():
            con.register(f"given_{name}", dict(columns))
        for name, types in TABLES.items():
            if name not in tables:
                query = "SELECT " + ", ".join(f"NULL::{kind} AS {quoted(c)}" for c, kind in types.items()) + " LIMIT 0"
            else:
                given = ", ".join(f"CAST({_source(c, unit)} AS {kind}) AS {quoted(c)}" for c, kind in types.items())
                query = f"SELECT {given} FROM given_{name}{_TOKEN_LISTS if name == 'windows' else ''}"
            copy(con, query, folder / f"{name}.parquet")


_TOKEN_LISTS = """ JOIN (
    SELECT "window", list(token_id ORDER BY "position") AS token_ids FROM given_tokens GROUP BY "window"
) USING ("window") ORDER BY "window" """


def _source(column: str, unit: int) -> str:
    return str(unit) if column == "unit" else quoted(column)


def copy(con: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Writes the rows of a query to a Parquet file."""
    name = str(path).replace("'", "''")
    con.execute(f"COPY ({query}) TO '{name}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 65536)")


def quoted(name: str) -> str:
    return f'"{name}"'


@contextmanager
def reading_units(path: Path) -> Iterator[None]:
    """Like `translated(path)`, and also raises DamagedError if a unit's Parquet file cannot be read."""
    with translated(path):
        try:
            yield
        except duckdb.Error as error:
            text = str(error)
            found = re.search(r"[^'\"\s]+\.parquet", text)
            # `translated` recognises full disks and the like.
            if found and isinstance(error, (duckdb.InvalidInputException, duckdb.SerializationException)):
                raise DamagedError(
                    f"{found[0]} cannot be read; delete its folder and harvest again, which redoes that part only "
                    f"({text.splitlines()[0]})"
                ) from error
            raise


def read_units(con: duckdb.DuckDBPyConnection, folders: Sequence[Path]) -> None:
    """Makes temporary views unit_<table> over the files of these folders (units or folds of units)."""
    for name, types in TABLES.items():
        files = ", ".join("'" + str(f / f"{name}.parquet").replace("'", "''") + "'" for f in folders)
        columns = ", ".join(f"{quoted(c)}::{kind} AS {quoted(c)}" for c, kind in types.items())
        con.execute(f"CREATE OR REPLACE TEMP VIEW unit_{name} AS SELECT {columns} FROM read_parquet([{files}])")


def active_features(folders: Sequence[Path]) -> np.ndarray:
    """int64, ascending: the features that fired in any of the folders."""
    if not folders:
        return np.zeros(0, dtype=np.int64)
    with reading_units(folders[0]), plain_connection() as con:
        read_units(con, folders)
        found = con.execute("SELECT DISTINCT feature FROM unit_stats ORDER BY feature").fetchnumpy()
        return np.asarray(found["feature"], dtype=np.int64)


def reduce_units(con: duckdb.DuckDBPyConnection, bounds: ListBounds) -> None:
    """Makes temporary tables kept_<table>: what a single unit would hold if it had all the text of unit_<table>."""
    con.execute("SET VARIABLE top_size = $1", [bounds.top])
    con.execute("SET VARIABLE sample_size = $1", [bounds.sampled])
    con.execute("SET VARIABLE pool_size = $1", [bounds.pool_windows])
    con.execute(_REDUCE)


def fold_units(folders: Sequence[Path], bounds: ListBounds, out: Path, memory_limit: str | None = None) -> None:
    """Writes into the existing folder `out` the tables of a single unit that has the text of all these folders.

    Raises DiskFullError; DamagedError where a file cannot be read.
    """
    with reading_units(out):
        try:
            _fold(folders, bounds, out, memory_limit)
        except duckdb.OutOfMemoryException:
            if memory_limit is None:
                raise
            _fold(folders, bounds, out, None)  # the rows are the same: using more memory is better than failing


def _fold(folders: Sequence[Path], bounds: ListBounds, out: Path, memory_limit: str | None) -> None:
    with connect(out, memory_limit, threads=1) as con:
        read_units(con, folders)
        reduce_units(con, bounds)
        for name in TABLES:
            copy(con, f"SELECT * FROM kept_{name} ORDER BY ALL", out / f"{name}.parquet")


_REDUCE = """
-- Earlier in the corpus: unit, then window, then token.
CREATE OR REPLACE TEMP TABLE peak_ranks AS
SELECT unit, candidate, split, feature, lists, text_hash,
    row_number() OVER best AS place,
    sum(lists & 1) OVER (best ROWS UNBOUNDED PRECEDING) AS document_rank
FROM unit_candidates
WHERE lists & 3 <> 0
WINDOW best AS (PARTITION BY split, feature ORDER BY "value" DESC, unit, "window", peak);

CREATE OR REPLACE TEMP TABLE text_ranks AS
SELECT split, feature, place, row_number() OVER (PARTITION BY split, feature ORDER BY place) AS text_rank
FROM (
    SELECT split, feature, min(place) AS place FROM peak_ranks WHERE lists & 2 <> 0 GROUP BY split, feature, text_hash
);

CREATE OR REPLACE TEMP TABLE kept_lists AS
SELECT unit, candidate, lists, place FROM (
    SELECT p.unit, p.candidate, p.place,
        if(p.lists & 1 <> 0 AND p.document_rank <= getvariable('top_size'), 1, 0)
        + if(t.text_rank <= getvariable('top_size'), 2, 0) AS lists
    FROM peak_ranks AS p LEFT JOIN text_ranks AS t USING (split, feature, place)
) WHERE lists > 0
UNION ALL
SELECT unit, candidate, 4, 0 FROM (
    SELECT unit, candidate, row_number() OVER (PARTITION BY split, feature ORDER BY sample_key) AS key_rank FROM (
        SELECT unit, candidate, split, feature, sample_key
        FROM unit_candidates
        WHERE lists = 4
        QUALIFY row_number() OVER (PARTITION BY split, feature, sample_key ORDER BY unit, "window", "offset") = 1
    )
) WHERE key_rank <= getvariable('sample_size');

CREATE OR REPLACE TEMP TABLE kept_candidates AS
SELECT c.* REPLACE (k.lists::TINYINT AS lists)
FROM unit_candidates AS c JOIN kept_lists AS k USING (unit, candidate);

CREATE OR REPLACE TEMP VIEW kept_activations AS
SELECT a.* FROM unit_activations AS a SEMI JOIN kept_lists AS k USING (unit, candidate);

CREATE OR REPLACE TEMP TABLE pool_windows AS
SELECT unit, "window", pool_key FROM unit_windows WHERE pool_slot >= 0
QUALIFY row_number() OVER (PARTITION BY split ORDER BY pool_key, unit, "window") <= getvariable('pool_size');

CREATE OR REPLACE TEMP TABLE kept_pool_tiles AS
SELECT t.* FROM unit_pool_tiles AS t SEMI JOIN pool_windows AS w USING (unit, "window");

CREATE OR REPLACE TEMP TABLE kept_pool AS
SELECT p.* FROM unit_pool AS p
SEMI JOIN (
    SELECT DISTINCT unit, split, address >> 6 AS tile_group FROM kept_pool_tiles
) USING (unit, split, tile_group);

CREATE OR REPLACE TEMP VIEW kept_windows AS
SELECT w.* REPLACE (if(p.unit IS NULL, -1, w.pool_slot) AS pool_slot)
FROM unit_windows AS w
LEFT JOIN pool_windows AS p USING (unit, "window")
WHERE p.unit IS NOT NULL OR (unit, "window") IN (SELECT (unit, "window") FROM kept_candidates);

CREATE OR REPLACE TEMP VIEW kept_stats AS
SELECT split, feature, sum(n_active_tokens)::BIGINT AS n_active_tokens, sum(n_active_tiles)::BIGINT AS n_active_tiles,
    sum(scaled_sum) AS scaled_sum, max("max") AS "max"
FROM unit_stats GROUP BY split, feature;

CREATE OR REPLACE TEMP VIEW kept_token_bins AS
SELECT feature, bin, sum(n)::BIGINT AS n FROM unit_token_bins GROUP BY feature, bin;

CREATE OR REPLACE TEMP VIEW kept_tile_bins AS
SELECT feature, bin, sum(n)::BIGINT AS n FROM unit_tile_bins GROUP BY feature, bin;
"""
