"""The one retry layer: which failures are tried again, how often, and after how long."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState

from autointerp.llm.endpoint_errors import (
    AttemptError,
    AttemptTimeoutError,
    BadReplyError,
    DeclinedError,
    RateLimitedError,
    UnreachableError,
)

T = TypeVar("T")
MAX_TIMEOUTS = 2
"""Per request: an attempt that ran into the timeout has perhaps been billed."""
MAX_BAD_REPLIES = 3
"""Per request: the first one and two more tries."""
MOST_LIMITED = 20
"""Per request: 429s after which it is given up, if they took LIMITED_S or longer and other calls passed meanwhile. An
endpoint that refuses one request for ever (larger than a minute's tokens, say) would else hold the run for ever."""
LIMITED_S = 900.0

LONGEST_RETRY_AFTER_S = 3600.0
_JITTER = random.Random()
"""One for all requests: its state has 2.5 kB."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Waits between the attempts of one request, in seconds: a short one for the stray failure, then doubling, so that
    six attempts outlast a minute's outage. Each is shortened by a random share of up to a half."""

    first_s: float = 1.0
    then_s: float = 8.0
    longest_s: float = 60.0

    def wait_s(self, failures: int, rng: random.Random) -> float:
        """Before the attempt after `failures` (1 or more) counted failures."""
        later = min(self.longest_s, self.then_s * 2.0 ** min(max(failures - 2, 0), 30))
        return (self.first_s if failures <= 1 else later) * rng.uniform(0.5, 1.0)


@dataclass(slots=True)
class Attempts:
    """What one request has been through."""

    allowed: int
    sent: int = 0
    failures: int = 0
    """Failed attempts that count: pauses that everybody shares do not."""
    timeouts: int = 0
    bad_replies: int = 0
    times_limited: int = 0
    limited_since: float | None = None
    """When the first attempt that met a 429 was sent (time.monotonic())."""
    limited_alone: bool = False
    """Whether 429s have ended it while other calls passed."""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0
    """Of the last attempt."""
    is_unwritten: bool = False
    """Whether its answer still has to be written down (client.py)."""
    rng: random.Random = field(default_factory=lambda: _JITTER)

    def failed_alone(self, error: AttemptError) -> None:
        """For `retrying_alone`: pauses and timeouts are failures like others."""
        self.failures += 1
        self.bad_replies += isinstance(error, BadReplyError)

    def limited(self, sent_at: float, succeeded_at: float) -> None:
        """A 429 for the attempt sent at `sent_at`; some call of the run last succeeded at `succeeded_at`."""
        self.times_limited += 1
        self.limited_since = sent_at if self.limited_since is None else self.limited_since
        lasted = time.monotonic() - self.limited_since >= LIMITED_S
        self.limited_alone = self.times_limited >= MOST_LIMITED and lasted and succeeded_at > self.limited_since

    def failed(self, error: AttemptError) -> None:
        self.failures += error.counted
        self.timeouts += isinstance(error, AttemptTimeoutError)
        self.bad_replies += isinstance(error, BadReplyError)

    @property
    def exhausted(self) -> bool:
        return (
            self.failures >= self.allowed
            or self.timeouts >= MAX_TIMEOUTS
            or self.bad_replies >= MAX_BAD_REPLIES
            or self.limited_alone
        )


async def retried(
    once: Callable[[], Awaitable[T]], attempts: Attempts, policy: RetryPolicy, sleep: Callable[[float], Awaitable[None]]
) -> T:
    """What `once` returns, tried again while `attempts` allows it; raises the last AttemptError when it does not, and
    anything else at once. `once` counts its failures into `attempts`. `sleep` is told the seconds between two attempts.

    tenacity is given the first failure to judge, not the first attempt: most calls have none, and setting it up costs
    about as much as all the rest that is done here for a call.
    """
    try:
        return await once()
    except AttemptError as error:
        first: list[AttemptError] = [error]

    async def again() -> T:
        if first:
            raise first.pop()
        return await once()

    return await _retrying(attempts, policy, sleep)(again)


def _retrying(attempts: Attempts, policy: RetryPolicy, sleep: Callable[[float], Awaitable[None]]) -> AsyncRetrying:
    def again(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        return isinstance(error, AttemptError) and not isinstance(error, DeclinedError)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, (RateLimitedError, UnreachableError)):
            return 0.0  # the pause is everybody's: limits.PauseGate holds the next permit back
        return policy.wait_s(attempts.failures, attempts.rng)

    return AsyncRetrying(retry=again, stop=lambda _state: attempts.exhausted, wait=wait, sleep=sleep, reraise=True)


def retrying_alone(attempts: Attempts, policy: RetryPolicy) -> AsyncRetrying:
    """The same for calls that share no pause with others (those about a batch): a Retry-After is waited for here."""

    def again(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        return isinstance(error, AttemptError) and not isinstance(error, DeclinedError)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after or 0.0 if isinstance(error, AttemptError) else 0.0
        return max(policy.wait_s(attempts.failures, attempts.rng), min(asked, LONGEST_RETRY_AFTER_S))

    return AsyncRetrying(retry=again, stop=lambda _state: attempts.exhausted, wait=wait, reraise=True)
