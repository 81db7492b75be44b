"""Reduces a stream of (token, feature, value) triples to counts and bounded lists: the best ones, and a random sample.

All state is tensors on the device, for one split of one work unit and one block of features. Every result is a set
chosen by a total order, so it depends on the triples alone and not on how they were batched.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from autointerp.harvest.order import expand_ranges, first_of_each, rank_in_group, sorted_by, where
from autointerp.harvest.text_hash import mix
from autointerp.harvest.tiles import SplitWindows

OCTAVE_LOW, OCTAVE_HIGH = -16, 20
"""Histograms span 2^-16 to 2^20, with one bin below and one above."""
TOKEN_BITS, TILE_BITS = 2, 3
"""An octave has 2^bits bins of equal width. A float's bin is its mantissa's leading bits, so binning is exact."""
SUM_SCALE = float(1 << 24)
"""Activations are summed as integer multiples of 1 / SUM_SCALE, so that sums do not depend on their order."""
SUM_LIMIT = float(1 << 30)
"""Larger activations enter the sum as this value (2^63 / 2^24 / 2^30 of them still fit into an int64)."""
BUFFER_ROWS = 1 << 18
"""A list gathers at least this many rows before it is cut back."""
ACT_ROWS = 1 << 20
"""The activation log gathers at least this many rows before it is cut back. Sorting it is a unit's memory peak."""
_TOKEN_MASK = (1 << 32) - 1


def n_bins(bits: int) -> int:
    return ((OCTAVE_HIGH - OCTAVE_LOW) << bits) + 2


def bin_edges(bits: int) -> np.ndarray:
    """float64 [n_bins - 1]. Bin i holds edges[i-1] <= value < edges[i]; the first and last bins are open-ended."""
    index = np.arange(((OCTAVE_HIGH - OCTAVE_LOW) << bits) + 1)
    octave, part = index >> bits, index & (1 << bits) - 1
    return np.ldexp(1.0 + part / (1 << bits), octave + OCTAVE_LOW)


def bins_of(float_bits: Tensor, bits: int) -> Tensor:
    """The bin of each positive float32, given as its bits (int32 or int64)."""
    first = (127 + OCTAVE_LOW) << bits
    return (float_bits >> (23 - bits)).sub_(first - 1).clamp_(0, n_bins(bits) - 1)


def packed_peaks(float_bits: Tensor, token: Tensor) -> Tensor:
    """One int64 that orders peaks by value, then by earliest token (its number in the split's windows, below 2^32)."""
    return (float_bits.long() << 32) + (_TOKEN_MASK - token)


def peak_token(packed: Tensor) -> Tensor:
    return _TOKEN_MASK - (packed & _TOKEN_MASK)


def peak_value(packed: Tensor) -> Tensor:
    """The peaks' activations, float32."""
    return (packed >> 32).int().view(torch.float32)


class Counts:
    """Token and tile histograms [features, bins], exact sums and maxima [features] of one split."""

    def __init__(self, n_features: int, device: torch.device) -> None:
        self.n_features = n_features
        self.tokens = torch.zeros(n_features, n_bins(TOKEN_BITS), dtype=torch.int32, device=device)
        self.tiles = torch.zeros(n_features, n_bins(TILE_BITS), dtype=torch.int32, device=device)
        self.sums = torch.zeros(n_features, dtype=torch.int64, device=device)
        self.peaks = torch.zeros(n_features, dtype=torch.int64, device=device)

    def add_tokens(self, feature: Tensor, value: Tensor, float_bits: Tensor) -> None:
        index = bins_of(float_bits, TOKEN_BITS).long().add_(feature * n_bins(TOKEN_BITS))
        self.tokens.view(-1).scatter_add_(0, index, torch.ones_like(float_bits))
        scaled = value.double().clamp_(max=SUM_LIMIT).mul_(SUM_SCALE).round_().long()
        self.sums.scatter_add_(0, feature, scaled)

    def add_tiles(self, feature: Tensor, packed: Tensor) -> None:
        index = bins_of(packed >> 32, TILE_BITS).add_(feature * n_bins(TILE_BITS))
        ones = torch.ones(len(index), dtype=torch.int32, device=index.device)
        self.tiles.view(-1).scatter_add_(0, index, ones)


