"""The budget of a run. Each call reserves its share before it is sent and settles it afterwards, so that calls in
flight cannot overrun the budget together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from autointerp.config import BudgetConfig, PriceConfig
from autointerp.deadline import Deadline
from autointerp.errors import InputError, StoppedError


def cost_usd(price: PriceConfig | None, input_tokens: int, cached_tokens: int, output_tokens: int) -> float:
    """The cost in US dollars; 0 where no price is configured. cached_tokens are part of input_tokens."""
    if price is None:
        return 0.0
    cached_price = price.input if price.cached_input is None else price.cached_input
    cached = min(cached_tokens, input_tokens)
    return ((input_tokens - cached) * price.input + cached * cached_price + output_tokens * price.output) / 1e6


def price_of(model: str, prices: Mapping[str, PriceConfig], budget: BudgetConfig) -> PriceConfig | None:
    """The configured price of the model, None where there is none. Raises InputError where a budget in dollars needs
    one."""
    price = prices.get(model)
    if price is None and model and budget.max_usd is not None:
        raise InputError(
            f"budget.max_usd is set but the price of model {model!r} is not known; "
            f'add [llm.prices."{model}"] with input and output, US dollars per million tokens'
        )
    return price


@dataclass(frozen=True, slots=True)
class Reservation:
    tokens: int
    usd: float


class Budget:
    """What a run may spend and has spent in requests (every attempt counts), tokens and US dollars, and its deadline.

    All stages of a command share one budget, though each may have its own event loop.
    """

    def __init__(self, config: BudgetConfig) -> None:
        self.config = config
        self.requests = 0
        self.tokens = 0
        self.usd = 0.0
        self._held_requests = 0
        self._held_tokens = 0
        self._held_usd = 0.0
        self.deadline = Deadline.of(config.deadline)
        self._waiting: list[asyncio.Future[None]] = []

    async def reserve(self, tokens: int, usd: float) -> Reservation:
        """Reserve one request of at most about `tokens` and `usd`.

        If the room left is only reserved by calls in flight, this waits for them, since most cost less than was
        reserved. Raises StoppedError when the budget is used up or the deadline has passed.
        """
        self.deadline.check()
        while (reservation := self.reserve_now(tokens, usd)) is None:
            if self._held_requests == 0:
                raise self.used_up(tokens, usd)
            change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(change)
            await change
            self.deadline.check()
        return reservation

    def reserve_now(self, tokens: int, usd: float) -> Reservation | None:
        """Reserve without waiting; None where there is no room now."""
        if self._exceeded(tokens, usd) is not None:
            return None
        self._held_requests += 1
        self._held_tokens += tokens
        self._held_usd += usd
        return Reservation(tokens, usd)

    def used_up(self, tokens: int, usd: float) -> StoppedError:
        """The error for a call of at most `tokens` and `usd` that finds no room."""
        return StoppedError(self._message(self._exceeded(tokens, usd) or "max_requests", tokens, usd))

    def release(self, reservation: Reservation) -> None:
        """Give back what was reserved for a request that was never sent."""
        self._held_requests -= 1
        self._held_tokens -= reservation.tokens
        self._held_usd -= reservation.usd
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            if not change.done():  # done if its worker was cancelled
                change.set_result(None)

    def settle(self, reservation: Reservation, tokens: int, usd: float) -> None:
        """Replace the reservation by what the attempt really took."""
        self.release(reservation)
        self.requests += 1
        self.tokens += tokens
        self.usd += usd

    def rest(self) -> BudgetConfig:
        """The limits of what may still be spent. An attempt that cost more than was reserved leaves nothing."""
        config = self.config
        return replace(
            config,
            max_usd=None if config.max_usd is None else max(0.0, config.max_usd - self.usd),
            max_requests=None if config.max_requests is None else max(0, config.max_requests - self.requests),
            max_tokens=None if config.max_tokens is None else max(0, config.max_tokens - self.tokens),
        )

    def _exceeded(self, tokens: int, usd: float) -> str | None:
        config = self.config
        if config.max_requests is not None and self.requests + self._held_requests + 1 > config.max_requests:
            return "max_requests"
        if config.max_tokens is not None and self.tokens + self._held_tokens + tokens > config.max_tokens:
            return "max_tokens"
        if config.max_usd is not None and self.usd + self._held_usd + usd > config.max_usd:
            return "max_usd"
        return None

    def _message(self, name: str, tokens: int, usd: float) -> str:
        return (
            f"budget.{name} = {getattr(self.config, name)} is used up: {self.requests:,} requests, "
            f"{self.tokens:,} tokens, ${self.usd:.4f} spent, and the next call needs up to {tokens:,} tokens, "
            f"${usd:.4f}; what is done is kept: raise budget.{name} and run again"
        )
