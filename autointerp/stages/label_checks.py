"""What can be known of explaining and scoring before anything is labelled. Nobody is asked, and nothing is paid."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from autointerp.ask.job import Job
from autointerp.config import Config, EndpointConfig
from autointerp.explain import explaining
from autointerp.llm.budget import Budget, price_of
from autointerp.llm.client import LlmClient
from autointerp.llm.keys import NO_KEY, api_key
from autointerp.score import scoring
from autointerp.stages.checks import Check
from autointerp.stages.labelling import Unrecorded, describe_endpoint, short_of_contexts
from autointerp.store.selection import Selection
from autointerp.store.store import Store


def label_checks(config: Config, store: Store, prompts: Path | None, *, asks: bool = False) -> list[Check]:
    """The checks of labelling with this configuration, and with the templates in the folder `prompts`. `store` may be
    empty. `asks`: also those that ask the endpoints, which costs something."""
    job = _job(config, store, prompts)
    explain, score = config.explain, config.score

    def explains() -> tuple[list[str], list[EndpointConfig]]:
        return [explain.explainer], [explain] if explaining.check_settings(job, explain, score) else []

    def scores() -> tuple[list[str], list[EndpointConfig]]:
        return scoring.check_settings(job, explain.explainer, score)

    def told_scores() -> str:
        return "; ".join(filter(None, [_told(*scores()), short_of_contexts(config)]))

    late = "an unknown one, a broken template or a missing model ends a run after its harvest"
    return [
        Check("explainer", late, lambda: _told(*explains())),
        *_endpoint_checks("explain", config, explain, lambda: explains()[1], "explainer", asks),
        Check("scorers", late, told_scores, ("explainer",)),
        *_endpoint_checks("score", config, score, lambda: scores()[1], "scorers", asks),
    ]


def require_prices(config: Config, store: Store, prompts: Path | None, *, explains: bool = True) -> None:
    """Raises InputError where a budget in dollars lacks the price of a model that scoring asks or, with `explains`,
    explaining: a command looks for all of them before it asks any. `store` may be empty."""
    if config.budget.max_usd is None:
        return
    job, explain, score = _job(config, store, prompts), config.explain, config.score
    asked = [explain.model] if explains and explaining.check_settings(job, explain, score) else []
    asked += [endpoint.model for endpoint in scoring.check_settings(job, explain.explainer, score)[1]]
    for model in asked:
        price_of(model, config.llm.prices, config.budget)


def _job(config: Config, store: Store, prompts: Path | None) -> Job:
    return Job(store, -1, -1, "checks", Selection(), config.llm, Budget(config.budget), prompts)


def _told(names: Sequence[str], asked: Sequence[EndpointConfig]) -> str:
    models = ", ".join(dict.fromkeys(endpoint.model for endpoint in asked))
    return f"{', '.join(names)}; asks {models or 'no LLM'}"


def _endpoint_checks(
    stage: str, config: Config, endpoint: EndpointConfig, asked: Callable[[], Sequence[EndpointConfig]], after: str,
    asks: bool,
) -> list[Check]:  # fmt: skip
    """Of the endpoint of [explain] or [score]. Which models of it are `asked`, if any, is known once `after` was looked
    at."""
    name = f"{stage} endpoint"
    if not endpoint.model:
        return [Check(name, "labels need one", skipped="no model is set")]
    key = f"{stage} key"
    why = "a missing key or price ends a run after its harvest"
    found = [Check(key, why, lambda: _access(config, asked()), (after,))]
    if asks:
        pays = f"up to eight short calls of {endpoint.model}, which cost like any others (--no-calls leaves this out)"
        may_be = "one that is down, or does not do what scorers need, ends a run after its harvest"
        found.append(Check(name, may_be, lambda: asyncio.run(describe_endpoint(config, endpoint)), (key,), pays))
    return found


def _access(config: Config, endpoints: Sequence[EndpointConfig]) -> str:
    """Raises InputError where an endpoint needs a key that is not set, or a budget in dollars lacks a price."""

    async def open_and_close(endpoint: EndpointConfig) -> None:
        async with LlmClient(endpoint, config.llm, Budget(config.budget), Unrecorded(), "checks"):
            pass

    found = []
    for endpoint in endpoints:
        asyncio.run(open_and_close(endpoint))
        has_key = api_key(endpoint) != NO_KEY
        found.append(f"{endpoint.api_key_env} is set" if has_key else "none is set, and a local endpoint needs none")
    return "; ".join(dict.fromkeys(found)) or "not needed"
