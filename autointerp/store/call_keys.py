"""Which requests were recorded, told in microseconds: nearly every request is new, and a scan would cost far more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import numpy as np

KEYS_APART = 16_384
"""Keys that are kept in a set, 70 bytes each, before they join the sorted array, 8 bytes each."""


def call_key(request_sha256: str) -> int:
    """The first 64 bits of a request's hash."""
    return int(request_sha256[:16], 16)


class CallKeys:
    """The keys of all recorded calls: a sorted array, and a set of the newest ones. One thread may ask while another
    adds."""

    def __init__(self) -> None:
        self._sorted: np.ndarray | None = None
        self._new: set[int] = set()
        self._lock = threading.Lock()

    def may_hold(self, request_sha256: str, recorded: Callable[[], np.ndarray]) -> bool:
        """False: the request was never recorded. True: the table must be looked at, as two hashes may share a key.

        `recorded` reads the keys in the store, uint64 and ascending; it is called once, when they are first needed.
        """
        with self._lock:
            if self._sorted is None:
                self._sorted = recorded()
            key = call_key(request_sha256)
            at = int(np.searchsorted(self._sorted, np.uint64(key)))
            return key in self._new or (at < len(self._sorted) and int(self._sorted[at]) == key)

    def add(self, requests: Iterable[str]) -> None:
        """Adds the keys of requests, before their commit is certain: a key too many costs a look into the table, one
        too few costs a paid call."""
        with self._lock:
            self._new.update(map(call_key, requests))
            if self._sorted is not None and len(self._new) >= KEYS_APART:
                new = np.fromiter(self._new, dtype=np.uint64, count=len(self._new))
                self._sorted = np.union1d(self._sorted, new)
                self._new = set()
