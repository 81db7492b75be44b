from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from autointerp.errors import CredentialsError, StoppedError
from autointerp.llm.pool import run_pool


def test_all_items_with_n_at_a_time_drawn_as_needed() -> None:
    running = peak = drawn = 0
    done: list[int] = []

    def items() -> Iterator[int]:
        nonlocal drawn
        for i in range(100):
            drawn += 1
            yield i

    async def worker(i: int) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        assert drawn - len(done) <= 8
        await asyncio.sleep(0.001)
        running -= 1
        done.append(i)

    asyncio.run(run_pool(items(), worker, 7))
    assert sorted(done) == list(range(100)) and peak == 7


@pytest.mark.parametrize(("error", "finishes"), [(CredentialsError("no"), False), (StoppedError("budget"), True)])
def test_first_error_ends_it_and_paid_calls_may_finish(error: Exception, finishes: bool) -> None:
    begun: list[int] = []
    finished: list[int] = []

    async def worker(i: int) -> None:
        begun.append(i)
        if i == 3:
            await asyncio.sleep(0.05)
            raise error
        await asyncio.sleep(0.6)
        finished.append(i)

    start = time.monotonic()
    with pytest.raises(type(error)):
        asyncio.run(run_pool(range(1000), worker, 8, grace_s=0.1))
    assert time.monotonic() - start < 2
    assert len(begun) == 8
    assert len(finished) == (7 if finishes else 0)


def test_error_of_the_items_and_cancellation() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("the source broke")

    async def worker(_i: int) -> None:
        await asyncio.sleep(0.01)

    with pytest.raises(ValueError, match="the source broke"):
        asyncio.run(run_pool(broken(), worker, 3))

    ended: list[int] = []

    async def slow(i: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(i)

    async def cancel() -> None:
        task = asyncio.create_task(run_pool(range(10), slow, 4))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert sorted(ended) == [0, 1, 2, 3]  # cleaned up before run_pool returned
