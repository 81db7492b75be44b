"""How many calls may be in flight: as many as the endpoint bears, found by additive increase and multiplicative
decrease (the control of TCP), never more than llm.max_connections."""

from __future__ import annotations

import asyncio
import time
from collections import deque

START = 16
"""Calls in flight at first, or the ceiling where that is lower."""
CUT = 0.8
"""What a throttled endpoint leaves of the limit."""


class Slots:
    """A semaphore whose size follows the endpoint: `take` before each attempt, `release` after one that failed; after
    one with an answer `answered`, and `written` once the answer is on the disk. Calls that wait for their answer follow
    the endpoint's limit; together with the answers that a kill would still lose they stay below the ceiling.

    Every success in full use adds one until the endpoint throttles for the first time, so that the limit doubles with
    each round of calls; after that, a whole window of successes (as many as the limit) adds one. Throttling cuts it
    once per episode: calls that were sent before the last cut tell of the limit before it, and change nothing.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = float(min(START, ceiling))
        self.cuts = 0
        self._held = 0
        self._unwritten = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._successes = 0
        self._cut_at = float("-inf")

    async def take(self) -> None:
        if self._has_room() and not self._waiting:
            self._held += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # whoever wakes us has counted us in
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        self._held -= 1
        self._wake()

    def answered(self) -> None:
        self._held -= 1
        self._unwritten += 1
        self._wake()

    def written(self) -> None:
        self._unwritten -= 1
        self._wake()

    def _has_room(self) -> bool:
        return self._held < int(self.limit) and self._held + self._unwritten < self.ceiling

    def succeeded(self, sent_at: float) -> None:
        """A call that was sent at `sent_at` (time.monotonic()) brought an answer; told while its slot is held."""
        if sent_at < self._cut_at or self._held < int(self.limit):
            return  # of the limit as it was, or of less than the limit
        self._successes += 1
        if self.cuts == 0 or self._successes >= int(self.limit):
            self._successes = 0
            self.limit = min(float(self.ceiling), self.limit + 1)
            self._wake()

    def throttled(self, sent_at: float) -> None:
        """The endpoint refused a call for its load."""
        if sent_at < self._cut_at:
            return
        self._cut_at = time.monotonic()
        self._successes = 0
        self.cuts += 1
        self.limit = max(1.0, CUT * self.limit)

    def _wake(self) -> None:
        while self._waiting and self._has_room():
            turn = self._waiting.popleft()
            if not turn.done():  # one whose worker was cancelled is
                self._held += 1
                turn.set_result(None)
