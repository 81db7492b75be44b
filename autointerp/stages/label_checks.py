"""What can be known of explaining and scoring before anything is labelled. Nobody is asked, and nothing is paid."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from autointerp.ask.job import Job
from autointerp.config import Config, EndpointConfig
from autointerp.explain import explaining
from autointerp.llm.budget import Budget
from autointerp.llm.client import LlmClient
from autointerp.llm.keys import NO_KEY, api_key
from autointerp.score import scoring
from autointerp.stages.checks import Check
from autointerp.stages.labelling import Unrecorded, describe_endpoint
from autointerp.store.selection import Selection
from autointerp.store.store import Store


def label_checks(
    config: Config, store: Store, prompts: Path | None, control: str | None = None, *, asks: bool = False
) -> list[Check]:
    """The checks of labelling with this configuration, and with the templates in the folder `prompts`. `store` may be
    empty. `asks`: also those that ask the endpoints, which costs something."""
    job = Job(store, -1, -1, "checks", Selection(), config.llm, Budget(config.budget), prompts)
    explain, score = config.explain, config.score

    def explainer_asks() -> bool:
        return explaining.check_settings(job, explain, score)

    def scorers() -> tuple[list[str], bool]:
        return scoring.check_settings(job, explain.explainer, score, control)

    def explainer() -> str:
        return f"{explain.explainer} asks {explain.model if explainer_asks() else 'no LLM'}"

    def scored_by() -> str:
        names, ask = scorers()
        return f"{', '.join(names)}; asks {score.model if ask else 'no LLM'}"

    late = "an unknown one, a broken template or a missing model ends a run after its harvest"
    return [
        Check("explainer", late, explainer),
        *_endpoint_checks("explain", config, explain, explainer_asks, "explainer", asks),
        Check("scorers", late, scored_by, ("explainer",)),
        *_endpoint_checks("score", config, score, lambda: scorers()[1], "scorers", asks),
    ]


def _endpoint_checks(
    stage: str, config: Config, endpoint: EndpointConfig, is_asked: Callable[[], bool], after: str, asks: bool
) -> list[Check]:
    """Of the endpoint of [explain] or [score]; whether it is asked at all is known once `after` was looked at."""
    name = f"{stage} endpoint"
    if not endpoint.model:
        return [Check(name, "labels need one", skipped="no model is set")]
    key = f"{stage} key"
    why = "a missing key or price ends a run after its harvest"
    found = [Check(key, why, lambda: _access(config, endpoint) if is_asked() else "not needed", (after,))]
    if asks:
        pays = f"up to eight short calls of {endpoint.model}, which cost like any others"
        may_be = "one that is down, or does not do what scorers need, ends a run after its harvest"
        found.append(Check(name, may_be, lambda: asyncio.run(describe_endpoint(config, endpoint)), (key,), pays))
    return found


def _access(config: Config, endpoint: EndpointConfig) -> str:
    """Raises InputError where the endpoint needs a key that is not set, or a budget in dollars lacks a price."""

    async def open_and_close() -> None:
        async with LlmClient(endpoint, config.llm, Budget(config.budget), Unrecorded(), "checks"):
            pass

    asyncio.run(open_and_close())
    has_key = api_key(endpoint) != NO_KEY
    return f"{endpoint.api_key_env} is set" if has_key else f"none is set, and {endpoint.base_url} is local"
