"""Calls in flight follow what the endpoint bears, counted in requests, not in seconds."""

from __future__ import annotations

import asyncio
import random
import selectors
import time
from typing import Any

import pytest
from support.llm_helpers import ask_all, chat, client_for
from support.llm_server import BrainReply, Fault, Kind, LlmServer

from autointerp.llm.concurrency import START, Slots


@pytest.mark.parametrize("fault", [Fault("429"), Fault("429", retry_after=0.05), Fault("503", retry_after=0.05)])
def test_what_an_endpoint_refuses_for_load_is_sent_again_and_all_is_answered(fault: Fault) -> None:
    bears, n = 6, 150

    def brain(kind: Kind, body: dict[str, Any], attempt: int) -> BrainReply | Fault:
        return fault if server.in_flight > bears else BrainReply("x", input_tokens=1, output_tokens=1)

    with LlmServer(brain, latency=0.01) as server:
        client = client_for(server, max_connections=64, attempts=50, timeout=120.0)
        replies = ask_all(client, *[chat(f"{i}") for i in range(n)])
    assert all(reply.ok for reply in replies)
    assert len(server.faults) <= 0.4 * n
    assert len(server.requests) == n + len(server.faults)
    assert server.peak_in_flight <= START


def test_an_endpoint_that_bears_it_gets_all_there_is_and_never_more() -> None:
    with LlmServer(lambda *_: BrainReply("x", input_tokens=1, output_tokens=1), latency=0.1) as server:
        client = client_for(server, max_connections=40, timeout=120.0)
        ask_all(client, *[chat(f"{i}") for i in range(200)])
        assert server.peak_in_flight <= 40
    assert client._slots.limit == 40


def test_one_cut_for_all_calls_of_an_episode_and_growth_by_windows() -> None:
    async def run() -> None:
        slots = Slots(100)
        for _ in range(START):
            await slots.take()
        sent = time.monotonic()
        for _ in range(5):
            slots.throttled(sent)
        assert (slots.limit, slots.cuts) == (0.8 * START, 1)
        for _ in range(100):
            slots.succeeded(sent, slots.answers)  # of before the cut
        assert slots.limit == 0.8 * START
        after = time.monotonic()
        for _ in range(int(slots.limit)):
            slots.succeeded(after, slots.answers)
        assert slots.limit == 0.8 * START + 1
        for _ in range(60):
            slots.throttled(time.monotonic())
        assert slots.limit == 1.0, "one call always may"

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(20))
def test_no_slot_is_lost_or_given_twice_whatever_is_cancelled(seed: int) -> None:
    """Workers that come, work, fail, and are cancelled at any point: never more than the ceiling, and in the end every
    slot is free."""
    rng = random.Random(seed)
    ceiling = rng.randint(1, 30)
    slots, held, most = Slots(ceiling), 0, 0

    async def worker() -> None:
        nonlocal held, most
        await slots.take()
        held += 1
        most = max(most, held)
        try:
            sent = time.monotonic()
            for _ in range(rng.randint(0, 3)):
                await asyncio.sleep(0)
            rng.choice([slots.succeeded, slots.succeeded, slots.timed_out])(sent, rng.randint(0, slots.answers))
        except BaseException:
            held -= 1
            slots.release()
            raise
        slots.answered()
        try:
            await asyncio.sleep(0)
        finally:
            held -= 1
            slots.written()

    async def run() -> None:
        tasks = [asyncio.create_task(worker()) for _ in range(200)]
        for _ in range(60):
            await asyncio.sleep(0)
            rng.choice(tasks).cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert held == 0
        for _ in range(int(slots.limit)):
            await asyncio.wait_for(slots.take(), 1)

    asyncio.run(run())
    assert 1 <= most <= ceiling and 1 <= slots.limit <= ceiling


