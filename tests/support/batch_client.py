"""Asks requests through a batch client on a store, also in processes that tests kill, and returns the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from autointerp.ask.job import StoreBatchBook, StoreLedger
from autointerp.config import BudgetConfig, EndpointConfig, LlmConfig, PriceConfig
from autointerp.llm.batch import BatchClient
from autointerp.llm.budget import Budget
from autointerp.llm.requests import Reply, Request
from autointerp.store import Store
from autointerp.store.group_writer import GroupWriter
from support.llm_helpers import QUICK, chat
from support.llm_server import LlmServer

PRICES = {"test-model": PriceConfig(input=2.0, output=10.0)}


class Asked:
    """The outcome of requests asked through a batch client on a store."""

    def __init__(
        self, server: LlmServer, store: Store, *requests: Request, budget: BudgetConfig | None = None,
        until: Callable[[], bool] | None = None, **llm: Any,
    ) -> None:  # fmt: skip
        settings = {"timeout": 5.0, "batch_poll_seconds": 0.01, "batch_quiet_seconds": 0.05, "attempts": 3, **llm}
        self.said: list[str] = []
        self.budget = Budget(budget or BudgetConfig())
        self.replies: list[Reply | BaseException] = []
        asyncio.run(self._ask(server, store, requests, LlmConfig(prices=PRICES, **settings), until))

    async def _ask(
        self, server: LlmServer, store: Store, requests: tuple[Request, ...], llm: LlmConfig,
        until: Callable[[], bool] | None,
    ) -> None:  # fmt: skip
        endpoint = EndpointConfig(model="test-model", base_url=server.url, api_key_env="TEST_LLM_KEY")
        async with GroupWriter(store, max_wait_s=0.01) as writer:
            client = BatchClient(
                endpoint, llm, self.budget, StoreLedger(store, writer), "run-1", book=StoreBatchBook(store),
                say=self.said.append, retry=QUICK,
            )  # fmt: skip
            async with client:
                tasks = [asyncio.create_task(client.ask(request)) for request in requests]
                if until is None:
                    self.replies = list(await asyncio.gather(*tasks, return_exceptions=True))
                    return
                while not until():
                    await asyncio.sleep(0.01)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def texts(self) -> list[str]:
        return [reply.text for reply in self.ok]

    @property
    def ok(self) -> list[Reply]:
        for reply in self.replies:
            if isinstance(reply, BaseException):
                raise reply
        return [reply for reply in self.replies if isinstance(reply, Reply)]


def texts(n: int) -> list[Request]:
    return [chat(f"q{i}") for i in range(n)]
