"""A real store made from given texts and features: sampled tiles and negatives chosen as a harvest chooses them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import duckdb
import numpy as np

from autointerp.store import Store
from autointerp.store.connection import sql_file
from support.known_words import _load
from support.store_fixtures import add_dictionary

TILE = 16
BOS = "<bos>"
Fires = Callable[[int, Sequence[str]], list[float]]
"""(number of the window, its tokens without BOS) -> one activation per token."""


def tile_store(
    path: Path, windows: Sequence[Sequence[str]], features: Mapping[int, Fires], *, sampled: int = 20,
    negatives: int = 10, seed: int = 0, report: int = 0, named: Callable[[int], str] = "d{}".format,
) -> tuple[Store, int, int]:  # fmt: skip
    """An open store with its dictionary_id and harvest_id. The last `report` windows are in the report split. `named`:
    the name of each window's document."""
    rng = random.Random(seed)
    activations = {f: [fires(i, w) for i, w in enumerate(windows)] for f, fires in features.items()}
    splits = ["explain" if i < len(windows) - report else "report" for i in range(len(windows))]
    tiles = [(i, at) for i, w in enumerate(windows) for at in range(0, len(w), TILE)]
    n_tokens = sum(len(w) for w in windows)
    rows: list[tuple[object, ...]] = []
    facts = []
    for feature, values in activations.items():
        active = [(i, at) for i, at in tiles if max(values[i][at : at + TILE]) > 0]
        fired = set(active)
        silent = [tile for tile in tiles if tile not in fired]
        weights: dict[str, float] = {}
        for i, window in enumerate(windows):
            for token, value in zip(window, values[i], strict=True):
                weights[token] = weights.get(token, 0.0) + value
        top = max(weights, key=lambda token: weights[token])
        for split in ("explain", "report"):
            own = [t for t in active if splits[t[0]] == split]
            quiet = [t for t in silent if splits[t[0]] == split]
            same = [(i, at) for i, at in quiet if top in windows[i][at : at + TILE]][:negatives]
            others = [t for t in quiet if t not in same]
            kinds = [("sampled", None, rng.sample(own, min(sampled, len(own))))]
            if own:
                kinds += [("negative", "same_token", same)]
                kinds += [("negative", "random", rng.sample(others, min(negatives, len(others))))]
            for kind, tier, chosen in kinds:
                for rank, (i, at) in enumerate(chosen):
                    part = values[i][at : at + TILE]
                    on = [k for k, v in enumerate(part) if v > 0]
                    peak = int(np.argmax(part))
                    rows.append(
                        (len(rows), 1, 1, feature, split, kind, tier, None, 1.0, rank, i, at + 1, len(part),
                         100 + at + peak, on, [part[k] for k in on], max(part), len(rows))
                    )  # fmt: skip
        n_active = sum(v > 0 for row in values for v in row)
        n_explain = sum(splits[i] == "explain" for i, _ in active)
        status = "dead" if not active else "rare" if n_explain < 10 else "live"
        largest = max(max(row) for row in values)
        facts.append((feature, status, len(active) / len(tiles), n_active / n_tokens, len(active), n_active, largest))
    store = Store.open(path, create=True)
    corpus_id = store.add_corpus("planted", {}, "tok", len(windows), n_tokens)
    dictionary_id = add_dictionary(store, "planted", d_sae=len(features))
    harvest_id = store.add_harvest(dictionary_id, corpus_id, n_tokens, {})
    assert (dictionary_id, harvest_id) == (1, 1)
    new = path.with_name("new-evidence.duckdb")
    with duckdb.connect(str(new)) as con:
        con.execute(sql_file("evidence_schema.sql"))
        con.execute("INSERT INTO harvest_info VALUES (1, 1, ?, ?, 'sae', 0, NULL)", [corpus_id, store.store_id])
        _load(
            con, "windows", "BIGINT INTEGER VARCHAR INTEGER INTEGER VARCHAR INTEGER[] VARCHAR[]",
            [(i, corpus_id, named(i), 100, 1, splits[i], list(range(len(w) + 1)), [BOS, *w])
             for i, w in enumerate(windows)],
        )  # fmt: skip
        _load(
            con, "context_rows",
            "BIGINT INTEGER INTEGER INTEGER VARCHAR VARCHAR VARCHAR TINYINT DOUBLE INTEGER BIGINT INTEGER INTEGER "
            "INTEGER USMALLINT[] FLOAT[] FLOAT UBIGINT",
            rows,
        )  # fmt: skip
    store.replace_evidence(new)
    feature, status, density, token_density, n_tiles, n_active_tokens, top_value = (
        list(c) for c in zip(*facts, strict=True)
    )
    store.replace_features(
        1, 1,
        {
            "feature": feature, "status": status, "density": density, "token_density": token_density,
            "n_active_tiles": n_tiles, "n_active_tokens": n_active_tokens, "max_activation": top_value,
            "mean_activation": top_value, "explain_max_activation": top_value,
            "histogram_edges": [np.array([0.5, 1.0], dtype=np.float32)] * len(facts),
            "histogram_counts": [[1]] * len(facts),
        },
    )  # fmt: skip
    return store, dictionary_id, harvest_id
