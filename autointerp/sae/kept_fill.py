"""Keeps the block in the shuffle buffer on disk if gathering it takes long, so that a kill costs minutes of it."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from autointerp.errors import DamagedError, InputError
from autointerp.sae import files

KEEP_EVERY_S = 120.0
"""A block that takes longer than this to gather is kept, in parts of this many seconds of work."""

Place = tuple[Any, int]
"""A place in the source: a position, and the number of vectors to skip from there."""


class KeptFill:
    """The vectors of one block as numbered files in `folder`, each with the place behind it.

    `key` stands for the source: files that were written under another key, or for another block, are not used. Nothing
    is written for a block that is gathered within `every_s` seconds. What is read goes to `device`. Raises
    DiskFullError.
    """

    def __init__(
        self, folder: Path, key: str, device: torch.device | str = "cpu", every_s: float = KEEP_EVERY_S
    ) -> None:
        self._folder, self._key, self._device, self._every_s = folder, key, device, every_s
        self._block, self._begin = -1, list[Any]((None, 0))
        self._kept = 0  # vectors of the block that are on disk
        self._parts = 0
        self._last = time.monotonic()

    def begin(self, block: int, begin: Place) -> Iterator[tuple[Tensor, Place]]:
        """Start a block. Yields what an earlier run kept of it, in order: vectors [n, d_in] and the place behind them.
        A damaged file, and what follows it, is not used."""
        self._block, self._begin, self._kept, self._parts = block, list(begin), 0, 0
        self._last = time.monotonic()
        while (path := self._path(self._parts)).exists():
            try:
                found, state = files.read_tensors(path)["vectors"], cast(Any, files.read_state(path))
                if state != self._state(found, state["behind"]):
                    break
                position, skip = state["behind"]
            except (DamagedError, InputError, KeyError, TypeError, ValueError):
                break
            self._parts += 1
            self._kept += len(found)
            yield found.to(self._device), (position, int(skip))

    def is_due(self, filled: int) -> bool:
        """Whether the first `filled` vectors of the block should be kept now."""
        return filled > self._kept and time.monotonic() - self._last >= self._every_s

    def keep(self, buffer: Tensor, filled: int, behind: Place) -> None:
        """Keep the vectors `buffer[:filled]`; `behind` is the place after them. The files of other blocks go."""
        if filled > self._kept:
            vectors = buffer[self._kept : filled].cpu().contiguous()
            files.write_tensors(self._path(self._parts), {"vectors": vectors}, self._state(vectors, list(behind)))
            self._parts += 1
            self._kept, self._last = filled, time.monotonic()
            self._delete_others()

    @property
    def is_used(self) -> bool:
        """Whether a part of the current block is on disk."""
        return self._parts > 0

    def delete(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, part: int) -> Path:
        return self._folder / f"{self._block}-{part}.safetensors"

    def _state(self, vectors: Tensor, behind: Any) -> dict[str, Any]:
        bits = vectors.contiguous().view(torch.uint8).numpy().tobytes()
        return {
            "key": self._key, "block": self._block, "begin": self._begin, "first": self._kept, "behind": behind,
            "sha256": hashlib.sha256(bits).hexdigest(),
        }  # fmt: skip

    def _delete_others(self) -> None:
        current = {self._path(part) for part in range(self._parts)}
        for path in self._folder.glob("*.safetensors"):
            if path not in current:
                path.unlink(missing_ok=True)
