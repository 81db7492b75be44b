"""The one way from the pipeline to a language model.

`LlmClient.ask` answers a request from the ledger, or sends it: reserve (budget) -> permit (limits) -> attempt
(transport) -> try again if need be (retry) -> settle -> record in the ledger -> only then read. What becomes of one
request is a Reply with a status. What concerns the whole run (key refused, account empty, budget used up, endpoint
unreachable, disk full) is an AutointerpError, which this call and every later one raise.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import Any

from autointerp.background import in_background
from autointerp.config import EndpointConfig, LlmConfig, PriceConfig
from autointerp.errors import AutointerpError, StoppedError
from autointerp.llm.budget import Budget, Reservation, cost_usd, price_of
from autointerp.llm.concurrency import Slots
from autointerp.llm.endpoint_errors import (
    AttemptError,
    AttemptTimeoutError,
    BadReplyError,
    DeclinedError,
    RateLimitedError,
    RequestRefusedError,
    UnavailableError,
    UnreachableError,
)
from autointerp.llm.ledger import CallLedger
from autointerp.llm.limits import Limits, PausePolicy
from autointerp.llm.replies import Envelope, Usage, load_json, read_envelope, read_logprobs, read_usage, storable_reply
from autointerp.llm.requests import FINAL_STATUSES, LENGTH_FIELDS, Reply, ReplyStatus, Request
from autointerp.llm.retry import Attempts, RetryPolicy, retried
from autointerp.llm.transport import PATHS, Transport, error_in_ok_reply
from autointerp.records import CallRecord

DEFAULT_OUTPUT_TOKENS = 1024
"""Tokens reserved for the reply to a request that names no limit."""
REFUSALS_IN_A_ROW = 20
"""When this many requests in a row are refused (400), a parameter is wrong, not the requests."""

ERRORS_500_OF_A_REFUSAL = 2
"""When a request with a field that the endpoint may not support gets so many 500s, it is refused."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReachPolicy:
    """How long to try an endpoint that accepts no connection."""

    first_tries: int = 3
    """Tries, about three seconds in all, while the endpoint has never answered."""
    outage_s: float = 900.0
    """Seconds to try an endpoint that has answered before: it is probably being restarted."""
    longest_pause_s: float = 15.0


@dataclasses.dataclass(slots=True)
class ClientCounts:
    """What progress lines report."""

    asked: int = 0
    from_ledger: int = 0
    sent: int = 0
    in_flight: int = 0
    rate_limited: int = 0
    failed_attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0


