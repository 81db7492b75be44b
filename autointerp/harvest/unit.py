"""Harvests one work unit: forward, encode, accumulate. The result depends on the unit and the settings alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from autointerp.config import HarvestConfig
from autointerp.errors import AutointerpError
from autointerp.harvest.checkpoint import BEGIN, Checkpoints, Place, UnitState
from autointerp.harvest.order import where
from autointerp.harvest.split_pass import Block, Columns, ListSizes, SplitPass
from autointerp.harvest.target import Target
from autointerp.harvest.text_hash import TokenHashes
from autointerp.harvest.tiles import SplitWindows, document_ordinals, pool_keys
from autointerp.harvest.unit_evidence import EvidenceParts, UnitEvidence
from autointerp.model.hooks import Hookpoint, activations_at_all
from autointerp.model.load import LoadedModel
from autointerp.model.token_batches import Batch, Halving, eligible, make_batches
from autointerp.records import SPLITS, Split, Window, WorkUnit
from autointerp.sae.sae import Sae
from autointerp.store.merge_units import bounds_of

POOL_WINDOWS_PER_UNIT = 1024
"""The most windows per split that one unit gives to the pool of negatives; their active tiles cost disk space."""
MOST_NONFINITE = 1e-3
"""The largest share of a unit's tokens that may have NaN or infinite activations."""


@dataclass(frozen=True, slots=True)
class UnitSettings:
    """Everything that a unit's evidence depends on besides the model, the SAE and the text."""

    config: HarvestConfig
    batch_tokens: int
    excluded_ids: Tensor
    """Ids of tokens that never count, int64 on the model's device."""
    hashes: TokenHashes
    """The token hashes, on the device where evidence is gathered (see `evidence_device`)."""

    @property
    def sizes(self) -> ListSizes:
        """The lengths of the lists that a merge reads."""
        bounds = bounds_of(self.config)
        return ListSizes(bounds.top, bounds.sampled)


def evidence_device(device: torch.device) -> torch.device:
    """The device of the accumulators: the model's, except for MPS, which lacks 64-bit floats."""
    return torch.device("cpu") if device.type == "mps" else device


@dataclass(slots=True)
class _Work:
    """The progress of one target in the unit."""

    target: Target
    parts: EvidenceParts
    place: Place
    """The next batch; everything before it is in `parts` and `split_pass`."""
    unfinished: dict[str, Tensor]
    """The split pass's state that an earlier run left. It is restored when its place is reached."""
    split_pass: SplitPass | None = None

    def state(self, halvings: int) -> UnitState:
        unfinished = self.split_pass.state() if self.split_pass is not None else self.unfinished
        return UnitState(self.place, self.parts, unfinished, halvings)


@dataclass(frozen=True, slots=True)
class UnitWatch:
    """The callbacks while a unit is harvested, and where its state is saved."""

    checkpoints: Checkpoints | None = None
    """If None, the state of an unfinished unit is not saved."""
    on_tokens: Callable[[int], None] = lambda tokens: None
    """Called after each batch with the number of the unit's tokens that are done, over all splits and passes."""
    on_skipped: Callable[[int], None] = lambda tokens: None
    """Called before `on_tokens` with the tokens of a batch that an earlier run had done for every target."""
    on_kept: Callable[[], None] = lambda: None
    """Called when the unit's state has just been written, so if it raises, no work is lost."""


@dataclass(frozen=True, slots=True)
class _SplitOfUnit:
    """One split of the current unit."""

    code: int
    windows: SplitWindows
    pooled: Tensor
    """bool [w]: true for the windows from which negatives are drawn."""


