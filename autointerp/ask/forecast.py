"""Forecasts of calls, tokens, cost and time. Nothing is sent.

Requests are built for a few of the pending features (or labels), evenly spaced, as they would really be sent, and their
characters are counted. Second tries, probes and requests halved for length are not counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autointerp.config import BudgetConfig, LlmConfig, PriceConfig
from autointerp.deadline import Deadline
from autointerp.llm.budget import cost_usd
from autointerp.llm.requests import Request
from autointerp.store.pace import Latency

CHARACTERS_PER_TOKEN = 3.5


def prompt_text(request: Request) -> str:
    """All that the LLM reads of a request, in order."""
    if "prompt" in request.body:
        return str(request.body["prompt"])
    if "messages" in request.body:
        return "".join(message["content"] for message in request.body["messages"])
    return "".join(request.inputs)


@dataclass(frozen=True)
class Estimate:
    """Calls of one kind to one model. Everything but `likely` is an upper bound, in characters."""

    calls: float = 0.0
    read: float = 0.0
    shared: float = 0.0
    """The part of `read` that every prompt begins with: a prefix cache reads it once."""
    written: float = 0.0
    likely: float = 1.0
    """Share of the calls to expect where a stop rule may end the asking early."""

    @classmethod
    def of(cls, requests: Sequence[Request], times: float, written: float, likely: float = 1.0) -> Estimate:
        """The estimate for `times` as many calls as there are `requests`, whose replies have `written` characters
        together."""
        texts = [prompt_text(request) for request in requests]
        calls = times * len(texts)
        common = len(os.path.commonprefix(texts)) if len(texts) > 1 else 0
        return cls(calls, times * sum(map(len, texts)), max(0.0, calls - 1) * common, times * written, likely)


@dataclass(frozen=True)
class Forecast:
    """What a run would ask of the endpoint."""

    features: int
    calls: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    """The cost at the full input price; None if the configuration has no price for the model."""
    free: int = 0
    """Features that get a label by shape or rule, without a call."""
    shared_tokens: int = 0
    """Input tokens in a fixed beginning that an earlier call had too."""
    cached_usd: float | None = None
    """`usd` where a prefix cache serves those; None where the configuration has no cached price."""
    likely_calls: int = 0
    """The expected number of calls: fewer than `calls` if a stop rule may end the asking early."""
    likely_usd: float | None = None
    calls_by_model: tuple[tuple[str, int, int], ...] = ()
    """(model, calls, output tokens) for every model that is asked."""

    @classmethod
    def of(
        cls, prices: Mapping[str, PriceConfig], features: int, parts: Iterable[tuple[str, Estimate]], free: int = 0
    ) -> Forecast:
        """The forecast for (model, estimate) pairs. The cost is known if the price of every model asked is known."""
        asked = [(model, estimate) for model, estimate in parts if estimate.calls > 0]
        read = shared = written = calls = 0
        likely_calls = full_usd = cached_usd = likely_usd = 0.0
        known, has_cached = True, False
        by_model: dict[str, tuple[int, int]] = {}
        for model, e in asked:
            tokens = [int(n / CHARACTERS_PER_TOKEN) for n in (e.read, e.shared, e.written)]
            calls, read, shared, written = (
                a + b for a, b in zip((calls, read, shared, written), (round(e.calls), *tokens), strict=True)
            )
            before = by_model.get(model, (0, 0))
            by_model[model] = (before[0] + round(e.calls), before[1] + tokens[2])
            likely_calls += e.calls * e.likely
            price = prices.get(model)
            if price is None:
                known = False
                continue
            has_cached = has_cached or price.cached_input is not None
            usd = cost_usd(price, tokens[0], 0, tokens[2])
            full_usd, likely_usd = full_usd + usd, likely_usd + usd * e.likely
            cached_usd += cost_usd(price, *tokens)
        return cls(
            features, calls, read, written, full_usd if known else None, free, shared,
            cached_usd if known and has_cached else None, round(likely_calls), likely_usd if known else None,
            tuple((model, *counts) for model, counts in by_model.items()),
        )  # fmt: skip


# --- how long it takes, and whether the budget is enough -------------------------------------------------------------


_DAY_S = 86_400.0
_FIRST_TOKEN_S, _TOKENS_PER_S = 1.0, 40.0
"""How long a call takes where nothing was measured: those of a middling hosted model."""


def _assumed_seconds(output_tokens: float) -> float:
    return _FIRST_TOKEN_S + output_tokens / _TOKENS_PER_S


@dataclass(frozen=True)
class Duration:
    seconds: float
    why: str
    """What limits the speed, in words."""


def duration(forecast: Forecast, llm: LlmConfig, latencies: Mapping[str, Latency | None]) -> Duration:
    """How long the calls take without a batch: the time that the rate limits impose, or that of the calls in flight
    together, whichever is longer. `latencies`: what was measured for each model; a call that writes more than those did
    is expected to take longer in proportion."""
    flight, told = 0.0, []
    for model, calls, written in forecast.calls_by_model:
        wanted, found = _assumed_seconds(written / max(1, calls)), latencies.get(model)
        if found is not None:
            wanted *= found.seconds / _assumed_seconds(found.output_tokens)
        flight += calls * wanted / min(llm.max_connections, max(1, calls))
        source = "assumed, no call of it is on record" if found is None else f"after {found.calls:,} earlier calls"
        told.append(f"{wanted:.2g} s a call of {model} ({source})")
    bounds = [Duration(flight, f"{', '.join(told)}, {llm.max_connections} at once")]
    bounds.append(
        Duration(60 * forecast.calls / llm.requests_per_minute, f"{llm.requests_per_minute:,g} requests a minute")
    )
    if llm.tokens_per_minute:
        tokens = forecast.input_tokens + forecast.output_tokens
        bounds.append(Duration(60 * tokens / llm.tokens_per_minute, f"{llm.tokens_per_minute:,g} tokens a minute"))
    return max(bounds, key=lambda bound: bound.seconds)


def spelled(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def forecast_lines(name: str, forecast: Forecast, llm: LlmConfig, latencies: Mapping[str, Latency | None]) -> list[str]:
    """The forecast in words: calls, tokens, cost and time at most, then what may make it less."""
    cost = "unknown (no price for the model under [llm.prices])" if forecast.usd is None else f"${forecast.usd:.4f}"
    free = f", {forecast.free:,} of them labelled by shape or rule without an LLM" if forecast.free else ""
    found = duration(forecast, llm, latencies) if forecast.calls else Duration(0.0, "")
    time = "up to a day for each batch" if llm.batch else spelled(found.seconds)
    lines = [
        f"{name}: {forecast.features:,} pending{free}, {forecast.calls:,} calls, {forecast.input_tokens:,} input and "
        f"{forecast.output_tokens:,} output tokens, cost {cost}, {time}"
    ]
    if not forecast.calls:
        return lines
    if forecast.likely_calls < forecast.calls:
        usd = "" if forecast.likely_usd is None else f" and ${forecast.likely_usd:.4f}"
        lines.append(f"  likely: {forecast.likely_calls:,} calls{usd}, as the stop rule leaves labels alone early")
    if forecast.shared_tokens:
        share = 100 * forecast.shared_tokens / max(1, forecast.input_tokens)
        usd = "" if forecast.cached_usd is None else f": ${forecast.cached_usd:.4f} where a prefix cache serves it"
        lines.append(
            f"  {forecast.shared_tokens:,} of the input tokens ({share:.0f} %) are a fixed beginning that an earlier "
            f"call had too, {forecast.shared_tokens // forecast.calls:,} a call{usd}"
        )
    if not llm.batch:
        lines.append(f"  the time is bounded by {found.why}")
    return lines


def budget_lines(
    forecasts: Sequence[Forecast], llm: LlmConfig, budget: BudgetConfig, latencies: Mapping[str, Latency | None]
) -> list[str]:
    """Which budgets, the deadline included, will end the work early, and about where; one line each."""
    calls = sum(f.likely_calls for f in forecasts)
    if not calls:
        return []
    usd = sum(f.usd or 0.0 if f.likely_usd is None else f.likely_usd for f in forecasts)
    tokens = sum((f.input_tokens + f.output_tokens) * f.likely_calls / f.calls for f in forecasts if f.calls)
    lines = []
    for name, needed in (("max_usd", usd), ("max_requests", calls), ("max_tokens", tokens)):
        limit = getattr(budget, name)
        if limit is not None and needed > limit:
            done = 100 * limit / needed
            lines.append(
                f"budget.{name} = {limit:,g} is not enough: it will end the work after about {done:.0f} % of it"
            )
    deadline = Deadline.of(budget.deadline)
    if deadline.at is None:
        return lines
    at = deadline.at.isoformat(sep=" ", timespec="minutes")
    seconds = sum(duration(f, llm, latencies).seconds * f.likely_calls / f.calls for f in forecasts if f.calls)
    left = max(0.0, deadline.left_s)
    if llm.batch:
        if left < _DAY_S:
            lines.append(f"budget.deadline {at} may come before the batches are answered; the next run fetches them")
    elif seconds > left:
        lines.append(
            f"budget.deadline {at} will not be met: {spelled(left)} are left of {spelled(seconds)}, enough for about "
            f"{100 * left / seconds:.0f} % of the calls"
        )
    return lines
