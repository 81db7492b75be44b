"""A fixed number of workers that take items from a stream, instead of one task per item."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

from autointerp.errors import StoppedError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Feed(Protocol[T_co]):
    """A source of items that may not be there yet."""

    async def take(self) -> T_co | None:
        """Wait for the next item. Returns None at the end, and on every call after that."""
        ...


class _Listed(Feed[T]):
    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)

    async def take(self) -> T | None:
        return next(self._items, None)


async def run_pool(
    items: Iterable[T] | Feed[T],
    worker: Callable[[T], Awaitable[None]],
    n: int,
    *,
    grace_s: float = 2.0,
    stopped_grace_s: float = 150.0,
) -> None:
    """Await `worker(item)` for every item, at most `n` at a time. An item is drawn only once a worker is free.

    After the first error no further item is begun. Items in work get `grace_s` seconds to finish, are then cancelled
    and awaited, and the first error is raised. After a StoppedError (budget, quota, deadline) they get
    `stopped_grace_s` seconds, since their calls are paid for and the client sends no new ones.
    """
    feed: Feed[T] = _Listed(items) if isinstance(items, Iterable) else items
    errors: list[BaseException] = []

    async def work() -> None:
        while (item := await feed.take()) is not None:
            try:
                await worker(item)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                errors.append(error)
                raise
            if errors:
                return

    tasks = [asyncio.create_task(work(), name=f"llm-worker-{i}") for i in range(max(1, n))]
    try:
        _, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if running:
            grace = stopped_grace_s if errors and isinstance(errors[0], StoppedError) else grace_s
            await asyncio.wait(running, timeout=grace)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    if errors:
        raise errors[0]
    for result in results:  # an error raised by `items` itself
        if isinstance(result, BaseException):
            raise result
