"""Measures what the LLM client costs, loses and keeps in memory, with a loopback server in a process of its own.

    python scripts/bench_llm.py                              CPU per call, beside other clients, in the same run
    python scripts/bench_llm.py --logprobs 64                with 64 tokens of 20 top logprobs in each reply
    python scripts/bench_llm.py --soak 200000                ours alone: calls lost, memory over the run
    python scripts/bench_llm.py --soak 200000 --store FILE   with a real store as the ledger
    python scripts/bench_llm.py --throttle 1200 150          how evenly the limit is kept, and what waiting costs

Every call has a prompt of 4 kB and a short reply. CPU seconds are those of this process with all its threads; wall time
depends on what else the machine does. Memory is read from /proc (Linux).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai

from autointerp.ask.job import StoreLedger
from autointerp.config import BudgetConfig, EndpointConfig, LlmConfig
from autointerp.errors import StoppedError
from autointerp.llm.budget import Budget
from autointerp.llm.client import LlmClient
from autointerp.llm.ledger import CallLedger
from autointerp.llm.pool import run_pool
from autointerp.llm.requests import Request
from autointerp.records import CallRecord
from autointerp.store.group_writer import GroupWriter
from autointerp.store.store import Store

UNLIMITED = 6e6
"""Requests per minute."""
TOP = 20
"""Alternatives per token where logprobs are asked for."""


# --- the server ------------------------------------------------------------------------------------------------------


def reply_body(logprob_tokens: int) -> bytes:
    """A chat reply as OpenAI sends it, with logprobs of this many tokens (0: none)."""

    def entry(i: int) -> dict[str, Any]:
        token = f" word{i}"
        return {"token": token, "logprob": -0.01 - 0.37 * i, "bytes": list(token.encode())}

    row = {**entry(0), "top_logprobs": [entry(i) for i in range(TOP)]}
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "words about numbers", "refusal": None},
        "logprobs": {"content": [row] * logprob_tokens} if logprob_tokens else None,
    }
    usage = {"prompt_tokens": 1000, "completion_tokens": 8, "total_tokens": 1008}
    envelope = {"id": "x", "object": "chat.completion", "created": 0, "model": "bench"}
    return json.dumps({**envelope, "choices": [choice], "usage": usage}).encode()


class _Connection(asyncio.Protocol):
    """Reads requests only far enough to find their ends, since the server must not be what is measured."""

    def __init__(self, answer: bytes, latency_s: float, arrivals: array[float]) -> None:
        self._answer = answer
        self._latency_s = latency_s
        self._arrivals = arrivals
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (head := self._data.find(b"\r\n\r\n")) >= 0:
            length = self._data[:head].lower().partition(b"content-length:")[2].split(None, 1)[0]
            end = head + 4 + int(length)
            if len(self._data) < end:
                return
            del self._data[:end]
            self._arrivals.append(time.monotonic())
            asyncio.get_running_loop().call_later(self._latency_s, self._reply)

    def _reply(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._answer)


async def _serve(latency_s: float, logprob_tokens: int) -> None:
    body = reply_body(logprob_tokens)
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    arrivals = array("d")
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: _Connection(answer, latency_s, arrivals), "127.0.0.1", 0, backlog=2048)
    _say(f"{listening.sockets[0].getsockname()[1]}")
    await asyncio.to_thread(sys.stdin.read)  # until the parent closes our standard input
    report = {
        "calls": len(arrivals),
        "most_in_60_s": most_within(arrivals, 60.0),
        "most_in_1_s": most_within(arrivals, 1.0),
        "cpu_s": time.process_time(),
    }
    _say(json.dumps(report))
    os._exit(0)


def most_within(times: Sequence[float], span_s: float) -> int:
    """The most `times` (ascending) in any window of `span_s` seconds."""
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= span_s:
            first += 1
        most = max(most, last - first + 1)
    return most


@dataclass
class Server:
    url: str
    report: dict[str, Any] = field(default_factory=dict)
    """Filled when the server has ended."""


@contextmanager
def server(latency_ms: float, logprob_tokens: int = 0) -> Iterator[Server]:
    command = [sys.executable, __file__, "--serve", "--latency-ms", str(latency_ms), "--logprobs", str(logprob_tokens)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        found = Server(f"http://127.0.0.1:{int(process.stdout.readline())}/v1")
        yield found
        process.stdin.close()
        found.report.update(json.loads(process.stdout.readline()))


# --- the clients -----------------------------------------------------------------------------------------------------


class CountingLedger:
    """A ledger that keeps no rows, so that any memory that grows is the client's."""

    def __init__(self) -> None:
        self.rows = 0

    def find(self, request_sha256: str, sample: int) -> CallRecord | None:
        return None

    async def record(self, record: CallRecord) -> None:
        self.rows += 1


