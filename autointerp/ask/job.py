"""What explaining and scoring share: one dictionary's job, the way to the store, a fixed pool of workers, and how a run
ended."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from autointerp.config import EndpointConfig, LlmConfig
from autointerp.errors import AutointerpError
from autointerp.llm import pool
from autointerp.llm.batch import BatchClient
from autointerp.llm.budget import Budget
from autointerp.llm.client import LlmClient
from autointerp.records import BatchedRequest, BatchRecord, CallRecord
from autointerp.store import Selection, Store
from autointerp.store.group_writer import GroupWriter

Item = TypeVar("Item")
Progress = Callable[[int, int], None]
"""Called as progress(done, of) whenever another feature is done."""
BLOCK = 64
"""Features whose evidence is read in one query."""
RULE_BLOCK = 256
"""Features read in one query where no LLM is asked: the texts of contexts lie anywhere in a large store, and a query
for more of them takes hardly longer."""


@dataclass(frozen=True)
class Job:
    """The labelling or scoring of one dictionary: in which store, of which features, within what bounds."""

    store: Store
    dictionary_id: int
    harvest_id: int
    run_id: str
    selection: Selection
    llm: LlmConfig
    budget: Budget
    prompts: Path | None = None
    """Folder of templates; None: the program's own."""
    progress: Progress | None = None
    say: Callable[[str], None] | None = None
    """Called with one line whenever something becomes of a batch."""

    @property
    def in_flight(self) -> int:
        """About how many calls a run keeps in flight; a batch collects far more of them than connections do."""
        return self.llm.batch_in_flight if self.llm.batch else self.llm.max_connections

    def client(self, endpoint: EndpointConfig, writer: GroupWriter) -> LlmClient:
        """The client that the configuration asks for, to be entered inside `writer`."""
        ledger = StoreLedger(self.store, writer)
        if not self.llm.batch:
            return LlmClient(endpoint, self.llm, self.budget, ledger, self.run_id)
        say = self.say if self.say is not None else _silent
        return BatchClient(
            endpoint, self.llm, self.budget, ledger, self.run_id, book=StoreBatchBook(self.store), say=say
        )

    def report(self, done: int, of: int) -> None:
        if self.progress is not None:
            self.progress(done, of)


@dataclass
class Outcome:
    """What a run wrote, by status. `pending` is how much there was to do when it began."""

    pending: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    method: str | None = None
    """How scores were made: the scoring methods, with commas between them."""
    waiting: int = 0
    """Labels whose score waits for `autointerp measure`. They are part of `pending`, neither done nor failed."""
    notes: tuple[str, ...] = ()

    @property
    def done(self) -> int:
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Rows without text or value because an endpoint failed or a reply was unusable."""
        return sum(n for status, n in self.statuses.items() if status not in NO_FAILURES)


NO_FAILURES = frozenset(
    {
        "ok", "abstained", "constant_truth", "constant_prediction", "no_contexts", "kl_not_reached", "empty_label",
        "no_distractors", "no_false_alarm", "no_claim", "no_rule",
    }
)  # fmt: skip
"""Statuses that say something about the feature or its label, not that something went wrong."""


class StoreLedger:
    """The client's ledger in the store: read at once, written in groups."""

    def __init__(self, store: Store, writer: GroupWriter) -> None:
        self._store = store
        self._writer = writer

    def find(self, request_sha256: str, sample: int) -> CallRecord | None:
        return self._store.find_call(request_sha256, sample)

    async def record(self, record: CallRecord) -> None:
        await self._writer.call(record)


class StoreBatchBook:
    """The batch client's book in the store. Commits are made in worker threads: a batch may have 50,000 requests."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def begin(self, batch: BatchRecord, requests: Sequence[BatchedRequest]) -> None:
        await asyncio.to_thread(self._store.begin_batch, batch, requests)

    async def update(
        self, batch_key: str, status: str, batch_id: str | None = None, input_file_id: str | None = None
    ) -> None:
        await asyncio.to_thread(self._store.update_batch, batch_key, status, batch_id, input_file_id)

    async def finish(self, batch_key: str, status: str, error: str | None = None) -> None:
        await asyncio.to_thread(self._store.finish_batch, batch_key, status, error)

    async def unfinished(self, base_url: str, model: str) -> list[tuple[BatchRecord, list[BatchedRequest]]]:
        return await asyncio.to_thread(self._store.unfinished_batches, base_url, model)


def _silent(line: str) -> None:
    """The listener of a job that has no other."""


class Blocks(Generic[Item]):
    """Items read from the store block by block, in a worker thread, as the pool asks for them."""

    def __init__(self, keys: Sequence[int], load: Callable[[list[int]], list[Item]], size: int = BLOCK) -> None:
        self._keys = deque(keys)
        self._load = load
        self._size = size
        self._ready: deque[Item] = deque()
        self._lock = asyncio.Lock()

    async def take(self) -> Item | None:
        """The next item; None at the end."""
        async with self._lock:
            while not self._ready and self._keys:
                block = [self._keys.popleft() for _ in range(min(self._size, len(self._keys)))]
                self._ready.extend(await asyncio.to_thread(self._load, block))
            return self._ready.popleft() if self._ready else None


async def run_pool(
    blocks: Blocks[Item], workers: int, work: Callable[[Item], Awaitable[None]], stop: Callable[[AutointerpError], None]
) -> None:
    """`workers` tasks work off the blocks. An AutointerpError ends the run: `stop` is told before it is raised, so that
    nothing more is sent; what is in flight is written down (see llm/pool.py)."""

    async def one(item: Item) -> None:
        try:
            await work(item)
        except AutointerpError as error:
            stop(error)
            raise

    await pool.run_pool(blocks, one, workers)
