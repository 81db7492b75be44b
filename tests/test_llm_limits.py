"""Rates over real (short) time: requests, tokens, and the pause that holds everybody."""

from __future__ import annotations

import asyncio
import bisect
import math
import random
import selectors
import time

import pytest

from autointerp.config import BudgetConfig, LlmConfig, PriceConfig
from autointerp.errors import StoppedError
from autointerp.llm.budget import Budget, cost_usd
from autointerp.llm.limits import Limits, PauseGate, PausePolicy, TokenBucket, request_throttler
from autointerp.llm.retry import Attempts, RetryPolicy


async def starts(limits: Limits, n: int, tokens: float = 1.0) -> list[float]:
    begun: list[float] = []

    async def one() -> None:
        await limits.permit(tokens)
        begun.append(time.monotonic())

    async with limits:
        await asyncio.gather(*(one() for _ in range(n)))
    return begun


@pytest.mark.parametrize(("rpm", "window", "period"), [(600, 10, 1.0), (30, 1, 2.0), (90, 2, 4 / 3), (60_000, 1000, 1)])
def test_throttler_keeps_the_rate_at_any_scale(rpm: float, window: int, period: float) -> None:
    throttler = request_throttler(rpm)
    assert (throttler.rate_limit, throttler.period) == (window, pytest.approx(period))


def test_requests_per_minute() -> None:
    begun = asyncio.run(starts(Limits(LlmConfig(requests_per_minute=1200)), 50))  # 20 a second
    for i in range(len(begun) - 20):
        assert begun[i + 20] - begun[i] >= 0.99, "more than 20 calls began within a second"
    assert begun[-1] - begun[0] >= 1.98


class SimulatedTime(selectors.DefaultSelector):
    """A clock that jumps to whatever is due next instead of waiting for it: minutes of timers in a moment."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0 if timeout is None or timeout > 0 else timeout)
        if not events and timeout:
            self.now += timeout
        return events


@pytest.mark.parametrize("rpm", [7, 90, 600, 1234.5, 6000])
def test_no_window_has_more_than_the_limit_whatever_waits(rpm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three simulated minutes with 1,000 workers that always want more, pauses between: counted from every start, at
    most 105 % of the limit in 60 s (from 1 call up) and twice the mean in 1 s, and nearly all of what is allowed."""
    clock = SimulatedTime()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    rng = random.Random(round(rpm))
    begun: list[float] = []

    async def run() -> None:
        async with Limits(LlmConfig(requests_per_minute=rpm), PausePolicy(jitter=0.0)) as limits:
            end = clock.now + 180

            async def worker() -> None:
                while clock.now < end:
                    await limits.permit(1)
                    begun.append(clock.now)
                    await asyncio.sleep(rng.expovariate(1))  # the call
                    if rng.random() < 0.2 / rpm:  # about one pause in five minutes
                        limits.gate.hold(clock.now, 3.0, "429")

            workers = [asyncio.create_task(worker()) for _ in range(1000)]
            await asyncio.sleep(180)
            limits.stop(StoppedError("the time is up"))
            await asyncio.gather(*workers, return_exceptions=True)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(clock)) as runner:
        runner.run(run())

    def most_within(span: float) -> int:
        return max(bisect.bisect_left(begun, at + span) - i for i, at in enumerate(begun))

    assert most_within(60.0) <= max(math.ceil(rpm), 1.05 * rpm)
    assert most_within(1.0) <= max(1.0, 2 * rpm / 60)
    assert len(begun) >= 0.9 * 3 * rpm


def test_tokens_per_minute() -> None:
    """1,000 tokens a second, 3,000 at once; 50 calls of 100 take the bucket and 2 s."""
    begun = asyncio.run(starts(Limits(LlmConfig(requests_per_minute=6e5, tokens_per_minute=60_000)), 50, 100))
    assert 1.9 <= begun[-1] - begun[0] <= 4.0
    assert begun[25] - begun[0] < 1.0


def test_token_bucket_is_corrected_by_what_was_used() -> None:
    async def run() -> float:
        bucket = TokenBucket(60_000)
        await bucket.take(3000)  # all of it, by estimate
        bucket.correct(3000, 500)  # and then it was less
        before = time.monotonic()
        await bucket.take(2000)
        assert time.monotonic() - before < 0.2
        bucket.correct(0, 900)  # more than estimated: a debt to be waited off
        await bucket.take(100)
        return time.monotonic() - before

    assert 0.4 <= asyncio.run(run()) < 2.0


def test_a_call_larger_than_the_bucket_is_let_through() -> None:
    async def run() -> None:
        bucket = TokenBucket(60)
        await asyncio.wait_for(bucket.take(1_000_000), 1)

    asyncio.run(run())


