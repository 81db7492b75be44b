"""The windows of one split of a work unit as tensors: token ids, tiles, documents, hashes of any stretch of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from autointerp.harvest.text_hash import TokenHashes, key, mix, name_hash, signed
from autointerp.records import Window


def document_ordinals(windows: Sequence[Window]) -> np.ndarray:
    """int64 [n]: the number of each window's document, counted in the unit's order."""
    ordinals = np.zeros(len(windows), dtype=np.int64)
    for i in range(1, len(windows)):
        last, this = windows[i - 1], windows[i]
        ordinals[i] = ordinals[i - 1] + (this.document != last.document or this.start <= last.start)
    return ordinals


def pool_keys(windows: Sequence[Window], seed: int) -> np.ndarray:
    """int64 [n], uniform in 0..2^63-1. A window's key depends on its document's name and its start. Negatives are drawn
    from the windows with the smallest keys."""
    names: dict[str, int] = {}
    hashes = np.fromiter(
        (names.setdefault(w.document, name_hash(seed, w.document)) for w in windows), np.int64, len(windows)
    )
    starts = np.fromiter((w.start for w in windows), np.int64, len(windows))
    return key(mix(torch.from_numpy(hashes) ^ mix(torch.from_numpy(starts)))).numpy()


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Cuts windows into tiles of `tile_tokens` tokens, from the first token after the prefix. The last tile may be
    shorter."""

    tile_tokens: int
    per_window: int
    """The longest window's number of tiles. Tile `t` of window `w` has the number w * per_window + t."""


class SplitWindows:
    """All windows of one split of a unit, in the unit's order, on the device.

    The tensors are int64: ids [w, t] padded on the right, length [w] (prefix included), prefix [w], ordinal [w] (place
    in the unit), document [w] (number of the document in the unit, from 0).
    """

    def __init__(
        self,
        windows: Sequence[Window],
        ordinal: np.ndarray,
        document: np.ndarray,
        tile_tokens: int,
        hashes: TokenHashes,
    ) -> None:
        device = hashes.hash.device
        self.windows = list(windows)
        lengths = np.fromiter((len(w.token_ids) for w in windows), np.int64, len(windows))
        prefix = np.fromiter((w.n_prefix for w in windows), np.int64, len(windows))
        self.width = int(lengths.max(initial=1))
        ids = np.full((len(windows), self.width), hashes.pad_id, dtype=np.int64)
        ids[np.arange(self.width) < lengths[:, None]] = np.fromiter(
            chain.from_iterable(w.token_ids for w in windows), np.int64, int(lengths.sum())
        )
        self.n_tiles = int((-(-(lengths - prefix) // tile_tokens)).sum())
        self.grid = TileGrid(tile_tokens, max(1, -(-int((lengths - prefix).max(initial=1)) // tile_tokens)))
        self.ids = torch.from_numpy(ids).to(device)
        self.length, self.prefix = torch.from_numpy(lengths).to(device), torch.from_numpy(prefix).to(device)
        self.ordinal, self.document = torch.from_numpy(ordinal).to(device), torch.from_numpy(document).to(device)
        self._text = hashes.prefixes(self.ids)
        position = torch.arange(self.width, device=device)
        within = (position - self.prefix[:, None]).clamp(min=0)
        self.tile_in_window = within // tile_tokens
        """[w, t]: the number of each token's tile in its window."""
        tile = torch.arange(len(windows) * self.grid.per_window, device=device)
        self.tile_hash = self._text.hash(tile // self.grid.per_window, *self.tile_span(tile))
        """[w * per_window] int64: the hash of each tile's text (meaningless for tiles beyond a window's end)."""

    def __len__(self) -> int:
        return len(self.windows)

    def tile_span(self, tile: Tensor) -> tuple[Tensor, Tensor]:
        """(start, end) of each numbered tile in its window's tokens. Tiles beyond the window's end are empty."""
        window = tile // self.grid.per_window
        length = self.length[window]
        start = self.prefix[window] + (tile - window * self.grid.per_window) * self.grid.tile_tokens
        start = torch.minimum(start, length)
        return start, torch.minimum(start + self.grid.tile_tokens, length)

    def snippet_span(self, window: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
        """(start, end) of the tile_tokens tokens around each peak, shifted to lie inside the window's corpus tokens. A
        snippet is shorter only if the window is."""
        length, prefix = self.length[window], self.prefix[window]
        start = torch.minimum(peak - self.grid.tile_tokens // 2, length - self.grid.tile_tokens)
        start = torch.maximum(start, prefix)
        return start, torch.minimum(start + self.grid.tile_tokens, length)

    def snippet_hash(self, window: Tensor, peak: Tensor) -> Tensor:
        return self._text.hash(window, *self.snippet_span(window, peak))


def feature_seeds(low: int, high: int, seed: int, device: torch.device) -> Tensor:
    """int64 [high - low]: a hash for each feature, so that features draw independent samples."""
    features = torch.arange(low, high, dtype=torch.int64, device=device)
    return mix(mix(features + signed(0x9E3779B97F4A7C15)) ^ name_hash("sample", seed))