class SimulatedTime(selectors.DefaultSelector):
    """A clock that jumps to whatever is due next."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0 if timeout is None or timeout > 0 else timeout)
        if not events and timeout:
            self.now += timeout
        return events


class OneByOne:
    """A server that works on `room` calls at a time, for each_s seconds each, and lets the others wait. It leaves out
    those whose client has gone."""

    def __init__(self, each_s: float, room: int) -> None:
        self._each_s = each_s
        self._at_work = asyncio.Semaphore(room)

    async def serve(self) -> None:
        async with self._at_work:
            await asyncio.sleep(self._each_s)


class RefusedError(Exception):
    pass


class FullQueue(OneByOne):
    """The same, but it refuses at once what is more than `bears` calls, at work or waiting."""

    def __init__(self, each_s: float, room: int, bears: int) -> None:
        super().__init__(each_s, room)
        self._bears = bears
        self._here = 0
        self.refused = 0

    async def serve(self) -> None:
        if self._here >= self._bears:
            self.refused += 1
            raise RefusedError
        self._here += 1
        try:
            await super().serve()
        finally:
            self._here -= 1


class AllAtOnce:
    """A server that works on all calls at once: a call takes each_s seconds alone, and n times as long beside n - 1
    others. Between two times nothing is answered."""

    def __init__(self, each_s: float, silent: tuple[float, float] = (0.0, 0.0)) -> None:
        self._each_s = each_s
        self._silent = silent
        self._here = 0

    async def serve(self) -> None:
        self._here += 1
        try:
            tenths = 0
            while tenths < 10:
                await asyncio.sleep(0.1 * self._each_s * self._here)
                tenths += not self._silent[0] <= time.monotonic() < self._silent[1]
        finally:
            self._here -= 1


def simulated(n: int, server: OneByOne | AllAtOnce, monkeypatch: pytest.MonkeyPatch) -> tuple[Slots, list[int]]:
    """The slots after n calls, and the calls that ran into their timeout of two minutes."""
    clock = SimulatedTime()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    timeouts: list[int] = []

    async def run() -> Slots:
        slots = Slots(64, 120.0)

        async def attempt(number: int) -> bool:
            await slots.take()
            sent_at, before = clock.now, slots.answers
            try:
                await asyncio.wait_for(server.serve(), 120.0)
            except TimeoutError:
                timeouts.append(number)
                slots.timed_out(sent_at, before)
                slots.release()
                return False
            except RefusedError:
                slots.throttled(sent_at)
                slots.release()
                await asyncio.sleep(1.0)
                return False
            slots.succeeded(sent_at, before)
            slots.answered()
            slots.written()
            return True

        async def call(number: int) -> None:
            while not await attempt(number):
                pass

        await asyncio.gather(*(call(number) for number in range(n)))
        return slots

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(clock)) as runner:
        return runner.run(run()), timeouts


@pytest.mark.parametrize("each_s", [0.5, 5.0, 30.0, 100.0])
@pytest.mark.parametrize("room", [1, 3])
def test_a_server_that_lets_calls_wait_loses_none(each_s: float, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 64 calls in flight most would run into their timeout twice, and be given up."""
    slots, timeouts = simulated(150, OneByOne(each_s, room), monkeypatch)
    assert len(set(timeouts)) == len(timeouts), "a second timeout gives a request up"
    assert len(timeouts) <= START, "only of the calls that were sent first"
    assert 1 <= slots.limit <= max(room, room * 120.0 / each_s)


@pytest.mark.parametrize("n", [20, 64])
@pytest.mark.parametrize("each_s", [10.0, 20.0, 100.0])
def test_a_server_that_is_slowed_down_by_many_calls_loses_none(
    each_s: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of the calls that are sent first is answered in time. A limit that fell by a fifth each time would let most
    calls run into their second timeout."""
    slots, timeouts = simulated(n, AllAtOnce(each_s), monkeypatch)
    assert len(set(timeouts)) == len(timeouts), "a second timeout gives a request up"
    assert len(timeouts) <= START, "only of the calls that were sent first"
    assert 1 <= slots.limit <= max(1.0, 120.0 / each_s)


def test_after_a_silence_the_limit_soon_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    slots, timeouts = simulated(300, AllAtOnce(1.0, silent=(1030.0, 1300.0)), monkeypatch)
    assert len(set(timeouts)) == len(timeouts)
    assert 16 <= slots.limit <= 64


@pytest.mark.parametrize("room", [1, 6])
def test_it_settles_around_what_the_endpoint_bears(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept at 64 or 16, six of each round would be answered: hundreds refused. Here the first rounds are, then about
    one in two windows."""
    server = FullQueue(10.0, room, bears=6)
    slots, timeouts = simulated(150, server, monkeypatch)
    assert 3 <= server.refused <= 60
    assert 0.6 * 6 <= slots.limit <= 6 + 2
    assert not timeouts


@pytest.mark.parametrize("each_s", [1.0, 70.0])
def test_calls_that_take_long_without_a_queue_get_all_slots(each_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    slots, timeouts = simulated(1000, OneByOne(each_s, 1000), monkeypatch)
    assert (slots.limit, slots.cuts, timeouts) == (64.0, 0, [])


def test_one_call_that_hangs_leaves_the_limit_and_silence_cuts_it_to_one() -> None:
    async def run() -> None:
        slots = Slots(64, 120.0)
        for _ in range(START):
            await slots.take()
        sent = time.monotonic()
        for _ in range(1000):
            slots.succeeded(sent, slots.answers)
        slots.timed_out(sent, 0)
        assert (slots.limit, slots.cuts) == (START + 1, 0)
        for _ in range(64):
            slots.timed_out(sent, slots.answers)
        assert (slots.limit, slots.cuts) == (1.0, 1)
        sent = time.monotonic()
        slots.succeeded(sent, slots.answers)
        slots.succeeded(sent, slots.answers)
        assert slots.limit == 3.0, "each answer adds one, not each window of them"

    asyncio.run(run())