_numbers = itertools.count()
"""Makes every prompt of a run different, since a ledger would answer a repeated one."""


def body(logprob_tokens: int) -> dict[str, Any]:
    asked = {"logprobs": True, "top_logprobs": TOP} if logprob_tokens else {}
    return {
        "model": "bench",
        "messages": [{"role": "user", "content": f"{next(_numbers)} " + "some tokens of text\n" * 200}],
        "max_tokens": 64,
        "temperature": 0.0,
        **asked,
    }


@dataclass(frozen=True)
class Load:
    url: str
    in_flight: int
    logprob_tokens: int = 0
    requests_per_minute: float = UNLIMITED


@asynccontextmanager
async def our_client(load: Load, ledger: CallLedger) -> Any:
    llm = LlmConfig(requests_per_minute=load.requests_per_minute, max_connections=load.in_flight)
    endpoint = EndpointConfig(model="bench", base_url=load.url, api_key_env="AUTOINTERP_BENCH_KEY")
    async with LlmClient(endpoint, llm, Budget(BudgetConfig()), ledger, "bench") as client:
        yield client


@asynccontextmanager
async def ours(load: Load) -> Any:
    async with our_client(load, CountingLedger()) as client:
        yield _asking(client, load)


def ours_in(store: Store) -> Callable[[Load], Any]:
    """Our client with the store's ledger: a call ends once its record is committed."""

    @asynccontextmanager
    async def side(load: Load) -> Any:
        async with GroupWriter(store) as writer, our_client(load, StoreLedger(store, writer)) as client:
            yield _asking(client, load)

    return side


def _asking(client: LlmClient, load: Load) -> Callable[[int], Awaitable[None]]:
    async def one(_: int) -> None:
        reply = await client.ask(Request("chat", body(load.logprob_tokens), "bench"))
        assert reply.ok and bool(reply.token_logprobs) == bool(load.logprob_tokens), reply.error

    return one


def sdk(http_client: Callable[[], Any] | None) -> Callable[[Load], Any]:
    @asynccontextmanager
    async def side(load: Load) -> Any:
        extra: dict[str, Any] = {"http_client": http_client()} if http_client is not None else {}
        async with openai.AsyncOpenAI(base_url=load.url, api_key="none", max_retries=0, **extra) as client:

            async def one(_: int) -> None:
                reply = await client.chat.completions.create(**body(load.logprob_tokens))
                assert reply.choices[0].message.content

            yield one

    return side


@asynccontextmanager
async def raw_aiohttp(load: Load) -> Any:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=load.in_flight)) as session:

        async def one(_: int) -> None:
            async with session.post(f"{load.url}/chat/completions", json=body(load.logprob_tokens)) as response:
                assert json.loads(await response.read())["choices"][0]["message"]["content"]

        yield one


@dataclass
class Cost:
    cpu_ms: list[float] = field(default_factory=list)
    """CPU milliseconds per call, one number for each round."""
    calls_per_s: list[float] = field(default_factory=list)
    failed: int = 0


