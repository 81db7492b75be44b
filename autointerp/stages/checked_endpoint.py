"""One endpoint under check, without a configuration file: its address, its model, and a way to ask it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from autointerp.config import BudgetConfig, EndpointConfig, ExplainConfig, LlmConfig, ScoreConfig
from autointerp.errors import InputError
from autointerp.llm import conformance
from autointerp.llm.budget import Budget
from autointerp.llm.capabilities import Capabilities, probe
from autointerp.llm.client import LlmClient
from autointerp.llm.conformance import CallsKept, Finding
from autointerp.llm.endpoint_paths import served_models

T = TypeVar("T")
DEFAULT_KEY_ENV = EndpointConfig().api_key_env


@dataclass(frozen=True)
class CheckedEndpoint:
    """What is found out stays with it, so that no two checks ask the same."""

    base_url: str
    model: str | None = None
    """None: the only one that the endpoint lists."""
    embedding_model: str | None = None
    """None: the model."""
    api_key_env: str = DEFAULT_KEY_ENV
    batch: bool = False
    """Whether to send a batch too, which a hosted endpoint may answer after hours."""
    llm: LlmConfig = field(default_factory=lambda: LlmConfig(attempts=2, max_connections=4))

    @cached_property
    def served(self) -> dict[str, int | None]:
        """The models that the endpoint lists, and how many tokens each takes, where it says so. Raises InputError where
        it gives no list."""
        return asyncio.run(served_models(self._named(self.model or "any"), self.llm))

    @cached_property
    def chosen_model(self) -> str:
        if self.model is not None:
            return self.model
        if len(self.served) != 1:
            names = ", ".join(list(self.served)[:20]) or "none"
            raise InputError(f"the endpoint lists {len(self.served)} models ({names}); name one with --model")
        return next(iter(self.served))

    @property
    def endpoint(self) -> EndpointConfig:
        return self._named(self.chosen_model)

    @property
    def explain(self) -> ExplainConfig:
        return ExplainConfig(model=self.chosen_model, base_url=self.base_url, api_key_env=self.api_key_env)

    @property
    def score(self) -> ScoreConfig:
        return ScoreConfig(
            model=self.chosen_model, base_url=self.base_url, api_key_env=self.api_key_env,
            embedding_model=self.embedding_model or self.chosen_model,
        )  # fmt: skip

    @cached_property
    def capabilities(self) -> Capabilities:
        return self.asked(lambda client, _: probe(client))

    @cached_property
    def cut_off_replies(self) -> tuple[Finding, Finding]:
        return self.asked(conformance.cut_off_replies)

    @cached_property
    def embeddings(self) -> Finding:
        model = self.score.embedding_model
        return self.asked(lambda client, _: conformance.embeds(client, model))

    def asked(self, ask: Callable[[LlmClient, CallsKept], Awaitable[T]]) -> T:
        """What `ask` finds out with a client of its own, and the ledger of that client."""
        endpoint = self.endpoint  # looked up here, since the look may ask the endpoint itself

        async def run() -> T:
            calls = CallsKept()
            async with LlmClient(endpoint, self.llm, Budget(BudgetConfig()), calls, "doctor") as client:
                return await ask(client, calls)

        return asyncio.run(run())

    def _named(self, model: str) -> EndpointConfig:
        return EndpointConfig(model=model, base_url=self.base_url, api_key_env=self.api_key_env)
