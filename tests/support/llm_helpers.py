"""Helpers for the tests of the LLM stage: a ledger in memory, and a client with short waits."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from autointerp.config import BudgetConfig, EndpointConfig, LlmConfig
from autointerp.llm.budget import Budget
from autointerp.llm.client import LlmClient, ReachPolicy
from autointerp.llm.limits import PausePolicy
from autointerp.llm.requests import FINAL_STATUSES, Reply, Request
from autointerp.llm.retry import RetryPolicy
from autointerp.records import CallRecord
from support.llm_server import Brain, BrainReply, LlmServer, prompt_text

QUICK = RetryPolicy(first_s=0.01, then_s=0.02, longest_s=0.05)


class MemoryLedger:
    """A CallLedger in memory. `delay` is the duration of a commit in seconds."""

    def __init__(self, delay: float = 0.0) -> None:
        self.rows: dict[tuple[str, int], CallRecord] = {}
        self.delay = delay

    def find(self, request_sha256: str, sample: int) -> CallRecord | None:
        return self.rows.get((request_sha256, sample))

    async def record(self, record: CallRecord) -> None:
        await asyncio.sleep(self.delay)
        old = self.rows.get((record.request_sha256, record.sample))
        if old is None or old.status not in FINAL_STATUSES:
            self.rows[(record.request_sha256, record.sample)] = record


def chat(text: str = "hello", **extra: Any) -> Request:
    fields = {k: extra.pop(k) for k in ("sample", "truncation_ok", "stage") if k in extra}
    body = {"model": "test-model", "messages": [{"role": "user", "content": text}], "max_tokens": 50, **extra}
    return Request("chat", body, fields.pop("stage", "test"), **fields)


def completion(prompt: str, **extra: Any) -> Request:
    return Request("completions", {"model": "test-model", "prompt": prompt, "max_tokens": 50, **extra}, "test")


def embedding(*texts: str) -> Request:
    return Request("embeddings", {"model": "test-model", "input": list(texts), "encoding_format": "float"}, "test")


def client_for(
    server: LlmServer | str, ledger: MemoryLedger | None = None, budget: BudgetConfig | None = None, **llm: Any
) -> LlmClient:
    llm.setdefault("requests_per_minute", 600_000.0)
    llm.setdefault("timeout", 5.0)
    return LlmClient(
        EndpointConfig(
            model="test-model", base_url=server if isinstance(server, str) else server.url, api_key_env="TEST_LLM_KEY"
        ),
        LlmConfig(**llm),
        Budget(budget or BudgetConfig()),
        ledger if ledger is not None else MemoryLedger(),
        "run-1",
        retry=QUICK,
        pauses=PausePolicy(first_s=0.1, longest_s=0.5),
        reach=ReachPolicy(longest_pause_s=0.2),
    )


def ask_all(client: LlmClient, *requests: Request) -> list[Reply]:
    """The replies to requests that are all asked at once."""

    async def run() -> list[Reply]:
        async with client:
            return await asyncio.gather(*(client.ask(r) for r in requests))

    return asyncio.run(run())


def echo() -> Brain:
    """A brain that answers with the length of the question."""
    return lambda kind, body, attempt: BrainReply(f"{len(prompt_text(body))} characters")


class Stopwatch:
    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def s(self) -> float:
        return time.monotonic() - self._start