async def measure(side: Callable[[Load], Any], load: Load, calls: int, cost: Cost) -> None:
    """Measure `calls` calls, with connecting and ramp-up. Failed connections are counted, since the default transport
    starves its own event loop at 1,000 calls in flight."""
    cpu, wall = time.process_time(), time.perf_counter()
    async with side(load) as one:

        async def worker(i: int) -> None:
            try:
                await one(i)
            except openai.APIConnectionError:
                cost.failed += 1

        await run_pool(range(calls), worker, load.in_flight)
    cost.cpu_ms.append(1e3 * (time.process_time() - cpu) / calls)
    cost.calls_per_s.append(calls / (time.perf_counter() - wall))


def compare(args: argparse.Namespace, store: Store | None) -> None:
    stored: dict[str, Callable[[Load], Any]] = {"autointerp, store as ledger": ours_in(store)} if store else {}
    sides: dict[str, Callable[[Load], Any]] = {
        "autointerp": ours,
        **stored,
        "raw aiohttp": raw_aiohttp,
        "AsyncOpenAI, aiohttp": sdk(openai.DefaultAioHttpClient),
        "AsyncOpenAI, default": sdk(None),
    }
    costs = {name: Cost() for name in sides}
    with server(args.latency_ms, args.logprobs) as found:
        load = Load(found.url, args.in_flight, args.logprobs)
        for side in sides.values():
            asyncio.run(measure(side, load, 200, Cost()))  # imports and caches
        for _ in range(args.rounds):
            for name, side in sides.items():
                calls = args.peers_calls if name.startswith("Async") else args.calls
                asyncio.run(measure(side, load, calls, costs[name]))
    replies = f"{args.logprobs} tokens x {TOP} logprobs" if args.logprobs else "short"
    _say(
        f"{args.in_flight} in flight, replies: {replies} ({len(reply_body(args.logprobs)) / 1e3:.1f} kB); "
        f"medians of {args.rounds} rounds"
    )
    for name, cost in costs.items():
        low, high = min(cost.cpu_ms), max(cost.cpu_ms)
        _say(
            f"{name:28s} {statistics.median(cost.cpu_ms):6.3f} ms CPU a call ({low:.3f} to {high:.3f})  "
            f"{statistics.median(cost.calls_per_s):6.0f} calls/s wall  {cost.failed} failed"
        )


# --- soak ------------------------------------------------------------------------------------------------------------


