"""Turns batches of sparse codes into columns of evidence, for one split of a work unit and one block of features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autointerp.harvest.accumulators import (
    TILE_BITS,
    ActivationLog,
    Counts,
    PeakLists,
    SampleLists,
    TilePool,
    bins_of,
    packed_peaks,
    peak_token,
    peak_value,
)
from autointerp.harvest.order import where
from autointerp.harvest.text_hash import key, mix
from autointerp.harvest.tiles import SplitWindows, feature_seeds

Columns = dict[str, np.ndarray]
DOCUMENT_LIST, TEXT_LIST, SAMPLE_LIST = 1, 2, 4
"""The bits of candidates.lists: best peaks of documents, best peaks of texts, and sampled tiles."""
_STATE = {
    "counts": ("tokens", "tiles", "sums", "peaks"),
    "peaks": ("threshold", "feature", "packed", "lists"),
    "samples": ("threshold", "feature", "key", "tile", "packed"),
    "log": ("key", "value"),
    "pool": ("masks",),
}
"""The tensors that hold a SplitPass's accumulated state."""
TABLE_BYTES_CPU, TABLE_BYTES_DEVICE = 1 << 25, 1 << 28
"""Size of the dense [tiles, features] table in which one slab of windows is reduced."""


@dataclass(frozen=True, slots=True)
class Block:
    """The range of features low .. high-1."""

    low: int
    high: int

    def __len__(self) -> int:
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class ListSizes:
    """Entries kept per feature, split and unit: more than the store needs, since some texts are dropped later."""

    top: int
    sampled: int


