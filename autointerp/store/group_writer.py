"""One task that writes the records of many workers in groups, so that they share the fsync of a commit."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from autointerp.background import in_background
from autointerp.errors import AutointerpError
from autointerp.records import CallRecord, Explanation, Score
from autointerp.store.calls import check_call
from autointerp.store.explanations import check_explanation
from autointerp.store.scores import check_score
from autointerp.store.store import Store

_Record = CallRecord | Explanation | Score


class GroupWriter:
    """`async with GroupWriter(store) as writer: await writer.call(record)`.

    Each await returns once the record's group is committed and in the row ledger; a kill loses nothing that was
    acknowledged. A group is closed when it has `max_rows` records, `max_wait_s` seconds after its first one, or when
    none has come for `quiet_s` seconds, since with few calls in flight no more will come. A record that the store
    refuses fails alone: its group is written again, one by one. When the store itself fails (disk full, damage), every
    waiting record and every later one gets that error. Leaving the block writes what is still waiting.
    """

    def __init__(self, store: Store, *, max_rows: int = 50, max_wait_s: float = 0.2, quiet_s: float = 0.02) -> None:
        self._store = store
        self._max_rows = max_rows
        self._max_wait_s = max_wait_s
        self._quiet_s = quiet_s
        self._queue: asyncio.Queue[tuple[_Record, asyncio.Future[None]] | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._group: list[tuple[_Record, asyncio.Future[None]]] = []
        """The group that is being gathered or written."""
        self._dead: AutointerpError | None = None
        self.commits = 0
        """Groups committed so far."""

    async def __aenter__(self) -> Self:
        self._task = in_background(self._write_groups(), "the writer of the store", self._died)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        self._queue.put_nowait(None)
        # Cancelling the caller must not interrupt a commit: the task ends when the queue is empty.
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise
        except Exception as failure:
            raise self._dead or failure from failure

    async def call(self, record: CallRecord) -> None:
        check_call(record)
        await self._written(record)

    async def explanation(self, record: Explanation) -> None:
        check_explanation(record)
        await self._written(record)

    async def score(self, record: Score) -> None:
        check_score(record)
        await self._written(record)

    async def _written(self, record: _Record) -> None:
        if self._store.failed is not None:
            raise self._store.failed
        if self._dead is not None:
            raise self._dead
        if self._task is None:
            raise AutointerpError("the group writer is closed")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((record, done))
        # When a waiting worker is cancelled its record stays in the queue, so a paid reply is written anyway.
        await asyncio.shield(done)

    async def _write_groups(self) -> None:
        loop = asyncio.get_running_loop()
        open_ = True
        while open_:
            first = await self._queue.get()
            if first is None:
                return
            group = self._group = [first]
            deadline = loop.time() + self._max_wait_s
            while len(group) < self._max_rows:
                if self._queue.empty():
                    try:
                        async with asyncio.timeout_at(min(deadline, loop.time() + self._quiet_s)):
                            item = await self._queue.get()
                    except TimeoutError:
                        break
                else:
                    item = self._queue.get_nowait()
                if item is None:
                    open_ = False
                    break
                group.append(item)
            await self._commit(group)

    def _died(self, error: AutointerpError) -> None:
        """Nobody waits for a writer that writes no more: its records, and all later ones, are told why."""
        self._dead = error
        while not self._queue.empty():
            item = self._queue.get_nowait()
            self._group += [item] if item is not None else []
        for _, done in self._group:
            _refuse(done, error)

    async def _commit(self, group: list[tuple[_Record, asyncio.Future[None]]]) -> None:
        records = [record for record, _ in group]
        error: Exception | None = None
        try:
            await asyncio.to_thread(
                self._store.insert_group,
                [r for r in records if isinstance(r, CallRecord)],
                [r for r in records if isinstance(r, Explanation)],
                [r for r in records if isinstance(r, Score)],
            )
            self.commits += 1
        except Exception as caught:
            # Not swallowed: the worker that gave the record gets it.
            error = caught
        if error is not None and len(group) > 1 and self._store.failed is None and error is not self._store.displaced:
            for one in group:
                await self._commit([one])
            return
        for _, done in group:
            if error is not None:
                _refuse(done, error)
            elif not done.done():
                done.set_result(None)


def _refuse(done: asyncio.Future[None], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
        done.exception()  # a worker that was cancelled will never fetch it, and asyncio would complain
