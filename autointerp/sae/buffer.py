"""Turns activation vectors into shuffled training batches, and can be restarted in the middle.

Consecutive vectors come from one document, so without shuffling every batch would be one document. Vectors are gathered
into a block, the block is permuted with its own seed, and batches are cut from it. The start of the block is recorded,
so a restart reads from there and hands out exactly the remaining batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from autointerp.errors import InputError, MismatchError, StoppedError
from autointerp.sae.kept_fill import KeptFill


class ActivationSource(Protocol):
    """A source of activation vectors, such as a model that reads a corpus, or an array on disk."""

    @property
    def d_in(self) -> int: ...

    def read(self, position: Any) -> Iterator[tuple[Tensor, Any]]:
        """Blocks of vectors [n, d_in] from `position` on (None: the start), in a fixed order, each with the position
        right behind it. A position is a JSON-able value, and equal positions give equal blocks. Ends with the corpus;
        the caller then reads again from the start."""
        ...


class ArraySource:
    """A source of vectors [n, d_in] in memory or memory-mapped, of any type that torch.as_tensor takes."""

    def __init__(self, vectors: Any, block: int = 8192) -> None:
        self.vectors, self.block = vectors, block

    @property
    def d_in(self) -> int:
        return int(self.vectors.shape[1])

    def read(self, position: Any) -> Iterator[tuple[Tensor, Any]]:
        for start in range(int(position or 0), len(self.vectors), self.block):
            part = self.vectors[start : start + self.block]
            # torch.tensor copies: a read-only memory map must not become a tensor
            yield part if isinstance(part, Tensor) else torch.tensor(part), start + self.block


class ShuffledBatches:
    """`n_batches` batches of `batch_size` vectors from `source`, shuffled within blocks of about `buffer_vectors`.

    While a block is gathered, which takes minutes with a large model, `on_fill` is called with the number of vectors
    that it has and will have. `kept` keeps a block that takes long on disk; a run that goes on reads it from there.
    One block is held, with the dtype and device of the source's vectors. Raises InputError if the source has no
    vectors, and MismatchError if their width is not its d_in.
    """

    def __init__(
        self, source: ActivationSource, *, batch_size: int, buffer_vectors: int, n_batches: int, seed: int,
        on_fill: Callable[[int, int], None] = lambda vectors, of: None, kept: KeptFill | None = None,
    ) -> None:  # fmt: skip
        self._on_fill, self._kept = on_fill, kept
        self.before_keeping: Callable[[], None] = lambda: None
        """Called before the first part of a block is kept and the block before it is deleted."""
        self.source, self.batch_size, self.n_batches, self.seed = source, batch_size, n_batches, seed
        self.buffer_batches = min(n_batches, max(1, buffer_vectors // batch_size))
        self.served = 0
        self._held = -1  # number of the block in the buffer; -1 also while it is filled
        self._begun = -1  # number of the block to which _start belongs, whether it is filled or being filled
        self._start: tuple[Any, int] = (None, 0)  # start of that block: a position, vectors to skip from there
        self._next: tuple[Any, int] = (None, 0)  # start of the block after it
        self._blocks: Iterator[tuple[Tensor, Any]] | None = None
        self._rest: Tensor | None = None
        self._after: Any = None
        self._buffer: Tensor | None = None
        self._order = torch.empty(0, dtype=torch.int64)

    def state(self) -> dict[str, Any]:
        """A JSON-able state. After `restore`, exactly the batches not yet handed out follow. `on_fill` may take it."""
        begin = self._start if self._begun == self.served // self.buffer_batches else self._next
        return {"served": self.served, "begin": list(begin)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Call it before anything is read."""
        self.served, (position, skip) = int(state["served"]), state["begin"]
        self._next = (position, int(skip))

    def block(self) -> Tensor:
        """The vectors of the current block [n, d_in] in the source's order, for statistics before training."""
        if self._held != self.served // self.buffer_batches:
            self._fill()
        assert self._buffer is not None
        return self._buffer[: len(self._order)]

    def __iter__(self) -> Iterator[Tensor]:
        """The remaining batches, each [batch_size, d_in]."""
        while self.served < self.n_batches:
            vectors = self.block()
            first = self.served % self.buffer_batches * self.batch_size
            self.served += 1
            yield vectors[self._order[first : first + self.batch_size]]

    def _fill(self) -> None:
        block_index = self.served // self.buffer_batches
        wanted = min(self.buffer_batches, self.n_batches - block_index * self.buffer_batches) * self.batch_size
        self._held, self._begun, self._start, filled = -1, block_index, self._next, 0
        for part, behind in self._kept.begin(block_index, self._next) if self._kept is not None else ():
            # parts are found only by a run that goes on, which has read nothing yet
            filled = self._take(part, filled)
            self._next = behind
        while filled < wanted:
            vectors = self._pending()
            part = vectors[: wanted - filled]
            filled = self._take(part, filled)
            if len(part) < len(vectors):
                self._rest, self._next = vectors[len(part) :], (self._next[0], self._next[1] + len(part))
            else:
                self._rest, self._next = None, (self._after, 0)
            self._report(filled, wanted)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + block_index)
        assert self._buffer is not None
        self._held = block_index
        self._order = torch.randperm(wanted, generator=generator).to(self._buffer.device)

    def _take(self, vectors: Tensor, filled: int) -> int:
        """Put `vectors` behind the first `filled` of the buffer. Returns how many there are now."""
        if self._buffer is None:
            shape = self.buffer_batches * self.batch_size, self.source.d_in
            self._buffer = torch.empty(shape, dtype=vectors.dtype, device=vectors.device)
        self._buffer[filled : filled + len(vectors)] = vectors
        return filled + len(vectors)

    def _report(self, filled: int, wanted: int) -> None:
        try:
            self._on_fill(filled, wanted)
        except StoppedError:
            self._keep(filled)
            raise
        # a block of which a part is kept is kept whole: a run that goes on in its middle needs all of it
        if self._kept is not None and (self._kept.is_due(filled) or (filled == wanted and self._kept.is_used)):
            self._keep(filled)

    def _keep(self, filled: int) -> None:
        if self._kept is not None and self._buffer is not None:
            if not self._kept.is_used:
                self.before_keeping()
            self._kept.keep(self._buffer, filled, self._next)

    def _pending(self) -> Tensor:
        """The unread vectors at `_next`, at least one."""
        if self._rest is not None:
            return self._rest
        if self._blocks is None:
            self._blocks = iter(self.source.read(self._next[0]))
        started_over = self._next == (None, 0)
        while True:
            item = next(self._blocks, None)
            if item is None:
                if started_over:
                    raise InputError("the corpus gave no activation vectors to train on; check [corpus].source")
                started_over, self._next = True, (None, 0)
                self._blocks = iter(self.source.read(None))
                continue
            vectors, self._after = item
            if vectors.ndim != 2 or vectors.shape[1] != self.source.d_in:
                raise MismatchError(
                    f"activation vectors of shape {list(vectors.shape)}, expected [n, {self.source.d_in}]"
                )
            vectors = vectors[self._next[1] :]
            if len(vectors):
                return vectors
            self._next = (self._after, 0)
