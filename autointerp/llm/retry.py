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
    UnavailableError,
    UnreachableError,
)

T = TypeVar("T")
MAX_TIMEOUTS = 2
"""Timeouts after which a request is given up. It is low because each timed-out attempt may be billed."""
MAX_BAD_REPLIES = 3
"""Unusable replies after which a request is given up."""
MOST_LIMITED = 20
"""A request is given up after this many 429s or words that the endpoint is busy, if they took LIMITED_S or longer while
other calls passed. Otherwise an endpoint that always refuses one request (because it exceeds a minute's tokens, say)
would hold the run for ever."""
LIMITED_S = 900.0
LIMITED_FREELY = 4
"""Such refusals of one request after which it waits by itself too."""

LONGEST_RETRY_AFTER_S = 3600.0
_JITTER = random.Random()
"""Shared by all requests, since its state takes 2.5 kB."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds to wait between the attempts of one request: little after a first failure, then doubling, so that six
    attempts outlast an outage of a minute. Each wait is shortened by a random share of up to a half."""

    first_s: float = 1.0
    then_s: float = 8.0
    longest_s: float = 60.0

    def wait_s(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after `failures` (1 or more) counted failures."""
        later = min(self.longest_s, self.then_s * 2.0 ** min(max(failures - 2, 0), 30))
        return (self.first_s if failures <= 1 else later) * rng.uniform(0.5, 1.0)

    def limited_wait_s(self, times_limited: int, rng: random.Random) -> float:
        """Seconds that one request waits by itself, besides the pause that all share, after it was refused so often for
        load. Calls that pass meanwhile end the shared pause, and the request would be sent many times a second without
        this."""
        if times_limited <= LIMITED_FREELY:
            return 0.0
        own = self.first_s * 2.0 ** min(times_limited - LIMITED_FREELY - 1, 30)
        return min(self.longest_s, own) * rng.uniform(0.5, 1.0)


@dataclass(slots=True)
class Attempts:
    """The attempts that one request has made so far."""

    allowed: int
    sent: int = 0
    failures: int = 0
    """Failed attempts that count; those that pause all calls do not."""
    timeouts: int = 0
    bad_replies: int = 0
    refused_by_500s: bool = False
    """Whether a 500 may mean that the endpoint does not support a field of this request."""
    errors_500: int = 0
    times_limited: int = 0
    limited_since: float | None = None
    """When the first attempt that was refused for load was sent (time.monotonic())."""
    others_pass: bool = False
    """Whether another call of the run was answered since then."""
    limited_alone: bool = False
    """Whether to give up because this request is refused for load while other calls pass."""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0
    """Seconds that the last attempt took."""
    is_unwritten: bool = False
    """Whether its answer has arrived and is not written yet (see client.py)."""
    rng: random.Random = field(default_factory=lambda: _JITTER)

    def failed_alone(self, error: AttemptError) -> None:
        """Count a failure for `retrying_alone`, where 429s and timeouts count like all others."""
        self.failures += 1
        self.bad_replies += isinstance(error, BadReplyError)

    def limited(self, sent_at: float, succeeded_at: float) -> None:
        """Count a refusal for load (a 429, or words that the endpoint is busy) of the attempt sent at `sent_at`.
        `succeeded_at` is when any call of the run last succeeded."""
        self.times_limited += 1
        self.limited_since = sent_at if self.limited_since is None else self.limited_since
        lasted = time.monotonic() - self.limited_since >= LIMITED_S
        self.others_pass = succeeded_at > self.limited_since
        self.limited_alone = self.times_limited >= MOST_LIMITED and lasted and self.others_pass

    def failed(self, error: AttemptError) -> None:
        self.failures += error.counted
        self.errors_500 += isinstance(error, UnavailableError) and error.http_status == 500
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
    """The result of `once`, which is tried again after an AttemptError while `attempts` allows it. Raises the last
    AttemptError when it no longer does, and any other error at once.

    `once` counts its failures into `attempts`; `sleep` gets the seconds to wait between two attempts. tenacity is set
    up only after a first failure: most calls have none, and its setup costs about as much as all else here.
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
        if isinstance(error, RateLimitedError):  # limits.PauseGate holds all calls back
            return policy.limited_wait_s(attempts.times_limited, attempts.rng)
        if isinstance(error, UnreachableError):
            return 0.0  # all calls share this pause too
        alone = policy.limited_wait_s(attempts.times_limited, attempts.rng)
        return max(alone, policy.wait_s(attempts.failures, attempts.rng))

    return AsyncRetrying(retry=again, stop=lambda _state: attempts.exhausted, wait=wait, sleep=sleep, reraise=True)


def retrying_alone(attempts: Attempts, policy: RetryPolicy) -> AsyncRetrying:
    """Retries for calls that share no pause with others, such as those about a batch: a Retry-After is waited for
    here."""

    def again(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        return isinstance(error, AttemptError) and not isinstance(error, DeclinedError)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after or 0.0 if isinstance(error, AttemptError) else 0.0
        return max(policy.wait_s(attempts.failures, attempts.rng), min(asked, LONGEST_RETRY_AFTER_S))

    return AsyncRetrying(retry=again, stop=lambda _state: attempts.exhausted, wait=wait, reraise=True)
