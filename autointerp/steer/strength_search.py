"""How far to clamp a feature so that the model's next-token distribution moves by a given KL divergence.

A bracketed search over one positive number, the clamp value, on a scale of logarithms: a small push moves the
distribution by a KL that grows with its square, so the first steps follow that law, and between two values on either
side of the target the next one is interpolated, with a bisection every third time.
"""

from __future__ import annotations

import math

GROWTH, MOST_GROWTH = 1.6, 10.0
"""The least factor of a step without a bracket is 1.25, then `GROWTH` times the last one, up to `MOST_GROWTH`: where
the KL levels off just below the target, the search must still come to an end."""


class StrengthSearch:
    """Ask for `value`, measure its KL, `tell` it; until `is_done`.

    search = StrengthSearch(scale=max_activation, target=0.5)
    while not search.is_done:
        search.tell(kl_of(search.value))
    search.best, search.best_kl, search.is_reached
    """

    def __init__(
        self, scale: float, target: float, *, tolerance: float = 0.1, most_steps: int = 15, span: float = 1000.0
    ) -> None:
        """`scale` is the first value tried; none beyond `span` times it, or below its `span`-th part, is. A KL is
        reached within `tolerance`, a share of `target`."""
        self.value = scale
        self.best, self.best_kl = scale, math.nan
        self.is_reached = self.is_done = False
        self._lowest, self._highest = math.log(scale / span), math.log(scale * span)
        self._target, self._tolerance, self._most_steps = target, tolerance, most_steps
        self._below: tuple[float, float] | None = None
        self._above: tuple[float, float] | None = None
        """(log value, log KL) of the nearest ones known on either side of the target."""
        self._steps = self._outward = self._inward = 0
        self._closest = math.inf

    def tell(self, kl: float) -> None:
        """The KL at `value`, nats per token. One that is not finite (an overflow in the model) counts as too large."""
        here = math.log(self.value)
        log_kl = math.log(min(max(kl, 1e-12), 1e12)) if math.isfinite(kl) else math.log(1e12)
        distance = abs(log_kl - math.log(self._target))
        self.is_reached = math.isfinite(kl) and abs(kl - self._target) <= self._tolerance * self._target
        # Of 0.9 and 1.105 times the target the second is closer by its logarithm, and only the first is good enough.
        if self.is_reached or (math.isfinite(kl) and distance < self._closest):
            self._closest, self.best, self.best_kl = distance, self.value, kl
        self._steps += 1
        if self.is_reached or self._steps == self._most_steps:
            self.is_done = True
            return
        if log_kl < math.log(self._target):
            self._below = here, log_kl
        else:
            self._above = here, log_kl
        following = self._following(here, log_kl)
        self.is_done = following is None
        if following is not None:
            self.value = math.exp(following)

    def _following(self, here: float, log_kl: float) -> float | None:
        if self._below is None or self._above is None:
            outermost = self._highest if self._above is None else self._lowest
            if abs(here - outermost) < 1e-9:
                return None
            least = min(1.25 * GROWTH**self._outward, MOST_GROWTH)
            self._outward += 1
            step = abs(math.log(self._target) - log_kl) / 2
            step = min(max(1.1 * step, math.log(least)), math.log(MOST_GROWTH))
            return min(here + step, outermost) if self._above is None else max(here - step, outermost)
        self._inward += 1
        (low, kl_low), (high, kl_high) = self._below, self._above
        share = 0.5
        if self._inward % 3:
            share = min(max((math.log(self._target) - kl_low) / (kl_high - kl_low), 0.05), 0.95)
        return low + share * (high - low)
