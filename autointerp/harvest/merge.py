"""Merges a finished harvest folder into the store, and adds what SQL cannot know without the SAE and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autointerp.config import HarvestConfig
from autointerp.corpus.token_text import TokenText
from autointerp.harvest.accumulators import TILE_BITS, TOKEN_BITS, bin_edges
from autointerp.harvest.decoder_neighbours import decoder_neighbours
from autointerp.harvest.shards import HarvestFolder, Piece
from autointerp.progress import Counting, uncounted
from autointerp.records import SPLITS
from autointerp.sae.sae import Sae
from autointerp.store.merge_units import HistogramEdges, MergeSource, MergeTarget, UnitTotals, bounds_of, merge_units
from autointerp.store.store import Store
from autointerp.store.unit_tables import active_features, working_memory

__all__ = ["CorpusFacts", "bounds_of", "merge", "merge_source", "summed"]


@dataclass(frozen=True, slots=True)
class CorpusFacts:
    """The row of table corpora for the harvested text."""

    source: str
    config: Mapping[str, Any]
    tokenizer_sha256: str


def summed(pieces: list[Piece]) -> dict[str, int]:
    """The totals over all units; `halvings` is the largest value instead of the sum."""
    totals: dict[str, int] = {}
    for piece in pieces:
        for name, n in piece.totals.items():
            totals[name] = max(totals.get(name, 0), n) if name == "halvings" else totals.get(name, 0) + n
    return totals


def merge_source(pieces: list[Piece], sae: Sae, text: TokenText, config: HarvestConfig) -> MergeSource:
    totals = summed(pieces)
    # Dead features are left out as neighbours: they are active in no tile, and may be most of a large dictionary.
    alive = active_features([piece.path for piece in pieces])
    nearest = alive[decoder_neighbours(sae.W_dec[torch.from_numpy(alive)], config.neighbours).numpy()]
    return MergeSource(
        folders=[piece.path for piece in pieces],
        neighbours={
            "feature": np.repeat(alive, nearest.shape[1]),
            "neighbour": nearest.ravel(),
        },
        d_sae=sae.d_sae,
        totals=UnitTotals(
            {split: totals.get(f"n_tokens_{split}", 0) for split in SPLITS},
            {split: totals.get(f"n_tiles_{split}", 0) for split in SPLITS},
        ),
        edges=HistogramEdges(bin_edges(TOKEN_BITS), bin_edges(TILE_BITS)),
        pieces=text.pieces,
        tokens=text.tokens,
    )


def merge(
    store: Store,
    dictionary_id: int,
    folder: HarvestFolder,
    sae: Sae,
    text: TokenText,
    config: HarvestConfig,
    corpus: CorpusFacts,
    *,
    key: str = "",
    no_projection: str | None = None,
    threads: int | None = None,
    counting: Counting = uncounted,
) -> dict[str, int]:
    """Put a finished harvest into the store: corpus, harvest and features rows, and a new evidence file. A second call
    gives equal rows under equal ids. `key` is stored with the harvest, so that the caller can see that it is done, and
    so is the reason why it has no vocabulary projection.

    Returns counts (contexts, windows, features by status). Raises InputError if units are missing, and whatever
    `merge_units` raises.
    """
    pieces = folder.complete()
    totals = summed(pieces)
    n_tokens = sum(totals.get(f"n_tokens_{split}", 0) for split in SPLITS)
    corpus_id = store.add_corpus(corpus.source, corpus.config, corpus.tokenizer_sha256, totals["n_documents"], n_tokens)
    harvest_id = store.add_harvest(
        dictionary_id,
        corpus_id,
        n_tokens,
        {**folder.identity, "key": key, "merge": {"negatives": config.negatives, "neighbours": config.neighbours}},
        {**totals, **({} if no_projection is None else {"no_projection": no_projection})},
    )
    target = MergeTarget(dictionary_id, corpus_id, harvest_id)
    source = merge_source(pieces, sae, text, config)
    limit = working_memory(sae.d_sae, threads)
    return merge_units(store, source, target, config, memory_limit=limit, threads=threads, counting=counting)
