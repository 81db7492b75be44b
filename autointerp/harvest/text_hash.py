"""64-bit hashes of any stretch of a window's text, for many stretches at once.

The hash is a polynomial over the text's bytes, sum_k (byte_k + 1) BASE^k mod 2^64. The hash of a stretch is the
difference of two prefix sums, shifted back by a power of BASE's inverse. It hashes the text, not the token ids, so
equal texts have equal hashes in every tokenisation. The text is the one that is shown: a character whose bytes several
tokens share belongs to the last of them. All arithmetic is int64 with wrap-around.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

BASE = 0x9E3779B97F4A7C15
"""It is odd, so that it has an inverse mod 2^64."""
_INVERSE = pow(BASE, -1, 1 << 64)
_MIX = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
_LOW_31 = (1 << 31) - 1
MOST_RUNS = 1 << 16
"""Number of runs of split tokens whose hashes are cached."""
KEY_BITS = 63
"""Sampling keys are uniform in 0 .. 2^63-1, so that signed comparison orders them."""


def signed(value: int) -> int:
    """The int64 that has the bits of this unsigned 64-bit number."""
    return (value & (1 << 64) - 1) - ((value & 1 << 63) << 1)


def mix(x: Tensor) -> Tensor:
    """MurmurHash3's 64-bit finaliser on int64. It is a bijection in which every input bit affects every output bit."""
    x = x ^ ((x >> 33) & _LOW_31)
    for factor in _MIX:
        x = x * signed(factor)
        x = x ^ ((x >> 33) & _LOW_31)
    return x


def key(x: Tensor) -> Tensor:
    """Makes a uniform sampling key, 0 .. 2^63-1, from a mixed int64."""
    return (x >> 1) & ((1 << KEY_BITS) - 1)


def name_hash(*parts: object) -> int:
    """A signed 64-bit hash of a few values, equal in every process."""
    return signed(int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little"))


def powers(n: int, base: int) -> np.ndarray:
    """base^0 .. base^(n-1) mod 2^64 as int64."""
    table = np.full(n, base, dtype=np.uint64)
    table[:1] = 1
    return np.cumprod(table, dtype=np.uint64).view(np.int64)


def polynomial(raw: bytes) -> int:
    """sum_k (byte_k + 1) BASE^k mod 2^64 as int64."""
    value = 0
    for byte in reversed(raw):
        value = (value * BASE + byte + 1) & (1 << 64) - 1
    return signed(value)


class TokenHashes:
    """Each token's polynomial hash and length in bytes, both [vocabulary] int64, from the tokens' byte strings.

    `split` names the tokens that are not whole characters by themselves; `decode` gives the strings of a run of them.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        device: torch.device,
        split: Iterable[int] = (),
        decode: Callable[[Sequence[int]], list[str]] | None = None,
    ) -> None:
        lengths = np.array([len(raw) for raw in token_bytes], dtype=np.int64)
        data = np.frombuffer(b"".join(token_bytes), dtype=np.uint8).astype(np.int64) + 1
        starts = np.cumsum(lengths) - lengths
        within = np.arange(len(data)) - np.repeat(starts, lengths)
        terms = data * powers(int(lengths.max(initial=0)) + 1, BASE)[within]
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(terms)])
        self.hash = torch.from_numpy(sums[starts + lengths] - sums[starts]).to(device)
        self.length = torch.from_numpy(lengths).to(device)
        self._is_split = np.zeros(len(lengths), dtype=bool)
        self._is_split[list(split)] = True
        self.pad_id = int(np.argmin(self._is_split))
        """An id to pad windows with. It is not a split token, so it joins no run of them."""
        self._decode = decode
        self._runs: dict[tuple[int, ...], list[tuple[int, int]]] = {}

    def prefixes(self, ids: Tensor) -> TextPrefixes:
        """The prefix sums of windows ids [w, t], padded with `pad_id`. No hashed stretch may contain padding."""
        n, t = ids.shape
        hashes, lengths = self.hash[ids], self.length[ids]
        if self._decode is not None:
            self._join_characters(ids, hashes, lengths)
        offsets = torch.zeros(n, t + 1, dtype=torch.int64, device=ids.device)
        torch.cumsum(lengths, 1, out=offsets[:, 1:])
        n_powers = int(offsets.max()) + 1 if offsets.numel() else 1
        table = torch.from_numpy(powers(n_powers, BASE)).to(ids.device)
        sums = torch.zeros_like(offsets)
        torch.cumsum(hashes * table[offsets[:, :-1]], 1, out=sums[:, 1:])
        return TextPrefixes(sums, offsets, torch.from_numpy(powers(n_powers, _INVERSE)).to(ids.device))

    def _join_characters(self, ids: Tensor, hashes: Tensor, lengths: Tensor) -> None:
        """Replaces the hashes of split tokens' bytes by those of jointly decoded strings. A token that is not a whole
        character belongs to a run of such tokens, and each run is decoded by itself."""
        width = ids.shape[1]
        flat = ids.flatten().cpu().numpy()
        place = np.flatnonzero(self._is_split[flat])
        if not len(place):
            return
        new_run = np.ones(len(place), dtype=bool)
        new_run[1:] = (np.diff(place) != 1) | (place[1:] % width == 0)
        found: list[tuple[int, int]] = []
        for run in np.split(flat[place], np.flatnonzero(new_run)[1:]):
            found += self._run(tuple(run.tolist()))
        values = torch.tensor(found, dtype=torch.int64, device=ids.device)
        index = torch.from_numpy(place).to(ids.device)
        hashes.view(-1)[index], lengths.view(-1)[index] = values[:, 0], values[:, 1]

    def _run(self, run: tuple[int, ...]) -> list[tuple[int, int]]:
        """The (hash, length in bytes) of each string of the run."""
        known = self._runs.get(run)
        if known is None:
            assert self._decode is not None
            known = [(polynomial(raw), len(raw)) for raw in (s.encode() for s in self._decode(run))]
            if len(self._runs) < MOST_RUNS:
                self._runs[run] = known
        return known


class TextPrefixes:
    """The prefix sums of a set of windows."""

    def __init__(self, sums: Tensor, offsets: Tensor, inverse_powers: Tensor) -> None:
        self._width = sums.shape[1]
        self._sums, self._offsets, self._inverse = sums.flatten(), offsets.flatten(), inverse_powers

    def hash(self, window: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The hash of the text of tokens start .. end-1 of each window, int64 [n]."""
        first, last = window * self._width + start, window * self._width + end
        begin = self._offsets[first]
        shifted = (self._sums[last] - self._sums[first]) * self._inverse[begin]
        return mix(shifted ^ mix(self._offsets[last] - begin))
