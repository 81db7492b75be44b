"""How many calls may be in flight: as many as the endpoint can take, at most llm.max_connections. The limit is found by
additive increase and multiplicative decrease, as in TCP."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

START = 16
"""The first limit, unless the ceiling is lower."""
CUT = 0.8
"""The share of the limit that remains after the endpoint throttles."""


class Slots:
    """A semaphore whose size follows the endpoint.

    Call `take` before each attempt and `release` after a failed one. After an answer call `answered`, and `written`
    once the answer is on disk. Calls that wait for their answer stay within the endpoint's limit. Together with the
    answers that a kill would still lose, they stay within the ceiling.

    Until the endpoint throttles for the first time, every success while all slots are in use adds one, so the limit
    doubles with each round of calls. After that, a whole window of successes (as many as the limit) adds one.
    Throttling cuts the limit once per episode: calls sent before the last cut met the old limit and change nothing.

    A server with few slots may refuse nothing and let calls wait, until they run into their timeout. So the limit stays
    below what the endpoint answers in that time: no success raises it further, and a call that timed out cuts it. A
    server that works on all calls at once slows each of them down, so all may time out and none be answered. How many
    it bears is then not known, and the next calls would time out for the second time. So the limit falls to one, and
    doubles again with each round of answers, up to four fifths of what it was.
    """

    def __init__(self, ceiling: int, timeout_s: float = math.inf) -> None:
        self.ceiling = ceiling
        self.limit = float(min(START, ceiling))
        self.cuts = 0
        self.answers = 0
        """Answers so far."""
        self._timeout_s = timeout_s
        self._held = 0
        self._unwritten = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._successes = 0
        self._cut_at = float("-inf")
        self._fast_below = math.inf
        """Below this limit every success adds one; from there on, a whole window of them does."""

    async def take(self) -> None:
        if self._has_room() and not self._waiting:
            self._held += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # the waker has counted this call already
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

    def succeeded(self, sent_at: float, answers_before: int) -> None:
        """Note that a call brought an answer, while its slot is still held. `sent_at` (time.monotonic()) and
        `answers_before` tell the time and `answers` when it was sent."""
        self.answers += 1
        if sent_at < self._cut_at or self._held < int(self.limit):
            return  # it met an older limit, or the limit was not fully used
        s_per_answer = (time.monotonic() - sent_at) / (self.answers - answers_before)
        if (self.limit + 1) * s_per_answer > CUT * self._timeout_s:
            return  # if the endpoint gets no faster with one call more, the last in its queue waits too long
        self._successes += 1
        if self.limit < self._fast_below or self._successes >= int(self.limit):
            self._successes = 0
            self.limit = min(float(self.ceiling), self.limit + 1)
            self._wake()

    def throttled(self, sent_at: float) -> None:
        """Note that the endpoint refused a call because of its load."""
        if sent_at >= self._cut_at:
            self._cut_to(CUT * self.limit)
            self._fast_below = self.limit

    def timed_out(self, sent_at: float, answers_before: int) -> None:
        """Note that a call got no whole reply in time. The endpoint bears as many calls as it answered meanwhile. Where
        that is none, it is down or has too many calls at work, and one call at a time finds out which."""
        answered = self.answers - answers_before
        if answered:
            bears = max(1.0, CUT * answered)
            if bears < self.limit:
                self._cut_to(bears)
                self._fast_below = bears
        elif sent_at >= self._cut_at:
            if self.limit > 1:  # one call that timed out alone tells nothing of how many calls are borne
                self._fast_below = CUT * self.limit
            self._cut_to(1.0)

    def _cut_to(self, limit: float) -> None:
        self._cut_at = time.monotonic()
        self._successes = 0
        self.cuts += 1
        self.limit = max(1.0, limit)

    def _wake(self) -> None:
        while self._waiting and self._has_room():
            turn = self._waiting.popleft()
            if not turn.done():  # done if its worker was cancelled
                self._held += 1
                turn.set_result(None)
