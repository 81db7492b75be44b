"""The one scale on which an LLM reads activations and predicts them."""

from __future__ import annotations

import math
from collections.abc import Sequence

TOP = 10
"""The explain split's maximum is shown as this."""


def scaled(activations: Sequence[float], max_activation: float) -> list[float]:
    """Activations in units of a tenth of `max_activation` (the feature's maximum on the explain split): 0 is silent,
    10 that maximum. Held-out text may go above 10. All zero where the feature never fires."""
    if max_activation <= 0.0:
        return [0.0] * len(activations)
    return [TOP * a / max_activation if a > 0.0 else 0.0 for a in activations]


def shown(activations: Sequence[float], max_activation: float) -> list[int]:
    """`scaled` as integers 0..10, rounded up, so that a token on which the feature is active never shows as 0."""
    return [min(TOP, math.ceil(a - 1e-6)) if a > 0 else 0 for a in scaled(activations, max_activation)]
