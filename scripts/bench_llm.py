"""CPU time of one call: our client beside plain AsyncOpenAI, in one run, against a server in a process of its own.

    python scripts/bench_llm.py [--calls 3000] [--in-flight 100] [--latency-ms 50]

A prompt of 4 kB, a short reply. CPU seconds are this process's alone; wall time depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import openai

from autointerp.config import BudgetConfig, EndpointConfig, LlmConfig
from autointerp.llm.budget import Budget
from autointerp.llm.client import LlmClient
from autointerp.llm.pool import run_pool
from autointerp.llm.requests import Request
from autointerp.records import CallRecord

REPLY = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "bench",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "words about numbers"}}
    ],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 8, "total_tokens": 1008},
}


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency_s: float) -> None:
    data = json.dumps(REPLY).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    try:
        while await reader.readline():
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            await reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
            await asyncio.sleep(latency_s)
            writer.write(answer)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    writer.close()


async def _server(latency_s: float) -> None:
    server = await asyncio.start_server(lambda r, w: _serve(r, w, latency_s), "127.0.0.1", 0, backlog=2048)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)  # until the parent closes our standard input
    os._exit(0)


@contextmanager
def server(latency_ms: float) -> Iterator[str]:
    command = [sys.executable, __file__, "--serve", "--latency-ms", str(latency_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"


class MemoryLedger:
    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], CallRecord] = {}

    def find(self, request_sha256: str, sample: int) -> CallRecord | None:
        return self.rows.get((request_sha256, sample))

    async def record(self, record: CallRecord) -> None:
        self.rows[(record.request_sha256, record.sample)] = record


def body(i: int) -> dict[str, Any]:
    return {
        "model": "bench",
        "messages": [{"role": "user", "content": f"{i} " + "some tokens of text\n" * 200}],
        "max_tokens": 64,
        "temperature": 0.0,
    }


async def ours(url: str, calls: int, in_flight: int) -> int:
    failed = 0
    llm = LlmConfig(requests_per_minute=6e6, max_connections=in_flight)
    endpoint = EndpointConfig(model="bench", base_url=url, api_key_env="AUTOINTERP_BENCH_KEY")
    async with LlmClient(endpoint, llm, Budget(BudgetConfig()), MemoryLedger(), "bench") as client:

        async def one(i: int) -> None:
            nonlocal failed
            failed += not (await client.ask(Request("chat", body(i), "bench"))).ok

        await run_pool(range(calls), one, in_flight)
    return failed


def plain(http_client: Callable[[], object] | None) -> Callable[[str, int, int], Coroutine[Any, Any, int]]:
    async def run(url: str, calls: int, in_flight: int) -> int:
        failed = 0
        extra: dict[str, Any] = {"http_client": http_client()} if http_client is not None else {}
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, **extra) as client:

            async def one(i: int) -> None:
                nonlocal failed
                try:
                    reply = await client.chat.completions.create(**body(i))
                    assert reply.choices[0].message.content
                except openai.APIConnectionError:  # the default transport starves its own event loop at 1,000
                    failed += 1

            await run_pool(range(calls), one, in_flight)
        return failed

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(_server(args.latency_ms / 1000))
        return
    sides: list[tuple[str, Callable[[str, int, int], Coroutine[Any, Any, int]]]] = [
        ("autointerp client", ours),
        ("AsyncOpenAI, aiohttp", plain(openai.DefaultAioHttpClient)),
        ("AsyncOpenAI, default", plain(None)),
    ]
    with server(args.latency_ms) as url:
        for name, side in sides:
            asyncio.run(side(url, 200, args.in_flight))
            cpu, wall = time.process_time(), time.perf_counter()
            failed = asyncio.run(side(url, args.calls, args.in_flight))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            ms, rate = 1e3 * cpu / args.calls, args.calls / wall
            sys.stdout.write(f"{name:22s} {ms:6.3f} ms CPU a call  {rate:6.0f} calls/s wall  {failed} failed\n")


if __name__ == "__main__":
    main()
