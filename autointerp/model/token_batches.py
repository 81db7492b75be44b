"""Turns windows into padded batches and batches into activations: the hot path of the harvest, without Python per
token.

Batches are made within one work unit and depend only on its windows, so a unit gives the same numbers on the same
device in any process. A batch that runs out of memory is halved, and halvings are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from autointerp.errors import OutOfMemoryError
from autointerp.model.hooks import Hookpoint, activations_at_all
from autointerp.model.load import LoadedModel
from autointerp.records import Window

MOST_HALVINGS = 4
SHORTEST_SHARE = 0.5
"""A window shorter than this share of its batch's longest window begins a new batch, unless asked otherwise."""
OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of similar length, padded on the right."""

    ids: Tensor
    """int64 [B, T]."""
    lengths: Tensor
    """int64 [B]: tokens in each row, with its prefix and without padding."""
    prefixes: Tensor
    """int64 [B]: how many ids at the start of each row belong to no document (a BOS)."""
    windows: list[Window]
    """The B windows, in row order."""
    indices: list[int]
    """The index of each row's window in the list that the batches were made from."""

    def to(self, device: torch.device) -> Batch:
        ids, lengths, prefixes = (t.to(device, non_blocking=True) for t in (self.ids, self.lengths, self.prefixes))
        return Batch(ids, lengths, prefixes, self.windows, self.indices)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop`, padded only to the longest of them."""
        longest = max(len(window.token_ids) for window in self.windows[start:stop])
        return Batch(
            self.ids[start:stop, :longest],
            self.lengths[start:stop],
            self.prefixes[start:stop],
            self.windows[start:stop],
            self.indices[start:stop],
        )


def make_batches(
    windows: Sequence[Window], batch_tokens: int, pad_id: int, *, shortest_share: float = SHORTEST_SHARE
) -> list[Batch]:
    """The windows of one unit in batches of at most `batch_tokens` ids, padding included. Longer windows come first;
    equally long ones keep their order. A window longer than `batch_tokens` is a batch of its own. With a
    `shortest_share` of 1 only equally long windows share a batch, and nothing is padded."""
    lengths = np.fromiter((len(window.token_ids) for window in windows), dtype=np.int64, count=len(windows))
    prefixes = np.fromiter((window.n_prefix for window in windows), dtype=np.int64, count=len(windows))
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        room = order[start : start + max(1, batch_tokens // max(1, longest))]
        rows = room[lengths[room] >= shortest_share * longest]  # the first ones, as lengths descend
        batches.append(_padded([windows[i] for i in rows], rows, lengths[rows], prefixes[rows], pad_id))
        start += len(rows)
    return batches


def _padded(
    windows: list[Window], indices: np.ndarray, lengths: np.ndarray, prefixes: np.ndarray, pad_id: int
) -> Batch:
    longest = int(lengths[0])
    flat = np.fromiter(
        chain.from_iterable(window.token_ids for window in windows), dtype=np.int64, count=int(lengths.sum())
    )
    if int(lengths[-1]) == longest:
        ids = flat.reshape(len(windows), longest)
    else:
        ids = np.full((len(windows), longest), pad_id, dtype=np.int64)
        ids[np.arange(longest) < lengths[:, None]] = flat
    return Batch(
        torch.from_numpy(ids), torch.from_numpy(lengths), torch.from_numpy(prefixes), windows, indices.tolist()
    )


def eligible(batch: Batch, excluded_ids: Iterable[int] | Tensor) -> Tensor:
    """bool [B, T] on the batch's device: which tokens count. The prefix, padding and excluded ids do not.

    `excluded_ids`: see `TokenText.excluded_ids` (BOS, EOS, padding, special and configured tokens). Pass a tensor on
    the batch's device if this is called often.
    """
    position = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    inside = (position >= batch.prefixes[:, None]) & (position < batch.lengths[:, None])
    if not isinstance(excluded_ids, Tensor):
        excluded_ids = torch.tensor(sorted(excluded_ids), dtype=torch.int64, device=batch.ids.device)
    return inside if not len(excluded_ids) else inside & ~torch.isin(batch.ids, excluded_ids)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out. CUDA has its own error type; MPS and the CPU allocator only say so in the message."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error).lower() for text in OUT_OF_MEMORY_TEXTS)


class Halving:
    """Runs work on batches, and on halves of them (then quarters, ...) once memory runs out, at most MOST_HALVINGS
    times.

    Later batches start at the level reached, so that not each of them fails first. `halvings` counts how often the
    level rose. The caller records it, since numbers computed at another level may differ in their last bits.
    """

    def __init__(self, halvings: int = 0) -> None:
        self.halvings = halvings

    def run(self, batch: Batch, work: Callable[[Batch], Result]) -> Iterator[tuple[Batch, Result]]:
        """(part, work(part)) for the parts of the batch, in row order. `work` must have no side effects, since it is
        called again on halves after it failed. Raises errors.OutOfMemoryError when halving no longer helps."""
        start, n_rows = 0, len(batch.windows)
        while start < n_rows:
            size = max(1, n_rows >> self.halvings)
            part = batch.rows(start, min(start + size, n_rows)) if size < n_rows else batch
            reason = ""
            try:
                result = work(part)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            if not reason:
                yield part, result
                del result  # frees these activations before the next forward pass
                start += size
                continue
            # Outside the except block, whose traceback would keep the failed pass's tensors alive.
            if self.halvings >= MOST_HALVINGS or size == 1:
                raise OutOfMemoryError(
                    f"out of memory with {len(part.windows)} windows of {part.ids.shape[1]} tokens, after "
                    f"{self.halvings} halvings ({reason}). Lower model.batch_tokens or corpus.context_length, or use "
                    "model.quantization; what is done is kept"
                )
            self.halvings += 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


class ActivationBatches(Iterator[tuple[Batch, Tensor]]):
    """The iterator that `activation_batches` returns."""

    def __init__(
        self, loaded: LoadedModel, hookpoint: Hookpoint, windows: Sequence[Window], batch_tokens: int, halvings: int
    ) -> None:
        self._halving = Halving(halvings)
        self._parts = self._run(loaded, hookpoint, windows, batch_tokens)

    @property
    def halvings(self) -> int:
        """How often a batch was halved so far, including the halvings given at the start."""
        return self._halving.halvings

    def _run(
        self, loaded: LoadedModel, hookpoint: Hookpoint, windows: Sequence[Window], batch_tokens: int
    ) -> Iterator[tuple[Batch, Tensor]]:
        def forward(part: Batch) -> Tensor:
            return activations_at_all(loaded, [hookpoint], part.ids, part.lengths)[0]

        for batch in make_batches(windows, batch_tokens, loaded.pad_id):
            yield from self._halving.run(batch.to(loaded.device), forward)

    def __next__(self) -> tuple[Batch, Tensor]:
        return next(self._parts)


def activation_batches(
    loaded: LoadedModel, hookpoint: Hookpoint, windows: Sequence[Window], batch_tokens: int, *, halvings: int = 0
) -> ActivationBatches:
    """(batch on the model's device, activations [B, T, d] in the model's dtype) for the windows of one unit.

    `.halvings` of the iterator counts how often memory ran out. Pass it on so that the next unit starts at that level.
    """
    return ActivationBatches(loaded, hookpoint, windows, batch_tokens, halvings)
