"""Fills an activation cache, and is the source of activation vectors that reads it.

The vectors of every hookpoint lie in a folder of their own (activation_shards.py), all in the order of the corpus, so
hookpoints that were cached at different times can be read side by side. One pass of the model fills all of them.

They are read in pieces, whose order is drawn for each epoch, so that a shuffle buffer of 100 pieces holds tokens from
100 places of the corpus. The order depends on the seed and on the number of vectors alone. So a run that goes on reads
what it would have read, also when the cache has grown meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autointerp.errors import InputError, MismatchError, StoreBusyError
from autointerp.model.hooks import Hookpoint
from autointerp.sae import parallel
from autointerp.sae.activation_shards import PIECE_VECTORS, SHARD_VECTORS, Place, Shards
from autointerp.sae.model_source import VectorColumns

Held = Mapping[Hookpoint, Shards]


class CachedSource:
    """The first `n_vectors` cached vectors of hookpoints, side by side, again and again, in an order that `seed` draws
    anew for each epoch. `key` stands for the model and the text: a position of another key is refused.

    Raises DamagedError while it is read, if a shard is not what was written.
    """

    def __init__(
        self, held: Held, columns: VectorColumns, n_vectors: int, *, key: str, seed: int, device: torch.device
    ) -> None:
        self.held, self.columns, self.n_vectors, self._key, self._seed = held, columns, n_vectors, key, seed
        self._device = device

    @property
    def d_in(self) -> int:
        return max(end for _, end in self.columns.values())

    def read(self, position: Any) -> Iterator[tuple[Tensor, Any]]:
        if position is not None and position["cache"] != self._key:
            raise MismatchError(
                "the checkpoint was made with the activations of another model, text or device; delete its folder to "
                "train anew, or go back to those"
            )
        epoch, first = (0, 0) if position is None else (int(position["epoch"]), int(position["pieces"]))
        n_pieces = -(-self.n_vectors // PIECE_VECTORS)
        while n_pieces:
            generator = torch.Generator().manual_seed(self._seed * 1_000_033 + epoch)
            order = torch.randperm(n_pieces, generator=generator).tolist()
            for i in range(first, n_pieces):
                yield self._piece(order[i]), {"cache": self._key, "epoch": epoch, "pieces": i + 1}
            epoch, first = epoch + 1, 0

    def _piece(self, index: int) -> Tensor:
        n = min(PIECE_VECTORS, self.n_vectors - index * PIECE_VECTORS)
        return torch.cat([self.held[point].piece(index)[:n] for point in self.columns], dim=1).to(self._device)


def fill(
    held: Held, wanted: int, source_of: Callable[[Sequence[Hookpoint]], Any], on_progress: Callable[[int], None]
) -> int:
    """Cache the first `wanted` vectors of every hookpoint, or as many as the source has, and return how many. What is
    on disk stays; shards that are lost or cut short are made again. `source_of(hookpoints)` is an ActivationSource with
    columns; `on_progress` is told the number of vectors that lie before the place of work.

    Under torchrun all processes call this: each has a part in running the model, and the first one writes. Raises
    InputError for a source without vectors, and DiskFullError.
    """
    done: tuple[int, int, list[Hookpoint]] | None = None
    while (stretch := next_stretch(held, wanted)) is not None:
        parallel.barrier()  # no process writes before all have seen what there is
        if stretch == done:
            raise InputError(
                f"process {parallel.rank()} does not find the activation cache that the first process wrote at "
                f"{next(iter(held.values())).folder}; set train.cache to a folder that all processes share"
            )
        _fill_stretch(held, stretch, wanted, source_of(stretch[2]), on_progress)
        parallel.barrier()
        for shards in held.values():
            shards.reload()
        done = stretch
    return cached(held, wanted)


def cached(held: Held, wanted: int) -> int:
    """How many of the `wanted` vectors a full cache holds: fewer where the source is known to have fewer."""
    ends = [shards.end for shards in held.values() if shards.end is not None]
    return min(wanted, *ends) if ends else wanted


def next_stretch(held: Held, wanted: int) -> tuple[int, int, list[Hookpoint]] | None:
    """The first shards that are still to be made: the first one, the one after the last, and the hookpoints that lack
    all of them. None when the cache is full."""
    total = cached(held, wanted)
    first, lacking = 0, list[Hookpoint]()
    for number in range(-(-total // SHARD_VECTORS)):
        size = min(SHARD_VECTORS, total - number * SHARD_VECTORS)
        lack = [point for point, shards in held.items() if not shards.holds(number, size)]
        if lacking and lack != lacking:
            return first, number, lacking
        if lack and not lacking:
            first, lacking = number, lack
    return (first, -(-total // SHARD_VECTORS), lacking) if lacking else None


def _fill_stretch(
    held: Held, stretch: tuple[int, int, list[Hookpoint]], wanted: int, source: Any, on_progress: Callable[[int], None]
) -> None:
    number, stop, points = stretch
    columns = {point: slice(*source.columns[point]) for point in points}
    kept: list[Tensor] = []  # the vectors of the shard so far

    def write(behind: Place) -> None:
        if parallel.is_first():
            vectors = torch.cat(kept)
            for point in points:
                held[point].write(number, vectors[:, columns[point]], behind)

    at, skip = _start(held, number)
    n_kept = 0
    for vectors, behind in source.read(at):
        first = min(skip, len(vectors))
        skip -= first
        while first < len(vectors):
            size = min(SHARD_VECTORS, wanted - number * SHARD_VECTORS)
            part = vectors[first : first + size - n_kept].cpu()
            kept.append(part)
            first, n_kept = first + len(part), n_kept + len(part)
            if n_kept == size:
                write((behind, 0) if first == len(vectors) else (at, first))
                kept.clear()
                number, n_kept = number + 1, 0
            on_progress(min(wanted, number * SHARD_VECTORS + n_kept))
            if number == stop:
                return
        at = behind
    end = number * SHARD_VECTORS + n_kept
    if not end:
        raise InputError("the corpus gave no activation vectors to cache; check [corpus].source")
    if n_kept:
        write((None, 0))
    for point in points if parallel.is_first() else ():
        held[point].write_end(end)
    on_progress(end)


def _start(held: Held, number: int) -> Place:
    """The place in the source where a shard begins."""
    places = [shards.behind(number - 1) for shards in held.values()] if number else [(None, 0)]
    return next(place for place in places if place is not None)


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """While this process fills the caches in `folder`, no other one does. Raises StoreBusyError if one is at it."""
    if not parallel.is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+b") as file:
        with suppress(ModuleNotFoundError):  # on Windows nothing is locked
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StoreBusyError(
                    f"another process is filling the activation cache {folder}; try again when it is done, or name "
                    "another folder in train.cache"
                ) from None
        yield