class PeakLists:
    """Keeps two lists of window peaks for each feature: the best peaks of the `size` best documents, and the best peaks
    of the `size` best snippet texts. Both are ordered by descending value, then by place in the unit."""

    def __init__(self, n_features: int, size: int, windows: SplitWindows) -> None:
        self._size, self._windows = size, windows
        device = windows.ids.device
        self.threshold = torch.zeros(n_features, dtype=torch.int64, device=device)
        """[features]: only a packed peak above this can enter either list."""
        self.feature = torch.zeros(0, dtype=torch.int64, device=device)
        self.packed = torch.zeros(0, dtype=torch.int64, device=device)
        self.lists = torch.zeros(0, dtype=torch.int8, device=device)
        """Bit 0 is set for peaks in the documents' list, bit 1 for those in the texts' list."""
        self._new: list[tuple[Tensor, Tensor]] = []
        self._gathered = 0

    def add(self, feature: Tensor, packed: Tensor) -> None:
        """Add peaks above `threshold`. Each (feature, window) pair may be added only once."""
        self._new.append((feature, packed))
        self._gathered += len(feature)
        if self._gathered > max(BUFFER_ROWS, len(self.feature)):
            self.cut()

    def cut(self) -> None:
        """Keep only the peaks that are in a list, and sort the columns by feature and order."""
        feature = torch.cat([self.feature, *(f for f, _ in self._new)])
        packed = torch.cat([self.packed, *(p for _, p in self._new)])
        self._new, self._gathered = [], 0
        if not len(feature):
            return
        order = sorted_by(feature, packed, descending=True)
        feature, packed = feature[order], packed[order]
        window = peak_token(packed) // self._windows.width
        text = self._windows.snippet_hash(window, peak_token(packed) - window * self._windows.width)
        document = self._windows.document[window]
        lists = torch.zeros(len(feature), dtype=torch.int8, device=feature.device)
        lowest = torch.zeros(2, len(self.threshold), dtype=torch.int64, device=feature.device)
        by_document = feature * (self._windows.document.max() + 1) + document
        for bit, group in enumerate((by_document, mix(feature) ^ text)):
            first = first_of_each(group)
            rank = rank_in_group(feature, first)
            lists += (first & (rank < self._size)).to(torch.int8) << bit
            last = where(first & (rank == self._size - 1))
            lowest[bit, feature[last]] = packed[last]
        self.threshold = lowest.amin(0)
        keep = where(lists > 0)
        self.feature, self.packed, self.lists = feature[keep], packed[keep], lists[keep]


class SampleLists:
    """Keeps each feature's `size` activating tiles with the smallest keys, one tile per key (the first in the unit)."""

    def __init__(self, n_features: int, size: int, device: torch.device) -> None:
        self._size = size
        self.threshold = torch.full((n_features,), torch.iinfo(torch.int64).max, device=device)
        """[features]: only a key up to this can enter."""
        self.feature = torch.zeros(0, dtype=torch.int64, device=device)
        self.key, self.tile, self.packed = self.feature.clone(), self.feature.clone(), self.feature.clone()
        self._new: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._gathered = 0

    def add(self, feature: Tensor, key: Tensor, tile: Tensor, packed: Tensor) -> None:
        """Add tiles; `packed` holds their peaks."""
        self._new.append((feature, key, tile, packed))
        self._gathered += len(feature)
        if self._gathered > max(BUFFER_ROWS, len(self.feature)):
            self.cut()

    def cut(self) -> None:
        """Keep only the tiles that are in a list, and sort the columns by feature and key."""
        held = (self.feature, self.key, self.tile, self.packed)
        feature, key, tile, packed = (torch.cat([old, *(new[i] for new in self._new)]) for i, old in enumerate(held))
        self._new, self._gathered = [], 0
        if not len(feature):
            return
        by_tile = tile.sort(stable=True).indices
        order = by_tile[sorted_by(feature[by_tile], key[by_tile])]
        feature, key = feature[order], key[order]
        first = torch.ones(len(key), dtype=torch.bool, device=key.device)
        first[1:] = (key[1:] != key[:-1]) | (feature[1:] != feature[:-1])
        rank = rank_in_group(feature, first)
        keep = where(first & (rank < self._size))
        self.feature, self.key = feature[keep], key[keep]
        self.tile, self.packed = tile[order[keep]], packed[order[keep]]
        last = where(first & (rank == self._size - 1))
        self.threshold[feature[last]] = key[last]