def test_pause_holds_those_who_wait_and_those_who_come() -> None:
    async def run() -> float:
        async with Limits(LlmConfig(requests_per_minute=6e5)) as limits:
            begin = time.monotonic()
            limits.gate.hold(begin, 0.4, "429")
            await asyncio.gather(*(limits.permit(1) for _ in range(20)))
            return time.monotonic() - begin

    assert 0.4 <= asyncio.run(run()) < 1.5


def test_pauses_grow_only_with_news_and_end_with_success() -> None:
    gate = PauseGate(PausePolicy(first_s=100, longest_s=1000, jitter=0.0))
    sent = time.monotonic()
    gate.hold(sent, None, "429")
    for _ in range(50):  # the other calls that were in flight
        gate.hold(sent, None, "429")
    assert 99 < gate.remaining_s <= 100
    gate.hold(sent, 250, "429")  # a Retry-After counts whoever brings it
    assert 249 < gate.remaining_s <= 250
    gate.hold(time.monotonic() + 1000, None, "429")
    assert gate.episodes == 2 and gate.remaining_s <= 250
    gate.success()
    assert gate.episodes == 0
    with pytest.raises(StoppedError, match="7000 s"):
        gate.hold(sent, 7000, "429")
    hopeless = PauseGate(PausePolicy(first_s=0.0, most_without_success_s=1000, jitter=0.0))
    with pytest.raises(StoppedError, match="no call has succeeded"):
        for k in range(1, 4):
            hopeless.hold(time.monotonic(), 500 * k, "429")


def test_tiny_pauses_grow_and_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that says `Retry-After: 0.001` for ever: few calls a minute after a while, and an end."""
    now = 0.0
    monkeypatch.setattr("autointerp.llm.limits.time.monotonic", lambda: now)
    gate = PauseGate(PausePolicy(jitter=0.0))
    pauses: list[float] = []
    with pytest.raises(StoppedError, match="no call has succeeded"):
        while len(pauses) < 100_000:
            gate.hold(now, 0.001, "429")
            pauses.append(gate.remaining_s)
            now += gate.remaining_s
    assert pauses[:4] == pytest.approx([0.125, 0.25, 0.5, 1.0]) and max(pauses) == pytest.approx(60.0)
    assert len(pauses) < 150 and 7000 < now < 7300


def test_a_request_that_alone_is_limited_waits_by_itself() -> None:
    attempts, policy = Attempts(6), RetryPolicy()
    waits = [policy.limited_wait_s(n, attempts.rng) for n in range(1, 40)]
    assert waits[:4] == [0.0] * 4
    assert all(0.5 * min(60, 2**k) <= wait <= min(60, 2**k) for k, wait in enumerate(waits[4:]))


def test_stop_reaches_those_who_wait() -> None:
    async def run() -> None:
        async with Limits(LlmConfig(requests_per_minute=1)) as limits:
            await limits.permit(1)
            waiting = asyncio.create_task(limits.permit(1))
            await asyncio.sleep(0.05)
            limits.stop(StoppedError("enough"))
            with pytest.raises(StoppedError, match="enough"):
                await asyncio.wait_for(waiting, 1)
            with pytest.raises(StoppedError):
                await limits.permit(1)

    asyncio.run(run())


def test_cancelled_waiters_leave_the_queue() -> None:
    async def run() -> None:
        async with Limits(LlmConfig(requests_per_minute=600)) as limits:
            tasks = [asyncio.create_task(limits.permit(1)) for _ in range(40)]
            await asyncio.sleep(0.05)
            for task in tasks[10:39]:
                task.cancel()
            await asyncio.wait_for(tasks[39], 2)
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_budget_waits_for_calls_in_flight_before_it_stops() -> None:
    async def run() -> None:
        budget = Budget(BudgetConfig(max_tokens=100))
        first = await budget.reserve(80, 0.0)
        second = asyncio.create_task(budget.reserve(80, 0.0))
        await asyncio.sleep(0.01)
        assert not second.done()
        budget.settle(first, 10, 0.0)  # it cost far less
        budget.settle(await asyncio.wait_for(second, 1), 15, 0.0)
        with pytest.raises(StoppedError, match=r"max_tokens = 100 .*25 tokens"):
            await budget.reserve(80, 0.0)
        assert (budget.requests, budget.tokens) == (2, 25)

    asyncio.run(run())


def test_cost() -> None:
    assert cost_usd(None, 1000, 0, 1000) == 0.0
    assert cost_usd(PriceConfig(input=1.0, output=4.0), 1_000_000, 500_000, 250_000) == pytest.approx(2.0)
    assert cost_usd(PriceConfig(input=1.0, cached_input=0.1, output=0.0), 1_000_000, 500_000, 0) == pytest.approx(0.55)


def test_six_attempts_outlast_a_minute() -> None:
    """Whatever the jitter: an outage of a minute that shows as 503 gives nobody up."""
    attempts, policy = Attempts(6), RetryPolicy()
    for _ in range(200):
        assert sum(policy.wait_s(n, attempts.rng) for n in range(1, 6)) >= 58
    assert policy.wait_s(1, attempts.rng) <= 1.0
