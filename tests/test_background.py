"""Nothing that runs in the background dies unobserved: whoever waits for it is told, and a run does not hang."""

from __future__ import annotations

import ast
import asyncio
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.batch_client import Asked, texts
from support.batch_server import BatchServer
from support.llm_helpers import MemoryLedger, chat, client_for, echo
from support.llm_server import LlmServer
from support.store_fixtures import add_dictionary, call

from autointerp.background import in_background
from autointerp.errors import AutointerpError, InputError
from autointerp.llm.batch import BatchClient
from autointerp.records import CallRecord
from autointerp.store import Store
from autointerp.store.group_writer import GroupWriter
from autointerp.store.safety.snapshot import SnapshotPublisher
from autointerp.terminal import Terminal

PACKAGE = Path(__file__).parents[1] / "autointerp"
STARTED_IN = {
    "background.py": "in_background itself",
    "llm/pool.py": "run_pool awaits its workers, and raises the first error",
    "llm/batch_transport.py": "`lines` awaits the download that it reads from",
    "terminal.py": "the thread keeps its error, which the next step raises",
    "store/safety/snapshot.py": "the thread tells every error, and goes on",
    "store/query.py": "a timer that interrupts a statement, in a process that ends anyway",
}
"""The only files that start tasks and threads, and how each of them is observed."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "x.duckdb", create=True) as opened:
        add_dictionary(opened, "d")
        yield opened


class Broken(RuntimeError):
    pass


async def breaks(*_: Any, **__: Any) -> Any:
    raise Broken("no such luck")


def test_tasks_and_threads_are_started_where_somebody_looks_after_them() -> None:
    starts = {"create_task", "ensure_future", "Thread", "Timer", "run_in_executor", "submit", "start_new_thread"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in starts:
                    found.add(path.relative_to(PACKAGE).as_posix())
    assert found == set(STARTED_IN)


def test_a_failure_is_told_as_one_of_our_errors_and_a_cancellation_is_none() -> None:
    told: list[AutointerpError] = []

    async def own() -> None:
        raise InputError("as it is")

    async def run() -> None:
        tasks = [
            in_background(work, "the thing", told.append)
            for work in (breaks(), own(), asyncio.sleep(60), asyncio.sleep(0))
        ]
        await asyncio.sleep(0.01)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    assert [type(error) for error in told] == [AutointerpError, InputError]
    assert "the thing ended with Broken: no such luck" in str(told[0]) and isinstance(told[0].__cause__, Broken)
    assert str(told[1]) == "as it is"


async def asked(client: Any, n: int = 3) -> list[Any]:
    async with client:
        return await asyncio.gather(*(client.ask(chat(f"q{i}")) for i in range(n)), return_exceptions=True)


@pytest.mark.parametrize("part", ["_throttler.acquire", "_bucket.take", "gate.wait"])
def test_every_caller_hears_of_a_dispatcher_that_died(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with LlmServer(echo()) as server:
        client = client_for(server, tokens_per_minute=1e9)
        owner, name = part.split(".")
        monkeypatch.setattr(getattr(client._limits, owner), name, breaks)
        replies = asyncio.run(asyncio.wait_for(asked(client), 20))
        assert not server.requests
    assert [type(reply) for reply in replies] == [AutointerpError] * 3 and "Broken" in str(replies[0])


def test_a_record_that_fails_after_its_asker_left_is_raised_at_the_end() -> None:
    """Also where it fails before the client closes, when nothing holds its task any more."""

    class Failing(MemoryLedger):
        async def record(self, record: CallRecord) -> None:
            await asyncio.sleep(0.05)
            raise Broken("disk gone")

    async def run(server: LlmServer) -> None:
        async with client_for(server, Failing()) as client:
            task = asyncio.create_task(client.ask(chat("a")))
            while not server.requests:
                await asyncio.sleep(0.005)
            while not client._recording:
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.2)
            with pytest.raises(AutointerpError, match="disk gone"):
                await client.ask(chat("b"))

    with LlmServer(echo()) as server, pytest.raises(AutointerpError, match="the record of a call ended with Broken"):
        asyncio.run(asyncio.wait_for(run(server), 20))


@pytest.mark.parametrize("name", ["_submit_what_fits", "_run"])
def test_callers_of_a_batch_hear_of_what_broke(store: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise Broken("no such luck")

    monkeypatch.setattr(BatchClient, name, breaks if name == "_run" else broken)
    with BatchServer(echo()) as server:
        replies = Asked(server, store, *texts(3)).replies
    assert [type(reply) for reply in replies] == [AutointerpError] * 3 and "Broken" in str(replies[0])


def test_a_batch_that_nobody_waits_for_fails_the_run_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BatchServer(echo(), held=True) as server:
        Asked(server, store, *texts(2), until=lambda: bool(server.batches))
        monkeypatch.setattr(BatchClient, "_fetch", breaks)
        server.held, server.polls = False, 0
        with pytest.raises(AutointerpError, match="Broken"):
            Asked(server, store)
        monkeypatch.undo()
        assert len(Asked(server, store, *texts(2)).ok) == 2 and server.sizes == [2]


def test_records_hear_of_a_writer_that_died(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GroupWriter, "_commit", breaks)

    results: list[Any] = []

    async def run() -> None:
        async with GroupWriter(store, max_rows=2) as writer:
            results.extend(await asyncio.gather(*(writer.call(call(i)) for i in range(5)), return_exceptions=True))
            results.extend(await asyncio.gather(writer.call(call(9)), return_exceptions=True))

    with pytest.raises(AutointerpError, match="the writer of the store ended with Broken"):
        asyncio.run(asyncio.wait_for(run(), 20))
    assert len(results) == 6 and {type(one) for one in results} == {AutointerpError}


def test_the_snapshot_thread_tells_any_error_and_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    real = SnapshotPublisher.publish
    tries = []

    def publish(self: SnapshotPublisher) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise Broken("no such luck")
        real(self)

    monkeypatch.setattr(SnapshotPublisher, "publish", publish)
    publisher = SnapshotPublisher(store, 0.02, said.append)
    with publisher:
        for _ in range(500):
            if publisher.path.exists():
                break
            publisher._thread.join(0.02)
        assert publisher.path.exists()
    publisher.remove()
    assert re.search("readers see an old snapshot.*no such luck", said[0])


def test_what_ends_the_thread_of_progress_is_raised_by_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(every_s=0.01)
    died = threading.Event()

    def listen(standing: object) -> None:
        if threading.current_thread().name == "progress":
            died.set()
            raise Broken("no such luck")

    terminal.watch(listen)
    with pytest.raises(Broken), terminal.progress("a: working", 3, "steps") as update:  # noqa: PT012
        assert died.wait(20)
        for _ in range(1000):
            update(1, 3)
            time.sleep(0.01)