class SplitPass:
    """Accumulates one split. Call `add` for each batch, then `finish` once."""

    def __init__(self, windows: SplitWindows, pooled: Tensor, block: Block, sizes: ListSizes, seed: int) -> None:
        """`pooled` (bool [w]) marks the windows of which every active tile is recorded."""
        device = self.device = windows.ids.device
        pooled = pooled.to(device)
        self._windows, self._block = windows, block
        self.counts = Counts(len(block), device)
        self.peaks = PeakLists(len(block), sizes.top, windows)
        self.samples = SampleLists(len(block), sizes.sampled, device)
        self._token_bits = (len(windows) * windows.width).bit_length()
        self.log = ActivationLog(self._token_bits, device)
        self.pool = TilePool(len(block), pooled, windows.grid.per_window)
        self._seeds = feature_seeds(block.low, block.high, seed, device)
        budget = TABLE_BYTES_CPU if device.type == "cpu" else TABLE_BYTES_DEVICE
        self._slab_windows = max(1, budget // (8 * len(block) * windows.grid.per_window))
        self._table = torch.zeros(0, dtype=torch.int64, device=device)

    def add(self, batch_windows: Tensor, row: Tensor, position: Tensor, feature: Tensor, value: Tensor) -> None:
        """Add one batch. `batch_windows` [b] gives its windows' places in the split. The triples [n] are ordered by
        `row`, an index into batch_windows; `feature` counts from the block's first; values are finite and positive."""
        n_windows = len(batch_windows)
        if n_windows <= self._slab_windows:
            self._add_slab(batch_windows, row, position, feature, value)
            return
        edges = torch.arange(0, n_windows + self._slab_windows, self._slab_windows, device=row.device)
        cuts = torch.searchsorted(row, edges).tolist()
        for i, (low, high) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            first = i * self._slab_windows
            part = slice(low, high)
            windows = batch_windows[first : first + self._slab_windows]
            self._add_slab(windows, row[part] - first, position[part], feature[part], value[part])

    def _add_slab(self, slab: Tensor, row: Tensor, position: Tensor, feature: Tensor, value: Tensor) -> None:
        n_features, per_window = len(self._block), self._windows.grid.per_window
        float_bits = value.view(torch.int32)
        self.counts.add_tokens(feature, value, float_bits)
        token = slab[row] * self._windows.width + position
        tile_row = row * per_window + self._windows.tile_in_window.view(-1)[token]
        table = self._cleared_table(len(slab) * per_window * n_features)
        table.scatter_reduce_(0, tile_row * n_features + feature, packed_peaks(float_bits, token), "amax")

        accepted = self._take_peaks(table.view(len(slab), per_window, n_features).amax(1), slab)
        self._take_tiles(table, slab, accepted)
        flags = accepted.view(-1)[row * n_features + feature]
        chosen = where(flags)
        self.log.add(feature[chosen], token[chosen], value[chosen])
        if self.log.is_full:
            self._forget()

    def _cleared_table(self, size: int) -> Tensor:
        if len(self._table) < size:
            self._table = self._table.new_zeros(size)
        return self._table[:size].zero_()

    def _take_peaks(self, peaks: Tensor, slab: Tensor) -> Tensor:
        """Offers the windows' peaks [slab, features] to the lists. Returns which pairs were taken."""
        torch.maximum(self.counts.peaks, peaks.amax(0), out=self.counts.peaks)
        accepted = peaks > self.peaks.threshold
        taken = where(accepted.view(-1))
        self.peaks.add(taken % len(self._block), peaks.view(-1)[taken])
        return accepted

    def _take_tiles(self, table: Tensor, slab: Tensor, accepted: Tensor) -> None:
        """Counts the active tiles of a table [slab * tiles, features], offers them, and marks taken ones in
        `accepted`."""
        n_features, per_window = len(self._block), self._windows.grid.per_window
        active = where(table)
        tile_row = active // n_features
        feature = active - tile_row * n_features
        packed = table[active]
        self.counts.add_tiles(feature, packed)
        slab_row = tile_row // per_window
        tile = slab[slab_row] * per_window + (tile_row - slab_row * per_window)
        self.pool.add(feature, tile)
        keys = key(mix(self._windows.tile_hash[tile] ^ self._seeds[feature]))
        taken = where(keys <= self.samples.threshold[feature])
        feature = feature[taken]
        self.samples.add(feature, keys[taken], tile[taken], packed[taken])
        accepted.view(-1)[slab_row[taken] * n_features + feature] = True

    def _forget(self) -> None:
        """Drops the logged triples of pairs that are no longer in any list."""
        self.peaks.cut()
        self.samples.cut()
        spans = [self._peak_spans(), self._tile_spans()]
        feature, start, end = (torch.cat([span[i] for span in spans]) for i in range(3))
        self.log.keep(feature, start, end)

    def _peak_spans(self) -> tuple[Tensor, Tensor, Tensor]:
        """The snippets of the kept peaks, as (feature, first token, token after the last)."""
        token = peak_token(self.peaks.packed)
        window = token // self._windows.width
        start, end = self._windows.snippet_span(window, token - window * self._windows.width)
        return self.peaks.feature, window * self._windows.width + start, window * self._windows.width + end

    def _tile_spans(self) -> tuple[Tensor, Tensor, Tensor]:
        window = self.samples.tile // self._windows.grid.per_window
        start, end = self._windows.tile_span(self.samples.tile)
        return self.samples.feature, window * self._windows.width + start, window * self._windows.width + end

    def state(self) -> dict[str, Tensor]:
        """Everything accumulated so far (the tensors themselves, not copies). How it is laid out depends on the batches
        and on when this is called; the columns that `finish` returns do not."""
        self.peaks.cut()
        self.samples.cut()
        self.log.sort()
        return {
            f"{part}.{name}": getattr(getattr(self, part), name) for part, names in _STATE.items() for name in names
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the `state` of another pass over the same windows and block. Call it before `add`."""
        for part, names in _STATE.items():
            for name in names:
                setattr(getattr(self, part), name, state[f"{part}.{name}"].to(self.device))

    def finish(self) -> dict[str, Columns]:
        """The columns of candidates, activations, stats, token_bins, tile_bins and pool (see store/unit_tables.py)."""
        self.peaks.cut()
        self.samples.cut()
        feature, start, end = (torch.cat(pair) for pair in zip(self._peak_spans(), self._tile_spans(), strict=True))
        n_peaks, width = len(self.peaks.feature), self._windows.width
        packed = torch.cat([self.peaks.packed, self.samples.packed])
        window = start // width
        local_start = start - window * width
        text = torch.cat(
            [
                self._windows.snippet_hash(window[:n_peaks], (peak_token(packed) - window * width)[:n_peaks]),
                self._windows.tile_hash[self.samples.tile],
            ]
        )
        lists = torch.cat([self.peaks.lists, torch.full_like(self.samples.tile, SAMPLE_LIST, dtype=torch.int8)])
        candidates = {
            "feature": feature + self._block.low,
            "lists": lists,
            "window": self._windows.ordinal[window],
            "offset": local_start,
            "length": end - start,
            "peak": peak_token(packed) - window * width,
            "value": peak_value(packed),
            "tile_bin": bins_of(packed >> 32, TILE_BITS),
            "text_hash": text,
            "sample_key": torch.cat([torch.full_like(self.peaks.packed, -1), self.samples.key]),
        }
        owner, token, value = self.log.within(feature, start, end)
        activations = {"candidate": owner, "position": token - start[owner], "value": value}
        tables = {"candidates": candidates, "activations": activations, **self._count_tables()}
        return {name: {c: _numpy(t) for c, t in columns.items()} for name, columns in tables.items()}

    def _count_tables(self) -> dict[str, dict[str, Tensor]]:
        counts, low = self.counts, self._block.low
        tables: dict[str, dict[str, Tensor]] = {}
        for name, counted in (("token_bins", counts.tokens), ("tile_bins", counts.tiles)):
            index = where(counted.view(-1))
            feature = index // counted.shape[1]
            tables[name] = {
                "feature": feature + low,
                "bin": index - feature * counted.shape[1],
                "n": counted.view(-1)[index],
            }
        alive = where(counts.peaks)
        tables["stats"] = {
            "feature": alive + low,
            "n_active_tokens": counts.tokens.sum(1, dtype=torch.int64)[alive],
            "n_active_tiles": counts.tiles.sum(1, dtype=torch.int64)[alive],
            "scaled_sum": counts.sums[alive],
            "max": peak_value(counts.peaks[alive]),
        }
        index = where(self.pool.masks.view(-1))
        group = index // len(self._block)
        tables["pool"] = {
            "tile_group": group,
            "feature": index - group * len(self._block) + low,
            "mask": self.pool.masks.view(-1)[index],
        }
        return tables


def _numpy(column: Tensor) -> np.ndarray:
    return column.cpu().numpy()
