"""The windows of a corpus in pieces, up to a number of tokens that count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autointerp.records import Window, WorkUnit


@dataclass(frozen=True, slots=True)
class Piece:
    """Some windows that are read together."""

    windows: list[Window]
    n_counted: list[int]
    """Number of tokens that count in each window."""
    n_by_then: int
    """Number of tokens that count in this piece and all before it."""


def pieces(units: Iterable[WorkUnit], excluded: Tensor, end: float = math.inf, cut_at: int = 0) -> Iterator[Piece]:
    """The windows of the units, up to the one that reaches `end` tokens that count. No further unit is drawn.

    The unit that reaches `cut_at` tokens is cut there. Batches take the longest windows of a piece first, and without
    the cut the first `cut_at` tokens would come from long windows only.
    """
    ids = excluded.cpu().numpy()
    n = 0
    for unit in units if end > 0 else ():
        windows: list[Window] = []
        counts: list[int] = []
        for window in unit.windows:
            windows.append(window)
            counts.append(_n_counted(window, ids))
            before, n = n, n + counts[-1]
            if n >= end or before < cut_at <= n:
                yield Piece(windows, counts, n)
                windows, counts = [], []
            if n >= end:
                return
        if windows:
            yield Piece(windows, counts, n)


def _n_counted(window: Window, excluded: NDArray[np.int64]) -> int:
    ids = np.asarray(window.token_ids[window.n_prefix :], dtype=np.int64)
    return len(ids) - (int(np.isin(ids, excluded).sum()) if len(excluded) else 0)
