"""An LlmClient that asks through the endpoint's batch API: half the price, answers within a day.

A caller awaits its reply as with LlmClient, only longer. Requests that the ledger does not hold are gathered until no
new one has come for a while (by then every worker is waiting), written into one file, and handed over as a batch. Its
results are recorded as they are read, and only then given to the callers. Calls by `send` (probes) are not batched.

A batch belongs to the store, not to the process. It is written into the book before its upload and stays there until
its results are in the ledger, so another process can go on with it: that process fetches every batch that earlier ones
left, and does not send a request that is in an unfinished batch. If a process died before the creation of a batch was
acknowledged, the next one searches the endpoint's list of batches for our key. Only a batch that the list does not show
yet is paid for twice.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from autointerp.background import in_background
from autointerp.errors import AutointerpError, StoppedError
from autointerp.llm.batch_files import (
    MOST_REQUESTS,
    BatchState,
    ResultLine,
    batched,
    custom_id,
    input_line,
    parted,
    stand_in,
)
from autointerp.llm.batch_handover import PATIENCE, Handover
from autointerp.llm.batch_results import Reading, read_files
from autointerp.llm.batch_transport import BatchTransport
from autointerp.llm.batch_work import Batch, Outcome, Waiting
from autointerp.llm.budget import Reservation, cost_usd
from autointerp.llm.client import LlmClient, reply_from
from autointerp.llm.endpoint_errors import (
    AttemptError,
    BadReplyError,
    DeclinedError,
    RequestRefusedError,
    UnavailableError,
)
from autointerp.llm.ledger import BatchBook
from autointerp.llm.replies import Envelope, Usage, load_json, read_envelope, read_usage, storable_reply
from autointerp.llm.requests import FINAL_STATUSES, Reply, ReplyStatus, Request
from autointerp.llm.retry import MAX_BAD_REPLIES, Attempts, retrying_alone
from autointerp.llm.transport import PATHS, error_in_ok_reply
from autointerp.records import BatchedRequest, BatchRecord, CallRecord

T = TypeVar("T")


class BatchClient(LlmClient):
    """An LlmClient whose `ask` goes through batches. `book` keeps them; `say` gets one line about each thing that
    happens to one."""

    def __init__(
        self, *args: Any, book: BatchBook, say: Callable[[str], None] = lambda line: None, **more: Any
    ) -> None:
        """The other arguments and errors are LlmClient's."""
        super().__init__(*args, **more)
        self._book = book
        self._say = say
        self._batches = BatchTransport(
            self._transport, self.llm.timeout, 2 * self.llm.max_reply_bytes, self.endpoint.model
        )
        self._handover = Handover(self.endpoint, self.llm, self._batches, book, self._retry, self.counts, say)
        self._waiting: dict[str, Waiting] = {}
        self._queue: list[Waiting] = []
        self._under_way: dict[str, str] = {}
        """custom_id -> batch_key of the unfinished batch that holds the request."""
        self._watched: dict[asyncio.Task[None], Batch] = {}
        self._arrived = asyncio.Event()
        self._collector: asyncio.Task[None] | None = None
        self._untold: AutointerpError | None = None
        """The first error of a batch, or of the collector, that no caller waited for."""

    async def __aenter__(self) -> BatchClient:
        await super().__aenter__()
        for record, requests in await self._unfinished():
            batch = Batch(record, {r.custom_id: r for r in requests}, resumed=True)
            self._under_way.update(dict.fromkeys(batch.requests, record.batch_key))
            self._say(f"going on with batch {record.batch_id or record.batch_key} of {len(requests):,} requests")
            self._watch(batch)
        self._collector = in_background(self._collect(), "the collector of batches", self._end_all)
        return self

    async def _unfinished(self) -> list[tuple[BatchRecord, list[BatchedRequest]]]:
        """What earlier runs left at this endpoint. Older versions wrote its whole address."""
        addresses = dict.fromkeys((self.endpoint.address, self.endpoint.base_url))
        return [one for where in addresses for one in await self._book.unfinished(where, self.endpoint.model)]

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None and self._stopped is None:
            # Fetch an earlier run's batch if it has ended, even if no caller waits for it now: it is paid for.
            for task, batch in list(self._watched.items()):
                task.add_done_callback(lambda _task, batch=batch: batch.looked.set())  # type: ignore[misc]
                await batch.looked.wait()
        left = len(self._watched)
        tasks = [*self._watched, *([self._collector] if self._collector is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if left:
            self._say(
                f"{left} unfinished {'batch goes' if left == 1 else 'batches go'} on at the endpoint; the same command "
                "with the batch API fetches what is ready and waits for the rest"
            )
        await super().__aexit__(kind, *rest)
        if self._untold is not None and kind is None:
            raise self._untold

    def stop(self, error: AutointerpError) -> None:
        super().stop(error)
        for waiting in self._queue:
            waiting.fail(error)
        self._queue.clear()

    def _deadline_has_come(self) -> None:
        """Stop waiting for batches under way too, since they may take another day."""
        super()._deadline_has_come()
        for waiting in list(self._waiting.values()):
            waiting.fail(self.budget.deadline.error())

    # --- gathering --------------------------------------------------------------------------------------------------

    async def _obtain(self, request: Request) -> Reply:
        key = custom_id(request)
        waiting = self._waiting[key] = Waiting(request, asyncio.get_running_loop().create_future())
        if key not in self._under_way:
            self._enqueue(waiting)
        try:
            return await waiting.reply
        finally:
            if self._waiting.get(key) is waiting:
                del self._waiting[key]

    def _enqueue(self, waiting: Waiting) -> None:
        if self._stopped is not None:
            waiting.fail(self._stopped)
            return
        self._queue.append(waiting)
        self._arrived.set()

    async def _collect(self) -> None:
        while True:
            await self._arrived.wait()
            while self._arrived.is_set() and len(self._queue) < MOST_REQUESTS:  # until no request came for a while
                self._arrived.clear()
                await asyncio.sleep(self.llm.batch_quiet_seconds)
            self._arrived.clear()
            if self._queue:
                self._submit_what_fits()

    def _end_all(self, error: AutointerpError) -> None:
        """End every caller's wait with `error`: a fault in this program must not leave one waiting."""
        self._end(list(self._waiting.values()), error)

    def _end(self, callers: Sequence[Waiting], error: AutointerpError) -> None:
        """Send nothing more, and tell these callers why. Where there are none, it is raised at the end."""
        if not callers:
            self._untold = self._untold or error
        self.stop(error)
        for waiting in callers:
            waiting.fail(error)

    def _submit_what_fits(self) -> None:
        """Start batches with the queue's first requests, as many as the budget has room for. The others wait for the
        batches under way, which mostly cost less than was reserved. With none under way they end the run."""
        reserved: dict[str, Reservation] = {}
        chosen: list[Waiting] = []
        queue = [waiting for waiting in self._queue if not waiting.reply.done()]
        for n, waiting in enumerate(queue):
            reservation, usd, tokens = self._reserve(waiting.request)
            if reservation is None:
                self._queue = queue[n:]
                if not chosen and not self._watched:
                    self.stop(self.budget.used_up(tokens, usd))
                break
            reserved[custom_id(waiting.request)] = reservation
            chosen.append(waiting)
        else:
            self._queue = []
        for requests in parted([waiting.request for waiting in chosen]):
            batch = self._batch_of(requests, reserved)
            self._under_way.update(dict.fromkeys(batch.requests, batch.record.batch_key))
            self._watch(batch)

    def _reserve(self, request: Request) -> tuple[Reservation | None, float, int]:
        expected = self._expected_usage(request)
        tokens, usd = expected.input_tokens + expected.output_tokens, self._batch_cost(request, expected)
        return self.budget.reserve_now(tokens, usd), usd, tokens

    def _batch_of(self, requests: Sequence[Request], reserved: dict[str, Reservation]) -> Batch:
        record = BatchRecord(
            batch_key=uuid.uuid4().hex, batch_id=None, run_id=self.run_id, model=self.endpoint.model,
            base_url=self.endpoint.address, kind=requests[0].kind, input_file_id=None, status="uploading",
            created_at=time.time(),
        )  # fmt: skip
        listed = [batched(request) for request in requests]
        return Batch(
            record,
            {r.custom_id: r for r in listed},
            {r.custom_id: reserved[r.custom_id] for r in listed},
            b"".join(input_line(request) for request in requests),
        )

    def _batch_cost(self, request: Request, usage: Usage) -> float:
        price = self._price(request.model)
        if price is None:
            return usage.cost_usd or 0.0
        return cost_usd(price.in_batch(), usage.input_tokens, usage.cached_tokens, usage.output_tokens)

    # --- one batch --------------------------------------------------------------------------------------------------

    def _watch(self, batch: Batch) -> None:
        task = in_background(self._run(batch), f"batch {batch.record.batch_key}", self._end_all)
        self._watched[task] = batch

        def ended(task: asyncio.Task[None]) -> None:
            self._watched.pop(task, None)
            self._arrived.set()  # there may be room in the budget now

        task.add_done_callback(ended)

    async def _run(self, batch: Batch) -> None:
        """Take a batch from its upload, or from where an earlier process left it, to its results. An error that ends
        the run is raised by every `ask` that waits for the batch, and by later ones."""
        key = batch.record.batch_key
        try:
            state = await (self._handover.find_again(batch) if batch.resumed else self._handover.hand_over(batch))
            if state is not None:
                state = await self._handover.until_ended(batch, state)
            problem: AutointerpError | None = None
            if state is None:
                self._say(f"batch {batch.record.batch_id or key} is not at the endpoint; its requests are sent again")
            elif state.status == "failed":
                problem = self._handover.refusal(state, len(batch.requests))
                await self._book.finish(key, "failed", str(problem))
                if batch.resumed:  # the cause may be gone by now, so its requests are sent again
                    self._say(str(problem))
                    problem, state = None, None
            else:
                await self._fetch(batch, state)
                problem = self._ends_the_run(batch)
                await self._book.finish(key, state.status, str(problem) if problem is not None else None)
            if problem is not None:
                raise problem
            await self._again(batch, state)
        except AutointerpError as error:  # other batches under way are fetched all the same
            self._end([self._waiting[one] for one in batch.requests if one in self._waiting], error)
        finally:
            self._forget(batch)
            for reservation in batch.reserved.values():
                self.budget.release(reservation)
            batch.reserved.clear()

    def _forget(self, batch: Batch) -> None:
        for one in batch.requests:
            if self._under_way.get(one) == batch.record.batch_key:
                del self._under_way[one]

    # --- results ----------------------------------------------------------------------------------------------------

    async def _fetch(self, batch: Batch, state: BatchState) -> None:
        """Read both result files and record every result in them, those that cannot be read too."""
        files = [f for f in (state.output_file_id, state.error_file_id) if f is not None]
        attempts = Attempts(max(PATIENCE, self.llm.attempts))
        reading = Reading()
        failure: AttemptError | None = None

        async def take(lines: list[ResultLine]) -> None:
            await self._take_block(batch, state, lines)

        async def once() -> None:
            nonlocal reading
            reading, batch.strays = Reading(), 0
            try:
                await read_files(files, self._batches, batch, state, take, self._say, reading)
            except AttemptError as error:
                attempts.failed_alone(error)
                raise

        try:
            await retrying_alone(attempts, self._retry)(once)
        except AttemptError as error:
            failure = error
        if failure is not None and not isinstance(failure, BadReplyError):
            raise StoppedError(
                f"the results of batch {state.batch_id} cannot be fetched: {failure}; they stay at the endpoint: run "
                "again later"
            )
        n_unread = await self._take_unread(batch, state, reading)
        notes = [f"{batch.strays} lines that belong to no request"] if batch.strays else []
        if n_unread:
            notes.append(f"{n_unread} that cannot be read, though they are paid for")
        self._say(
            f"batch {state.batch_id} is {state.status}: {len(batch.done):,} of {len(batch.requests):,} done"
            + "".join(f", {note}" for note in notes)
        )

    async def _take_unread(self, batch: Batch, state: BatchState, reading: Reading) -> int:
        """Record the requests whose results are there and cannot be read, at the cost that the endpoint states or,
        where that is unreadable too, at the most that was expected. Return how many they are."""
        found = reading.unread_of(batch, state)
        for one, lost in found.items():
            if self._is_recorded(batch, one):
                continue
            request = self._request_of(batch, one)
            expected = self._expected_usage(request)
            used = read_usage({"usage": lost.usage}, expected) or expected
            await self._take_bad(batch, state, one, BadReplyError(lost.why), used)
        return len(found)

    async def _take_bad(
        self, batch: Batch, state: BatchState, one: str, failure: BadReplyError, used: Usage
    ) -> None:  # fmt: skip
        """Record an unusable reply that is billed, once."""
        batch.failures[one] = failure
        if one in batch.billed:
            return
        batch.billed.add(one)
        found = batch.requests[one]
        cost = self._batch_cost(self._request_of(batch, one), used)
        record = _record_of(batch, state, found, Outcome("bad_reply", failure.raw, str(failure), used, cost))
        await self._record(record)
        self._settle_one(batch, one, record)
        if (waiting := self._waiting.get(one)) is not None:
            waiting.bad.append(record)

    def _is_recorded(self, batch: Batch, one: str) -> bool:
        """Whether an earlier process has recorded a final answer. If so, the caller that waits for it gets it."""
        if not batch.resumed:
            return False
        found = batch.requests[one]
        known = self.ledger.find(found.request_sha256, found.sample)
        if known is None or known.status not in FINAL_STATUSES:
            return False
        self._give(batch, one, None)
        return True

    def _request_of(self, batch: Batch, one: str) -> Request:
        """The request with this custom_id, or one in its place, where no caller in this process has it."""
        waiting = self._waiting.get(one)
        return waiting.request if waiting else stand_in(batch.record.kind, batch.record.model, batch.requests[one])

    async def _take_block(self, batch: Batch, state: BatchState, lines: Sequence[ResultLine]) -> None:
        """Record each result once. Where two lines belong to one request, the first usable one counts."""
        fresh: dict[str, ResultLine] = {}
        later: list[ResultLine] = []
        for line in lines:
            if line.custom_id not in batch.requests:
                batch.strays += 1
            elif line.custom_id in fresh:
                later.append(line)
            elif line.custom_id not in batch.done:
                fresh[line.custom_id] = line
        results = await asyncio.gather(*(self._take(batch, state, x) for x in fresh.values()), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if later:
            await self._take_block(batch, state, later)

    async def _take(self, batch: Batch, state: BatchState, line: ResultLine) -> None:
        """Record one result, then give it to the caller that waits for it. A failure that may pass is only noted."""
        if self._is_recorded(batch, line.custom_id):
            return
        request = self._request_of(batch, line.custom_id)
        used: Usage | None = None
        envelope: Envelope | None = None
        raw: str | None = line.body
        error: str | None
        status: ReplyStatus
        try:
            payload = self._payload(request, line)
            used = self._reported_usage(request, payload, line.body)
            envelope = read_envelope(request, payload, line.body)
            status, error = envelope.status, self._redacted(envelope.error)
            self._succeeded = True
        except DeclinedError as declined:
            status, error, raw = declined.status, str(declined), declined.raw
        except (AttemptError, AutointerpError) as failure:
            batch.failures[line.custom_id] = failure
            if isinstance(failure, BadReplyError):  # it was answered, and is billed
                await self._take_bad(batch, state, line.custom_id, failure, used or self._expected_usage(request))
            return
        stored = storable_reply(request.kind, raw, envelope.payload) if raw is not None and envelope else raw
        used = used or Usage(0, 0, 0, 0.0)
        record = _record_of(
            batch,
            state,
            batch.requests[line.custom_id],
            Outcome(status, stored, error, used, self._batch_cost(request, used)),
        )
        await self._record(record)
        self._settle_one(batch, line.custom_id, record)
        self._give(batch, line.custom_id, (record, line.body if envelope is not None else None))

    def _payload(self, request: Request, line: ResultLine) -> Any:
        """The reply's JSON. Raises the error that its status stands for."""
        path = PATHS[request.kind]
        if line.status is None:
            raise UnavailableError(f"not answered within the batch: {line.body[:300]}", raw=line.body)
        if line.status != 200:
            raise self._transport.status_error(line.status, line.body, None, request.model, path)
        payload = load_json(line.body)
        hidden = error_in_ok_reply(payload)
        if hidden is not None:
            raise self._transport.status_error(hidden, line.body, None, request.model, path)
        return payload

    def _settle_one(self, batch: Batch, one: str, record: CallRecord) -> None:
        reservation = batch.reserved.pop(one, None)
        if reservation is not None:
            self.budget.settle(reservation, record.input_tokens + record.output_tokens, record.cost_usd)
        self.counts.input_tokens += record.input_tokens
        self.counts.output_tokens += record.output_tokens
        self.counts.cost_usd += record.cost_usd

    def _give(self, batch: Batch, one: str, told: tuple[CallRecord, str | None] | None) -> None:
        """Answer the caller that waits for request `one`, from `told` (the record just written and the reply as it
        came) or from the ledger."""
        batch.done.add(one)
        batch.failures.pop(one, None)
        waiting = self._waiting.get(one)
        if waiting is None or waiting.reply.done():
            return
        if told is None:
            reply = self._from_ledger(waiting.request)
            if reply is None:  # this version cannot read the row
                batch.done.discard(one)
                return
        else:
            record, raw = told
            envelope = None if raw is None else read_envelope(waiting.request, load_json(raw), raw)
            reply = reply_from(waiting.request, record, envelope, from_ledger=False)
        waiting.answer(reply)

    def _ends_the_run(self, batch: Batch) -> AutointerpError | None:
        """The batch's first failure that concerns the whole run: the key, the model or the account, or a refused
        parameter if no request has ever succeeded. None where there is no such failure."""
        for failure in batch.failures.values():
            refusal = isinstance(failure, RequestRefusedError)
            if isinstance(failure, AutointerpError) and not (refusal and (self._succeeded or batch.done)):
                return failure
        return None

    async def _again(self, batch: Batch, state: BatchState | None) -> None:
        """Put requests that the batch did not answer into the next one, if a caller waits for them and they have been
        in fewer than llm.attempts batches."""
        self._forget(batch)
        given_up: list[tuple[Waiting, CallRecord]] = []
        for one, found in batch.requests.items():
            waiting = self._waiting.get(one)
            if one in batch.done or waiting is None or waiting.reply.done() or one in self._under_way:
                continue
            waiting.failures += state is not None
            failure = batch.failures.get(one)
            again = (
                waiting.failures < self.llm.attempts
                and len(waiting.bad) < MAX_BAD_REPLIES
                and not isinstance(failure, RequestRefusedError)
            )
            if state is None or again:
                self._enqueue(waiting)
                continue
            why = str(failure) if failure is not None else f"no result in a batch that is {state.status}"
            raw = failure.raw if isinstance(failure, AttemptError) else None
            status = "bad_reply" if isinstance(failure, BadReplyError) else "gave_up"
            unbilled = waiting.failures - len(waiting.bad)
            outcome = Outcome(status, raw, why, Usage(0, 0, 0, 0.0), 0.0, unbilled)
            given_up.append((waiting, _record_of(batch, state, found, outcome)))
        for waiting, record in given_up:
            if not waiting.bad:  # otherwise its last unusable reply is in the ledger
                await self._record(record)
            waiting.answer(reply_from(waiting.request, record, None, from_ledger=False))


def _record_of(batch: Batch, state: BatchState, request: BatchedRequest, outcome: Outcome) -> CallRecord:
    return CallRecord(
        request_sha256=request.request_sha256,
        sample=request.sample,
        run_id=batch.record.run_id,
        dictionary_id=request.dictionary_id,
        feature=request.feature,
        stage=request.stage,
        model=batch.record.model,
        status=outcome.status,
        reply=outcome.reply,
        input_tokens=outcome.used.input_tokens,
        cached_tokens=outcome.used.cached_tokens,
        output_tokens=outcome.used.output_tokens,
        cost_usd=outcome.usd,
        latency_s=state.latency_s,
        attempts=outcome.attempts,
        error=outcome.error,
    )
