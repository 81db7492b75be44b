"""How fast calls may start: requests per minute, tokens per minute, and one pause that holds all calls.

Workers ask `Limits.permit`. One dispatcher takes the asyncio-throttle permits for all of them, since its waiters poll
and a thousand of them would use half a core. It releases calls in the order in which they asked.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from dataclasses import dataclass

from asyncio_throttle import Throttler

from autointerp.background import in_background
from autointerp.config import LlmConfig
from autointerp.errors import StoppedError

BURST_S = 3.0
"""Seconds of the token rate that may be used at once: 5 % of a minute."""


def request_throttler(requests_per_minute: float) -> Throttler:
    """A throttler that lets about one second's requests through in each second, so that the rate holds at any scale."""
    window = max(1, round(requests_per_minute / 60))
    period = 60 * window / requests_per_minute
    return Throttler(rate_limit=window, period=period, retry_interval=min(0.05, max(0.005, period / 100)))


class TokenBucket:
    """Tokens per minute. A call takes an estimate when it starts; the endpoint's count corrects it when it ends.

    A call larger than the bucket passes once the bucket is full, and later calls wait until its debt is paid.
    """

    def __init__(self, tokens_per_minute: float) -> None:
        self.rate = tokens_per_minute / 60
        self.capacity = self.rate * BURST_S
        self._level = self.capacity
        self._at = time.monotonic()

    def _refill(self) -> None:
        now = time.monotonic()
        self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
        self._at = now

    async def take(self, tokens: float) -> None:
        while True:
            self._refill()
            missing = min(tokens, self.capacity) - self._level
            if missing <= 1e-9:
                break
            await asyncio.sleep(missing / self.rate)
        self._level -= tokens

    def correct(self, estimated: float, used: float) -> None:
        """Replace an estimate by the tokens really used. If they are more, the level sinks, even below zero."""
        self._refill()
        self._level = min(self.capacity, self._level + estimated - used)


@dataclass(frozen=True, slots=True)
class PausePolicy:
    """Lengths of pauses, in seconds. A Retry-After is kept to, and lengthened where pauses of its length do not help;
    the rest is for endpoints that send none."""

    first_s: float = 1.0
    longest_s: float = 60.0
    """Pauses double from first_s up to this. With a Retry-After they are never shorter than an eighth of that."""
    most_s: float = 3600.0
    """A longer Retry-After ends the run, which can be resumed, instead of holding it."""
    most_without_success_s: float = 7200.0
    """Pauses that add up to this without an answer in between end the run too."""
    jitter: float = 0.25
    """Largest random share added to a pause, so that many clients do not come back at the same moment."""


class PauseGate:
    """One pause for all workers, begun by any call that is told to wait."""

    def __init__(self, policy: PausePolicy) -> None:
        self.policy = policy
        self.episodes = 0
        """Pauses since the last success."""
        self._until = 0.0
        self._paused_s = 0.0
        self._random = random.Random()

    @property
    def remaining_s(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def hold(self, sent_at: float, retry_after: float | None, why: str, longest_s: float | None = None) -> None:
        """Pause all calls for `retry_after` seconds, or longer after every pause that did not help.

        sent_at: when the call was sent (time.monotonic()). A call sent before the present pause tells nothing new, so
        without a Retry-After it does not lengthen the pause. Raises StoppedError when the endpoint asks for too long a
        wait, or when the pauses have lasted too long in all.
        """
        policy = self.policy
        if retry_after is not None and retry_after > policy.most_s:
            raise StoppedError(f"the endpoint asks to wait {retry_after:.0f} s ({why}); run again after that")
        new = sent_at >= self._until
        if retry_after is None:
            if not new:
                return
            retry_after = self._growing_s(longest_s or policy.longest_s)
        elif new:
            retry_after = max(retry_after, min(policy.longest_s, self._growing_s(math.inf) / 8))
        self.episodes += new
        now = time.monotonic()
        until = now + retry_after * (1 + self._random.uniform(0, policy.jitter))
        if until > self._until:
            self._paused_s += until - max(now, self._until)
            self._until = until
        if self._paused_s > policy.most_without_success_s:
            raise StoppedError(f"no call has succeeded in {self._paused_s:.0f} s of pauses ({why}); run again later")

    def _growing_s(self, longest_s: float) -> float:
        return min(longest_s, self.policy.first_s * 2.0 ** min(self.episodes, 30))

    def success(self) -> None:
        self.episodes = 0
        self._paused_s = 0.0

    async def wait(self) -> None:
        while (left := self.remaining_s) > 0:
            await asyncio.sleep(left)


class Limits:
    """The dispatcher, which lets calls start. Use as an async context manager."""

    def __init__(self, llm: LlmConfig, pauses: PausePolicy | None = None) -> None:
        self.gate = PauseGate(pauses or PausePolicy())
        self._throttler = request_throttler(llm.requests_per_minute)
        self._bucket = TokenBucket(llm.tokens_per_minute) if llm.tokens_per_minute is not None else None
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()
        self._arrived = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._stopped: Exception | None = None

    async def __aenter__(self) -> Limits:
        self._dispatcher = in_background(self._dispatch(), "the dispatcher of calls", self.stop)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            await asyncio.gather(self._dispatcher, return_exceptions=True)

    async def permit(self, tokens: float) -> None:
        """Wait until a call of about `tokens` (input and output) may be sent and no pause is on."""
        while True:
            if self._stopped is not None:
                raise self._stopped
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((turn, tokens))
            self._arrived.set()
            await turn
            if self.gate.remaining_s <= 0:
                return
            self.correct(tokens, 0)  # a pause began between the permit and now: give the tokens back, queue again

    def correct(self, estimated: float, used: float) -> None:
        if self._bucket is not None:
            self._bucket.correct(estimated, used)

    def stop(self, error: Exception) -> None:
        """Give no more permits: callers that wait and later callers get `error`."""
        self._stopped = error
        while self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)

    async def _dispatch(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            turn, tokens = self._waiting[0]
            if turn.done():  # its worker was cancelled
                self._waiting.popleft()
                continue
            await self.gate.wait()
            if self._bucket is not None:
                await self._bucket.take(tokens)
            await self._throttler.acquire()
            await self.gate.wait()
            if self._waiting and self._waiting[0][0] is turn:
                self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
            else:
                self.correct(tokens, 0)
