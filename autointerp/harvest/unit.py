"""Harvest of one work unit: forward, encode, accumulate. A function of the unit and the settings alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from autointerp.config import HarvestConfig
from autointerp.errors import AutointerpError
from autointerp.harvest.order import where
from autointerp.harvest.split_pass import Block, Columns, ListSizes, SplitPass
from autointerp.harvest.text_hash import TokenHashes
from autointerp.harvest.tiles import SplitWindows, document_ordinals, pool_keys
from autointerp.model.hooks import Hookpoint, activations_at_all
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import Batch, Halving, eligible, make_batches
from autointerp.records import SPLITS, Window, WorkUnit
from autointerp.sae.sae import Sae
from autointerp.store.merge_units import bounds_of

POOL_WINDOWS_PER_UNIT = 1024
"""Most windows per split that one unit gives to the pool of negatives: what its active tiles cost on disk."""
MOST_NONFINITE = 1e-3
"""Share of a unit's tokens whose activations may be NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Target:
    """One dictionary to harvest, and the features processed in one pass over a unit."""

    hookpoint: Hookpoint
    sae: Sae
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class UnitSettings:
    """What the evidence of a unit depends on, besides the model, the SAE and the text."""

    config: HarvestConfig
    batch_tokens: int
    excluded_ids: Tensor
    """int64 on the model's device: ids that never count."""
    hashes: TokenHashes
    """On the device where evidence is gathered (see `evidence_device`)."""

    @property
    def sizes(self) -> ListSizes:
        """As long as the lists that a merge reads."""
        bounds = bounds_of(self.config)
        return ListSizes(bounds.top, bounds.sampled)


@dataclass(slots=True)
class UnitEvidence:
    """Everything kept of one unit: plain columns (see store/unit_tables.py) and totals."""

    index: int
    tables: dict[str, Columns] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)


def evidence_device(device: torch.device) -> torch.device:
    """Where the accumulators live: with the model, except on MPS, which lacks 64-bit floats."""
    return torch.device("cpu") if device.type == "mps" else device


def harvest_unit(
    loaded: LoadedModel, targets: Sequence[Target], unit: WorkUnit, settings: UnitSettings, halving: Halving
) -> list[UnitEvidence]:
    """One result per target. Several targets share the forward pass (one for each block of features).

    Raises AutointerpError where more than MOST_NONFINITE of the tokens have NaN or infinite activations,
    errors.OutOfMemoryError where halving the batches no longer helps.
    """
    split_of = np.array([SPLITS.index(w.split) for w in unit.windows], dtype=np.int64)
    documents = document_ordinals(unit.windows)
    keys = pool_keys(unit.windows, settings.config.seed)
    results = [_Parts() for _ in targets]
    totals = {"n_documents": unit.n_documents, "n_windows": len(unit.windows)}
    slots = np.full(len(unit.windows), -1, dtype=np.int64)
    for code, split in enumerate(SPLITS):
        ordinal = np.flatnonzero(split_of == code)
        if not len(ordinal):
            continue
        chosen = [unit.windows[i] for i in ordinal]
        windows = SplitWindows(chosen, ordinal, documents[ordinal], settings.config.context_tokens, settings.hashes)
        pooled = np.zeros(len(ordinal), dtype=bool)
        n_pooled = min(settings.config.negative_pool_windows, POOL_WINDOWS_PER_UNIT)
        pooled[np.argsort(keys[ordinal], kind="stable")[:n_pooled]] = True
        slots[ordinal[pooled]] = np.arange(int(pooled.sum()))
        totals[f"n_tiles_{split}"] = windows.n_tiles
        for part in results:
            part.add(code, {"pool_tiles": _pool_tiles(windows, pooled)})
        _harvest_split(loaded, targets, windows, torch.from_numpy(pooled), settings, halving, code, results)
    return [
        UnitEvidence(unit.index, _unit_tables(unit, part, split_of, documents, keys, slots), totals | part.totals())
        for part in results
    ]


