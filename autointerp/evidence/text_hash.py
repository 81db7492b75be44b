"""64-bit hashes of any stretch of a window's text, for many stretches at once.

A polynomial over the text's bytes, sum_k (byte_k + 1) BASE^k mod 2^64: the hash of a stretch is the difference of two
prefix sums, shifted back by a power of BASE's inverse. It is a hash of the text, not of the token ids, so the same text
in another tokenisation has the same hash. Everything is int64 with wrap-around.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BASE = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse mod 2^64."""
_INVERSE = pow(BASE, -1, 1 << 64)
_MIX = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
_LOW_31 = (1 << 31) - 1
KEY_BITS = 63
"""Keys for sampling are uniform in 0 .. 2^63-1, so that signed comparison orders them."""


def signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    return (value & (1 << 64) - 1) - ((value & 1 << 63) << 1)


def mix(x: Tensor) -> Tensor:
    """MurmurHash3's 64-bit finaliser on int64 (a bijection): every input bit moves every output bit."""
    x = x ^ ((x >> 33) & _LOW_31)
    for factor in _MIX:
        x = x * signed(factor)
        x = x ^ ((x >> 33) & _LOW_31)
    return x


def key(x: Tensor) -> Tensor:
    """A uniform sampling key, 0 .. 2^63-1, from a mixed int64."""
    return (x >> 1) & ((1 << KEY_BITS) - 1)


def name_hash(*parts: object) -> int:
    """A signed 64-bit hash of a few values, the same in every process."""
    return signed(int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little"))


def powers(n: int, base: int) -> np.ndarray:
    """base^0 .. base^(n-1) mod 2^64 as int64."""
    table = np.full(n, base, dtype=np.uint64)
    table[:1] = 1
    return np.cumprod(table, dtype=np.uint64).view(np.int64)


class TokenHashes:
    """Each token's polynomial hash and its length in bytes, [vocabulary] int64, from the tokens' byte strings."""

    def __init__(self, token_bytes: Sequence[bytes], device: torch.device) -> None:
        lengths = np.array([len(raw) for raw in token_bytes], dtype=np.int64)
        data = np.frombuffer(b"".join(token_bytes), dtype=np.uint8).astype(np.int64) + 1
        starts = np.cumsum(lengths) - lengths
        within = np.arange(len(data)) - np.repeat(starts, lengths)
        terms = data * powers(int(lengths.max(initial=0)) + 1, BASE)[within]
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(terms)])
        self.hash = torch.from_numpy(sums[starts + lengths] - sums[starts]).to(device)
        self.length = torch.from_numpy(lengths).to(device)

    def prefixes(self, ids: Tensor) -> TextPrefixes:
        """Of windows ids [w, t] (padding after the end does no harm as long as no stretch contains it)."""
        n, t = ids.shape
        offsets = torch.zeros(n, t + 1, dtype=torch.int64, device=ids.device)
        torch.cumsum(self.length[ids], 1, out=offsets[:, 1:])
        n_powers = int(offsets.max()) + 1 if offsets.numel() else 1
        table = torch.from_numpy(powers(n_powers, BASE)).to(ids.device)
        sums = torch.zeros_like(offsets)
        torch.cumsum(self.hash[ids] * table[offsets[:, :-1]], 1, out=sums[:, 1:])
        return TextPrefixes(sums, offsets, torch.from_numpy(powers(n_powers, _INVERSE)).to(ids.device))


class TextPrefixes:
    """Prefix sums of a set of windows."""

    def __init__(self, sums: Tensor, offsets: Tensor, inverse_powers: Tensor) -> None:
        self._width = sums.shape[1]
        self._sums, self._offsets, self._inverse = sums.flatten(), offsets.flatten(), inverse_powers

    def hash(self, window: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Of the text of tokens start .. end-1 of each window: int64 [n]."""
        first, last = window * self._width + start, window * self._width + end
        begin = self._offsets[first]
        shifted = (self._sums[last] - self._sums[first]) * self._inverse[begin]
        return mix(shifted ^ mix(self._offsets[last] - begin))