class ActivationLog:
    """Logs the (feature, token, value) triples of each (feature, window) pair that entered a list."""

    def __init__(self, token_bits: int, device: torch.device) -> None:
        self._shift = token_bits
        self.key = torch.zeros(0, dtype=torch.int64, device=device)
        """feature << token_bits | token"""
        self.value = torch.zeros(0, device=device)
        self._new: list[tuple[Tensor, Tensor]] = []
        self._gathered = 0

    def add(self, feature: Tensor, token: Tensor, value: Tensor) -> None:
        self._new.append(((feature << self._shift) | token, value))
        self._gathered += len(feature)

    @property
    def is_full(self) -> bool:
        return self._gathered > max(ACT_ROWS, len(self.key) // 2)

    def within(self, feature: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The triples in each range (feature, tokens start .. end-1), as (range, token, value) in order of token."""
        low, high = self._ranges(feature, start, end)
        owner, index = expand_ranges(low, high)
        return owner, self.key[index] & ((1 << self._shift) - 1), self.value[index]

    def keep(self, feature: Tensor, start: Tensor, end: Tensor) -> None:
        """Forget all triples outside these ranges, which may repeat or overlap."""
        low, high = self._ranges(feature, start, end)
        change = torch.zeros(len(self.key) + 1, dtype=torch.int64, device=self.key.device)
        ones = torch.ones_like(low)
        change.scatter_add_(0, low, ones).scatter_add_(0, high, -ones)
        kept = where(change.cumsum(0)[:-1] > 0)
        self.key, self.value = self.key[kept], self.value[kept]

    def _ranges(self, feature: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Where each (feature, tokens start .. end-1) begins and ends in `key`."""
        self.sort()
        base = feature << self._shift
        return torch.searchsorted(self.key, base | start), torch.searchsorted(self.key, base | (end - 1), right=True)

    def sort(self) -> None:
        """Merge the gathered triples into `key` and `value`, which then hold all triples in order."""
        if self._new:
            key = torch.cat([self.key, *(k for k, _ in self._new)])
            value = torch.cat([self.value, *(v for _, v in self._new)])
            self._new, self._gathered = [], 0
            self.key, order = key.sort()
            self.value = value[order]


class TilePool:
    """Records in which tiles of the pool's windows each feature is active: bitmaps [groups of 64 tiles, features]."""

    def __init__(self, n_features: int, pooled: Tensor, per_window: int) -> None:
        """`pooled` (bool [w]) marks the pool's windows. Tile t of the j-th one is bit j * per_window + t."""
        slot = pooled.long().cumsum(0) - 1
        self.slot = torch.where(pooled, slot, -1)
        """[w]: each window's number in the pool, or -1 outside it."""
        tile = torch.arange(len(pooled) * per_window, device=pooled.device)
        window = tile // per_window
        self._address = torch.where(pooled[window], slot[window] * per_window + tile - window * per_window, -1)
        n_tiles = int(pooled.sum()) * per_window
        self.masks = torch.zeros(-(-n_tiles // 64), n_features, dtype=torch.int64, device=pooled.device)

    def add(self, feature: Tensor, tile: Tensor) -> None:
        """Add active pairs. Each pair may be added only once."""
        address = self._address[tile]
        inside = where(address >= 0)
        if len(inside) < len(address):
            address, feature = address[inside], feature[inside]
        index = (address >> 6) * self.masks.shape[1] + feature
        # Each bit is set at most once, so adding is the same as or-ing.
        self.masks.view(-1).scatter_add_(0, index, torch.ones_like(address) << (address & 63))