class LlmClient:
    """Calls to one endpoint. Use one per endpoint and run, as an async context manager inside the ledger's."""

    def __init__(
        self,
        endpoint: EndpointConfig,
        llm: LlmConfig,
        budget: Budget,
        ledger: CallLedger,
        run_id: str,
        *,
        retry: RetryPolicy | None = None,
        pauses: PausePolicy | None = None,
        reach: ReachPolicy | None = None,
    ) -> None:
        """Raises InputError when a public endpoint has no key, or when budget.max_usd is set and the model has no
        price."""
        self.endpoint = endpoint
        self.llm = llm
        self.budget = budget
        self.ledger = ledger
        self.run_id = run_id
        self.counts = ClientCounts()
        self.takes_seed: bool | None = None
        """Whether the endpoint takes a seed; None until it was asked (capabilities.py)."""
        self._price(endpoint.model)
        self._transport = Transport(endpoint, llm)
        self._limits = Limits(llm, pauses)
        self._slots = Slots(llm.max_connections, llm.timeout)
        self._retry = retry or RetryPolicy()
        self._reach = reach or ReachPolicy()
        self._stopped: AutointerpError | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._asking: dict[tuple[str, int], asyncio.Future[Reply]] = {}
        self._recording: set[asyncio.Task[None]] = set()
        self._unrecorded: list[AutointerpError] = []
        self._answered = False
        self._succeeded = False
        self._succeeded_at = float("-inf")
        self._over = asyncio.Event()
        self._refusals = 0
        self._unreachable_since: float | None = None
        self._bytes_per_token = 3.0

    def __repr__(self) -> str:
        return f"LlmClient({self.endpoint.address!r}, model={self.endpoint.model!r})"

    async def __aenter__(self) -> LlmClient:
        self._over = asyncio.Event()  # a new one, since each run may have its own event loop
        if self._stopped is not None:
            self._over.set()
        await self._limits.__aenter__()
        deadline = self.budget.deadline
        if deadline.at is not None:  # an alarm, since a call may be waiting for a permit or for the end of a pause
            left = max(0.0, deadline.left_s)
            self._alarm = asyncio.get_running_loop().call_later(left, self._deadline_has_come)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        await self._limits.__aexit__()
        try:
            await asyncio.gather(*self._recording, return_exceptions=True)
        finally:
            await self._transport.__aexit__()
        if self._unrecorded and kind is None:  # of an asker that was cancelled; an earlier error goes first
            raise self._unrecorded[0]

    async def ask(self, request: Request) -> Reply:
        """The reply to `request`: from the ledger if it is there, else from the endpoint, recorded before it is read.

        A reply that is cut off at its length limit is asked for once more, at twice the length. Raises an
        AutointerpError only for what ends the run (see the docstring of the module).
        """
        self.counts.asked += 1
        reply = await self._ask_once(request)
        if reply.status != "truncated" or request.max_tokens is None:
            return reply
        longer = {name: 2 * request.body[name] for name in LENGTH_FIELDS if name in request.body}
        second = await self._ask_once(dataclasses.replace(request, body={**request.body, **longer}))
        best = reply if second.status == "ctx_too_long" else second
        return dataclasses.replace(
            best,
            input_tokens=reply.input_tokens + second.input_tokens,
            cached_tokens=reply.cached_tokens + second.cached_tokens,
            output_tokens=reply.output_tokens + second.output_tokens,
            cost_usd=reply.cost_usd + second.cost_usd,
            attempts=reply.attempts + second.attempts,
            from_ledger=reply.from_ledger and second.from_ledger,
        )

    def stop(self, error: AutointerpError) -> None:
        """Send no further call: every later ask raises `error`. Calls in flight are still recorded."""
        if self._stopped is None:
            self._stopped = error
            self._limits.stop(error)
            self._over.set()

    def _deadline_has_come(self) -> None:
        self.stop(self.budget.deadline.error())

    async def _ask_once(self, request: Request) -> Reply:
        """`ask` without the second try. Several callers with the same request share one call to the endpoint."""
        key = (request.sha256, request.sample)
        while (other := self._asking.get(key)) is not None:
            await asyncio.wait([other])
            if not other.cancelled():
                return other.result()
        known = self._from_ledger(request)
        if known is not None:
            self.counts.from_ledger += 1
            return known
        self._check_stopped()
        mine: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._asking[key] = mine
        try:
            reply = await self._obtain(request)
            mine.set_result(reply)
            return reply
        except AutointerpError as error:
            self.stop(error)
            raise
        finally:
            del self._asking[key]
            mine.cancel()  # without effect once it has a result; without one, each caller that waits asks by itself

    async def _obtain(self, request: Request) -> Reply:
        """The reply to a request that the ledger does not hold."""
        return await self.send(request)

    def _check_stopped(self) -> None:
        if self._stopped is not None:
            raise self._stopped

    def _from_ledger(self, request: Request) -> Reply | None:
        record = self.ledger.find(request.sha256, request.sample)
        if record is None or record.status not in FINAL_STATUSES:
            return None
        envelope: Envelope | None = None
        if record.reply is not None and record.status != "ctx_too_long":
            try:
                envelope = read_envelope(request, load_json(record.reply), record.reply)
            except BadReplyError:
                if record.status == "ok":
                    return None  # a row that cannot be read cannot be reused
        if record.status == "ok" and envelope is not None and envelope.status != "ok":
            # an older version took a text that was cut off for an answer
            record = dataclasses.replace(record, status=envelope.status, error=self._redacted(envelope.error))
        return reply_from(request, record, envelope, from_ledger=True)

    async def send(self, request: Request, *, raise_refusals: bool = False, field_in_doubt: bool = False) -> Reply:
        """Ask the endpoint even where the ledger holds a reply, and record the outcome. Unlike with `ask`, an error
        ends only this call. With `raise_refusals` (for probing) a refused parameter always raises. `field_in_doubt`:
        whether the request holds a field that the endpoint may not support. Some servers answer that with a 500, so
        the second 500 is a refusal."""
        attempts = Attempts(self.llm.attempts, refused_by_500s=field_in_doubt)
        try:
            return await self._sent(request, attempts, raise_refusals)
        finally:
            if attempts.is_unwritten:
                self._slots.written()

    async def _sent(self, request: Request, attempts: Attempts, raise_refusals: bool) -> Reply:
        envelope: Envelope | None = None
        raw: str | None = None
        error: str | None
        status: ReplyStatus
        try:
            answer: tuple[str, Envelope] = await retried(
                lambda: self._attempt(request, attempts), attempts, self._retry, self._sleep
            )
            raw, envelope = answer
            status, error = envelope.status, self._redacted(envelope.error)
        except DeclinedError as failure:
            status, error, raw = failure.status, str(failure), failure.raw
        except BadReplyError as failure:
            status, error, raw = "bad_reply", str(failure), failure.raw
        except AttemptError as failure:
            status, error, raw = "gave_up", str(failure), failure.raw
        except RequestRefusedError as refusal:
            self._refusals += 1
            if raise_refusals or not self._succeeded or self._refusals >= REFUSALS_IN_A_ROW:
                self._book_unfinished(request, attempts, str(refusal))
                raise
            status, error = "gave_up", str(refusal)
        except (AutointerpError, asyncio.CancelledError) as end:
            self._book_unfinished(request, attempts, str(end) or "cancelled")
            raise
        record = self._record_of(request, attempts, status, error, raw, envelope)
        await self._record(record)
        return reply_from(request, record, envelope, from_ledger=False)

    def _record_of(
        self, request: Request, attempts: Attempts, status: str, error: str | None, raw: str | None = None,
        envelope: Envelope | None = None,
    ) -> CallRecord:  # fmt: skip
        return CallRecord(
            request_sha256=request.sha256,
            sample=request.sample,
            run_id=self.run_id,
            dictionary_id=request.dictionary_id,
            feature=request.feature,
            stage=request.stage,
            model=request.model,
            status=status,
            reply=storable_reply(request.kind, raw, envelope.payload) if raw is not None and envelope else raw,
            input_tokens=attempts.input_tokens,
            cached_tokens=attempts.cached_tokens,
            output_tokens=attempts.output_tokens,
            cost_usd=attempts.cost_usd,
            latency_s=attempts.latency_s,
            attempts=attempts.sent,
            error=error,
        )

    def _book_unfinished(self, request: Request, attempts: Attempts, why: str) -> None:
        """Record what the attempts may have cost when the run ends before this request is answered; the next run asks
        again. The client awaits the record when it closes, since here a cancellation may be under way."""
        if attempts.input_tokens or attempts.output_tokens or attempts.cost_usd:
            self._begin_record(self._record_of(request, attempts, "gave_up", f"the run ended first: {why}"))

    def _begin_record(self, record: CallRecord) -> asyncio.Task[None]:
        task = in_background(self.ledger.record(record), "the record of a call", self._not_recorded)
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)
        return task

    def _not_recorded(self, error: AutointerpError) -> None:
        """Nothing more is paid for once a record could not be written, whether or not its asker still waits."""
        self._unrecorded.append(error)
        self.stop(error)

    async def _sleep(self, seconds: float) -> None:
        """Wait between two attempts, but not past the end of the run: the next attempt then raises the reason."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()

    async def _record(self, record: CallRecord) -> None:
        """Write the record even if the caller is cancelled: a reply that has arrived is paid for."""
        await asyncio.shield(self._begin_record(record))

    async def _attempt(self, request: Request, attempts: Attempts) -> tuple[str, Envelope]:
        """Make one attempt, once there is a free slot, room in the budget and a permit. An answer counts as in flight
        until `send` has written it, so that a kill loses at most llm.max_connections calls."""
        await self._slots.take()
        try:
            answer = await self._attempt_in_slot(request, attempts)
        except BaseException:
            self._slots.release()
            raise
        self._slots.answered()
        attempts.is_unwritten = True
        return answer

    async def _attempt_in_slot(self, request: Request, attempts: Attempts) -> tuple[str, Envelope]:
        expected = self._expected_usage(request)
        usd = self._cost(request, expected)
        tokens = expected.input_tokens + expected.output_tokens
        reservation = await self.budget.reserve(tokens, usd)
        try:
            await self._limits.permit(tokens)
            self._check_stopped()
        except BaseException:
            self.budget.release(reservation)
            raise
        attempts.sent += 1
        self.counts.sent += 1
        self.counts.in_flight += 1
        sent_at, answers_before = time.monotonic(), self._slots.answers
        used: Usage | None = expected  # holds where the attempt is cancelled half-way, since it may be billed
        try:
            raw = await self._transport.post(request)
            self._has_answered()
            payload = self._load(request, raw)
            used = self._reported_usage(request, payload, raw)
            envelope = read_envelope(request, payload, raw)
            self._has_succeeded(request, used)
            self._slots.succeeded(sent_at, answers_before)
            return raw, envelope
        except AttemptError as failure:
            if not failure.perhaps_billed:
                used = None
            if isinstance(failure, AttemptTimeoutError):
                self._slots.timed_out(sent_at, answers_before)
            self._note_failure(failure, attempts, sent_at)
            if attempts.refused_by_500s and attempts.errors_500 >= ERRORS_500_OF_A_REFUSAL:
                raise RequestRefusedError(str(failure), 500) from None
            raise
        except AutointerpError:
            used = None
            raise
        finally:
            self.counts.in_flight -= 1
            attempts.latency_s = time.monotonic() - sent_at
            self._settle(request, attempts, reservation, used)

    def _load(self, request: Request, raw: str) -> Any:
        payload = load_json(raw)
        hidden = error_in_ok_reply(payload)
        if hidden is not None:
            raise self._transport.status_error(hidden, raw, None, request.model, PATHS[request.kind])
        return payload

    def _note_failure(self, failure: AttemptError, attempts: Attempts, sent_at: float) -> None:
        is_busy = isinstance(failure, UnavailableError) and failure.is_busy
        if is_busy or isinstance(failure, RateLimitedError):
            attempts.limited(sent_at, self._succeeded_at)
        if is_busy and (attempts.others_pass or self.counts.in_flight > 1):
            failure.counted = False  # a queue that is full, of this run's calls or of others', but moves
        attempts.failed(failure)
        self.counts.failed_attempts += 1
        gate = self._limits.gate
        if isinstance(failure, UnreachableError):
            self._note_unreachable(failure, sent_at)
            return
        self._has_answered()
        if isinstance(failure, RateLimitedError) or (isinstance(failure, UnavailableError) and failure.overloaded):
            self._slots.throttled(sent_at)
        if isinstance(failure, RateLimitedError):
            self.counts.rate_limited += 1
            gate.hold(sent_at, failure.retry_after, str(failure))
        elif failure.retry_after is not None:
            gate.hold(sent_at, failure.retry_after, str(failure))

    def _note_unreachable(self, failure: UnreachableError, sent_at: float) -> None:
        now = time.monotonic()
        if self._unreachable_since is None:
            self._unreachable_since = now
        gate = self._limits.gate
        gate.hold(sent_at, None, str(failure), longest_s=self._reach.longest_pause_s)
        url = self.endpoint.address
        if not self._answered and gate.episodes >= self._reach.first_tries:
            raise AutointerpError(f"cannot reach {url}: {failure}; is it running, and is base_url right?") from None
        if self._answered and now - self._unreachable_since > self._reach.outage_s:
            raise StoppedError(
                f"{url} has accepted no connection for {now - self._unreachable_since:.0f} s: {failure}; "
                f"what is done is kept: run again when it is back"
            ) from None

    def _has_answered(self) -> None:
        self._answered = True
        self._unreachable_since = None

    def _has_succeeded(self, request: Request, usage: Usage) -> None:
        self._succeeded = True
        self._succeeded_at = time.monotonic()
        self._refusals = 0
        self._limits.gate.success()
        if usage.input_tokens:
            ratio = len(request.wire) / usage.input_tokens
            self._bytes_per_token += 0.05 * (min(max(ratio, 0.5), 8.0) - self._bytes_per_token)

    def _settle(self, request: Request, attempts: Attempts, reservation: Reservation, used: Usage | None) -> None:
        used = used or Usage(0, 0, 0, 0.0)
        usd = self._cost(request, used)
        tokens = used.input_tokens + used.output_tokens
        self.budget.settle(reservation, tokens, usd)
        self._limits.correct(reservation.tokens, tokens)
        attempts.input_tokens += used.input_tokens
        attempts.cached_tokens += used.cached_tokens
        attempts.output_tokens += used.output_tokens
        attempts.cost_usd += usd
        self.counts.input_tokens += used.input_tokens
        self.counts.output_tokens += used.output_tokens
        self.counts.cost_usd += usd

    def _expected_usage(self, request: Request) -> Usage:
        """The most that a request is likely to use: the prompt's tokens, from its bytes at the ratio seen so far plus a
        fifth, and a reply of full length."""
        read = int(1.2 * len(request.wire) / self._bytes_per_token) + 16
        written = request.max_tokens if request.max_tokens is not None else DEFAULT_OUTPUT_TOKENS
        return Usage(read, 0, written, None)

    def _reported_usage(self, request: Request, payload: Any, raw: str) -> Usage:
        """The endpoint's token counts, with an estimate from the lengths for each that it leaves out."""
        written = 0 if request.kind == "embeddings" else min(len(raw) // 4, 4096)
        guess = Usage(int(len(request.wire) / self._bytes_per_token), 0, written, None)
        return read_usage(payload, guess) or guess

    def _price(self, model: str) -> PriceConfig | None:
        return price_of(model, self.llm.prices, self.budget.config)

    def _cost(self, request: Request, usage: Usage) -> float:
        price = self._price(request.model)
        if price is None:
            return usage.cost_usd or 0.0
        return cost_usd(price, usage.input_tokens, usage.cached_tokens, usage.output_tokens)

    def _redacted(self, text: str | None) -> str | None:
        return None if text is None else self._transport.redact(text)


def reply_from(request: Request, record: CallRecord, envelope: Envelope | None, *, from_ledger: bool) -> Reply:
    written, prompt = read_logprobs(request, envelope) if envelope is not None else (None, None)
    return Reply(
        status=record.status,  # type: ignore[arg-type]
        text=envelope.text if envelope is not None else "",
        token_logprobs=written,
        prompt_logprobs=prompt,
        finish_reason=envelope.finish_reason if envelope is not None else None,
        input_tokens=record.input_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
        cost_usd=record.cost_usd,
        from_ledger=from_ledger,
        error=record.error,
        latency_s=record.latency_s,
        attempts=record.attempts,
        vectors=envelope.vectors if envelope is not None else None,
    )