def memory_mb(name: str) -> float:
    """VmRSS (now) or VmHWM (the most so far) of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1e3
    raise SystemExit("no /proc/self/status on this system: memory cannot be read")


async def _soak(load: Load, calls: int, ledger: CallLedger) -> int:
    done = 0
    step = max(1, calls // 10)
    started, cpu, before = time.perf_counter(), time.process_time(), 0
    async with our_client(load, ledger) as client:
        one = _asking(client, load)

        async def worker(i: int) -> None:
            nonlocal done, cpu, before
            await one(i)
            done += 1
            if done % step == 0:
                now = time.process_time()
                cpu, spent = now, now - cpu
                before, n = done, done - before
                _say(
                    f"{100 * done // calls:4d} %  {done:8d} replies  {memory_mb('VmRSS'):7.1f} MB  "
                    f"{1e3 * spent / n:6.3f} ms CPU a call  {time.perf_counter() - started:6.0f} s"
                )

        await run_pool(range(calls), worker, load.in_flight)
    return done


def soak(args: argparse.Namespace, store: Store | None) -> None:
    async def in_store(load: Load) -> int:
        assert store is not None
        async with GroupWriter(store) as writer:
            return await _soak(load, args.soak, StoreLedger(store, writer))

    counting = CountingLedger()
    cpu, start = time.process_time(), memory_mb("VmRSS")
    _say(f"start {start:24.1f} MB")
    with server(args.latency_ms, args.logprobs) as found:
        load = Load(found.url, args.in_flight, args.logprobs)
        replies = asyncio.run(in_store(load) if store is not None else _soak(load, args.soak, counting))
    cpu = time.process_time() - cpu
    rows = (
        store.rows("SELECT count(*) FROM llm_calls WHERE status = 'ok'")[0][0] if store is not None else counting.rows
    )
    _say(
        f"asked {args.soak}, arrived at the server {found.report['calls']}, replies {replies}, "
        f"rows in the ledger {rows}; {1e3 * cpu / args.soak:.3f} ms CPU a call; peak {memory_mb('VmHWM'):.1f} MB"
    )


# --- throttle --------------------------------------------------------------------------------------------------------


async def _throttled(load: Load, seconds: float) -> tuple[int, float, float]:
    """(calls, CPU seconds, wall seconds) of workers that always have more to ask than the limit allows."""
    ledger = CountingLedger()
    async with our_client(load, ledger) as client:
        one = _asking(client, load)
        cpu, wall = time.process_time(), time.perf_counter()

        async def clock() -> tuple[float, float]:
            await asyncio.sleep(seconds)
            spent = time.process_time() - cpu, time.perf_counter() - wall
            client.stop(StoppedError("the time is up"))
            return spent

        timing = asyncio.create_task(clock())
        with suppress(StoppedError):
            await run_pool(itertools.count(), one, load.in_flight)
        spent, took = await timing
    return ledger.rows, spent, took


def throttle(args: argparse.Namespace) -> None:
    limit, seconds = args.throttle
    cost = Cost()
    with server(args.latency_ms) as found:
        asyncio.run(measure(ours, Load(found.url, args.in_flight), 200, Cost()))
        asyncio.run(measure(ours, Load(found.url, args.in_flight), args.calls, cost))
    with server(args.latency_ms) as found:
        load = Load(found.url, args.in_flight, requests_per_minute=limit)
        calls, cpu, wall = asyncio.run(_throttled(load, seconds))
    minute, second = found.report["most_in_60_s"], found.report["most_in_1_s"]
    of_calls = calls * cost.cpu_ms[0] / 1e3
    _say(f"limit {limit:.0f} a minute, {args.in_flight} workers, {wall:.0f} s: {calls} calls")
    _say(f"most in any 60 s: {minute} ({100 * minute / limit:.1f} % of the limit)")
    _say(f"most in any 1 s: {second} ({second / (limit / 60):.2f} times the mean)")
    _say(
        f"CPU {cpu:.2f} s = {100 * cpu / wall:.2f} % of the time; {of_calls:.2f} s of it are {calls} calls at "
        f"{cost.cpu_ms[0]:.3f} ms (not throttled); waiting: {100 * max(0.0, cpu - of_calls) / wall:.2f} %"
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=4000, help="of each round")
    parser.add_argument("--peers-calls", type=int, default=2000, help="of each round, for both AsyncOpenAI sides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-flight", type=int, default=1000)
    parser.add_argument("--latency-ms", type=float, default=50.0, help="what the server takes for a reply")
    parser.add_argument("--logprobs", type=int, default=0, metavar="N", help=f"replies with N tokens x {TOP} logprobs")
    parser.add_argument("--soak", type=int, metavar="N", help="N calls of ours alone, with memory at every tenth")
    parser.add_argument("--store", type=Path, metavar="FILE", help="a new store, as the ledger")
    parser.add_argument("--throttle", type=float, nargs=2, metavar=("RPM", "SECONDS"))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(_serve(args.latency_ms / 1000, args.logprobs))
        return
    if args.store is not None and args.store.exists():
        parser.error(f"{args.store} exists already")
    store = Store.open(args.store, create=True) if args.store is not None else None
    if args.throttle is not None:
        throttle(args)
    elif args.soak is not None:
        soak(args, store)
    else:
        compare(args, store)
    if store is not None:
        store.close()


if __name__ == "__main__":
    main()