class _UnitPass:
    """Runs the model over one unit and hands its activations to all targets."""

    def __init__(
        self, loaded: LoadedModel, targets: Sequence[Target], unit: WorkUnit, settings: UnitSettings, halving: Halving,
        watch: UnitWatch,
    ) -> None:  # fmt: skip
        self._loaded, self._unit, self._settings, self._halving = loaded, unit, settings, halving
        self._watch, self._tokens_done = watch, 0.0
        self.works = [self._begun(target) for target in targets]

    def _begun(self, target: Target) -> _Work:
        keeper = self._watch.checkpoints
        state = None
        if keeper is not None:
            state = keeper.read(target, self._unit, self._settings.batch_tokens, self._loaded.device)
        if state is None:
            return _Work(target, EvidenceParts(), BEGIN, {})
        self._halving.halvings = max(self._halving.halvings, state.halvings)
        return _Work(target, state.parts, state.place, state.unfinished)

    def run(self, split: _SplitOfUnit) -> None:
        """Harvest all blocks of features of one split. A target with several blocks needs a forward pass for each."""
        batches = make_batches(split.windows.windows, self._settings.batch_tokens, self._loaded.pad_id)
        for work in self.works:
            if work.place <= (split.code, 0, 0):
                work.parts.add(split.code, {"pool_tiles": _pool_tiles(split.windows, split.pooled.numpy())})
        n_passes = max(len(work.target.blocks) for work in self.works)
        for number in range(n_passes):
            active = [work for work in self.works if self._begin_block(work, split, number)]
            for i, batch in enumerate(batches):
                here = (split.code, number, i)
                turn = [work for work in active if work.place <= here]
                if turn:
                    self._run_batch(turn, batch, number, SPLITS[split.code])
                for work in turn:
                    work.place = (split.code, number, i + 1)
                before = int(self._tokens_done)
                self._tokens_done += int((batch.lengths - batch.prefixes).sum()) / n_passes
                if not turn:
                    self._watch.on_skipped(int(self._tokens_done) - before)
                self._watch.on_tokens(int(self._tokens_done))
                self._keep()
            for work in active:
                self._finish_block(work, split.code, number)

    def _begin_block(self, work: _Work, split: _SplitOfUnit, number: int) -> bool:
        """Whether the target has anything left to do in this block of its features."""
        if number >= len(work.target.blocks) or work.place[:2] > (split.code, number):
            return False
        config = self._settings.config
        block = work.target.blocks[number]
        work.split_pass = SplitPass(split.windows, split.pooled, block, self._settings.sizes, config.seed)
        if work.unfinished:
            work.split_pass.restore(work.unfinished)
            work.unfinished = {}
        return True

    def _run_batch(self, turn: Sequence[_Work], batch: Batch, number: int, split: Split) -> None:
        points = list(dict.fromkeys(work.target.hookpoint for work in turn))

        def forward(part: Batch) -> dict[Hookpoint, Tensor]:
            return dict(zip(points, activations_at_all(self._loaded, points, part.ids, part.lengths), strict=True))

        for part, activations in self._halving.run(batch.to(self._loaded.device), forward):
            counted = eligible(part, self._settings.excluded_ids)
            for work in turn:
                target, parts = work.target, work.parts
                assert work.split_pass is not None
                x = activations[target.hookpoint]
                n_tokens, n_bad = add_batch(work.split_pass, target.sae, target.blocks[number], part, counted, x)
                if number == 0:
                    parts.n_tokens[split] += n_tokens
                    parts.n_nonfinite += n_bad

    def _finish_block(self, work: _Work, code: int, number: int) -> None:
        assert work.split_pass is not None
        _check_finite(work)
        work.parts.add(code, work.split_pass.finish())
        work.split_pass, work.place = None, (code, number + 1, 0)

    def _keep(self) -> None:
        keeper = self._watch.checkpoints
        if keeper is None or not keeper.is_due():
            return
        states = ((work.target, work.state(self._halving.halvings)) for work in self.works)
        keeper.write(states, self._unit, self._settings.batch_tokens, self._loaded.device)
        self._watch.on_kept()


def harvest_unit(
    loaded: LoadedModel, targets: Sequence[Target], unit: WorkUnit, settings: UnitSettings, halving: Halving,
    watch: UnitWatch | None = None,
) -> list[UnitEvidence]:  # fmt: skip
    """Harvests the unit: one result per target, whose `blocks` must be set. All targets share the forward pass, which
    stops at the deepest hookpoint; if a target has several blocks of features, each block needs its own pass. If
    `watch` has checkpoints, it continues where an earlier run left the unit.

    Raises AutointerpError if more than MOST_NONFINITE of the tokens have NaN or infinite activations, and
    errors.OutOfMemoryError if halving the batches no longer helps.
    """
    split_of = np.array([SPLITS.index(w.split) for w in unit.windows], dtype=np.int64)
    documents = document_ordinals(unit.windows)
    keys = pool_keys(unit.windows, settings.config.seed)
    running = _UnitPass(loaded, targets, unit, settings, halving, watch or UnitWatch())
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
        running.run(_SplitOfUnit(code, windows, torch.from_numpy(pooled)))
    return [
        UnitEvidence(
            unit.index, _unit_tables(unit, work.parts, split_of, documents, keys, slots), totals | work.parts.totals()
        )
        for work in running.works
    ]


def _pool_tiles(windows: SplitWindows, pooled: np.ndarray) -> Columns:
    """The tiles of the pool's windows that may serve as negatives. A short last tile is left out unless it is the
    window's only one, since it says too little about a text."""
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


def add_batch(
    split_pass: SplitPass, sae: Sae, block: Block, batch: Batch, counted: Tensor, x: Tensor
) -> tuple[int, int]:
    """Encode the counted tokens of x [b, t, d] and accumulate them. Returns (tokens added, tokens with NaN or inf)."""
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
    """(row, position, feature, value, tokens encoded, tokens left out for a NaN or an infinity). The first four list
    every active feature on the counted tokens of x [b, t, d], ordered by row, then position."""
    counted = counted.to(x.device)  # they differ if the model is spread over devices
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


def _check_finite(work: _Work) -> None:
    parts, name = work.parts, f"{work.target.name}: " if work.target.name else ""
    n_tokens = sum(parts.n_tokens.values()) + parts.n_nonfinite
    if parts.n_nonfinite > MOST_NONFINITE * n_tokens:
        raise AutointerpError(
            f"{name}{parts.n_nonfinite} of {n_tokens} tokens have NaN or infinite activations (more than "
            f"{MOST_NONFINITE:.1%}). Try model.dtype = float32 or bfloat16, and check that the SAE's weights belong to "
            "this hookpoint"
        )


def _unit_tables(
    unit: WorkUnit,
    parts: EvidenceParts,
    split_of: np.ndarray,
    documents: np.ndarray,
    keys: np.ndarray,
    slots: np.ndarray,
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