def _pool_tiles(windows: SplitWindows, pooled: np.ndarray) -> Columns:
    """The tiles of the pool's windows that may serve as negatives. A short last tile says too little about a text,
    unless it is all there is."""
    per_window = windows.grid.per_window
    slot = np.flatnonzero(pooled)
    tile = torch.from_numpy((slot[:, None] * per_window + np.arange(per_window)).ravel()).to(windows.ids.device)
    start, end = windows.tile_span(tile)
    address = torch.arange(len(tile), device=tile.device)
    number = address % per_window
    usable = where((end > start) & ((2 * (end - start) >= windows.grid.tile_tokens) | (number == 0)))
    columns = {
        "window": windows.ordinal[tile // per_window],
        "address": address,
        "tile": number,
        "offset": start,
        "length": end - start,
        "text_hash": windows.tile_hash[tile],
    }
    return {name: column[usable].cpu().numpy() for name, column in columns.items()}


class _Parts:
    """The columns of one target's splits and blocks, before they are joined."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Columns]] = {}
        self.n_tokens, self.n_nonfinite = dict.fromkeys(SPLITS, 0), 0

    def add(self, code: int, tables: dict[str, Columns]) -> None:
        for name, columns in tables.items():
            n = len(next(iter(columns.values())))
            if name != "activations":
                columns["split"] = np.full(n, code, dtype=np.int8)
            else:
                before = sum(len(part["feature"]) for part in self.tables.get("candidates", [])[:-1])
                columns["candidate"] = columns["candidate"] + before
            self.tables.setdefault(name, []).append(columns)

    def joined(self) -> dict[str, Columns]:
        joined = {
            name: {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}
            for name, parts in self.tables.items()
        }
        if "candidates" in joined:
            joined["candidates"]["candidate"] = np.arange(len(joined["candidates"]["feature"]))
        return joined

    def totals(self) -> dict[str, int]:
        return {f"n_tokens_{split}": n for split, n in self.n_tokens.items()} | {"n_nonfinite": self.n_nonfinite}


def _harvest_split(
    loaded: LoadedModel,
    targets: Sequence[Target],
    windows: SplitWindows,
    pooled: Tensor,
    settings: UnitSettings,
    halving: Halving,
    code: int,
    results: list[_Parts],
) -> None:
    batches = make_batches(windows.windows, settings.batch_tokens, loaded.pad_id)
    for number in range(max(len(target.blocks) for target in targets)):
        active = [(target, part) for target, part in zip(targets, results, strict=True) if number < len(target.blocks)]
        passes = [
            SplitPass(windows, pooled, target.blocks[number], settings.sizes, settings.config.seed)
            for target, _ in active
        ]
        points = [target.hookpoint for target, _ in active]

        def forward(part: Batch, points: list[Hookpoint] = points) -> list[Tensor]:
            return activations_at_all(loaded, points, part.ids)

        for batch in batches:
            for part, activations in halving.run(batch.to(loaded.device), forward):
                counted = eligible(part, settings.excluded_ids)
                for (target, parts), split_pass, x in zip(active, passes, activations, strict=True):
                    n_tokens, n_bad = add_batch(split_pass, target.sae, target.blocks[number], part, counted, x)
                    if number == 0:
                        parts.n_tokens[SPLITS[code]] += n_tokens
                        parts.n_nonfinite += n_bad
        for (_, parts), split_pass in zip(active, passes, strict=True):
            _check_finite(parts)
            parts.add(code, split_pass.finish())


def add_batch(
    split_pass: SplitPass, sae: Sae, block: Block, batch: Batch, counted: Tensor, x: Tensor
) -> tuple[int, int]:
    """Encode the counted tokens of x [b, t, d] and accumulate them: (tokens that entered, tokens with NaN or inf)."""
    *triples, n_tokens, n_bad = encoded(sae, counted, x)
    device = split_pass.device
    row, position, feature, value = (column.to(device) for column in triples)
    windows = torch.tensor(batch.indices, device=device)
    if len(block) < sae.d_sae:
        inside = (feature >= block.low) & (feature < block.high)
        row, position, feature, value = row[inside], position[inside], feature[inside] - block.low, value[inside]
    split_pass.add(windows, row, position, feature, value)
    return n_tokens, n_bad


def encoded(sae: Sae, counted: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
    """(row, position, feature, value) of every active feature on the counted tokens of x [b, t, d], ordered by row,
    then position; how many tokens that are; and how many were left out for a NaN or an infinity."""
    counted = counted.to(x.device)  # a model spread over devices
    row, position = counted.nonzero(as_tuple=True)
    x = x.flatten(0, 1)
    if len(row) < len(x):
        x = x.index_select(0, row * counted.shape[1] + position)
    # A sum is finite only if all its terms are.
    finite = torch.isfinite(x.sum(-1, dtype=torch.float32))
    if not bool(finite.all()):
        x, row, position = x[finite], row[finite], position[finite]
    codes = sae.encode_sparse(x.to(sae.W_enc.device))
    entry, feature, value = (column.to(x.device) for column in (codes.rows, codes.features, codes.values))
    good = torch.isfinite(value)
    n_bad_codes = 0
    if not bool(good.all()):
        bad_rows = torch.zeros(len(row), dtype=torch.bool, device=row.device)
        bad_rows[entry[~good]] = True
        kept = ~bad_rows[entry]
        entry, feature, value, n_bad_codes = entry[kept], feature[kept], value[kept], int(bad_rows.sum())
    n_bad = int((~finite).sum()) + n_bad_codes
    return row[entry], position[entry], feature, value, len(row) - n_bad_codes, n_bad


def _check_finite(parts: _Parts) -> None:
    n_tokens = sum(parts.n_tokens.values()) + parts.n_nonfinite
    if parts.n_nonfinite > MOST_NONFINITE * n_tokens:
        raise AutointerpError(
            f"{parts.n_nonfinite} of {n_tokens} tokens have NaN or infinite activations (more than "
            f"{MOST_NONFINITE:.1%}). Try model.dtype = float32 or bfloat16, and check that the SAE's weights belong to "
            "this hookpoint"
        )


def _unit_tables(
    unit: WorkUnit, parts: _Parts, split_of: np.ndarray, documents: np.ndarray, keys: np.ndarray, slots: np.ndarray
) -> dict[str, Columns]:
    tables = parts.joined()
    kept = slots >= 0
    if "candidates" in tables:
        kept[tables["candidates"]["window"]] = True
    ordinal = np.flatnonzero(kept)
    chosen: list[Window] = [unit.windows[i] for i in ordinal]
    tables["windows"] = {
        "window": ordinal,
        "document_ordinal": documents[ordinal],
        "document": np.array([w.document.encode("utf-8", "replace").decode() for w in chosen], dtype=object),
        "start": np.array([w.start for w in chosen], dtype=np.int64),
        "n_prefix": np.array([w.n_prefix for w in chosen], dtype=np.int64),
        "split": split_of[ordinal].astype(np.int8),
        "pool_key": keys[ordinal],
        "pool_slot": slots[ordinal],
    }
    lengths = np.array([len(w.token_ids) for w in chosen], dtype=np.int64)
    n_tokens = int(lengths.sum())
    tables["tokens"] = {
        "window": np.repeat(ordinal, lengths),
        "position": np.arange(n_tokens) - np.repeat(np.cumsum(lengths) - lengths, lengths),
        "token_id": np.fromiter(chain.from_iterable(w.token_ids for w in chosen), np.int64, n_tokens),
    }
    return tables
