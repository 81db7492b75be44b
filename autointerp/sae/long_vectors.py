"""Leaves out activation vectors that are far longer than the others.

In many language models one token in a thousand, often the first of a text, has a vector a hundred times as long as that
of other tokens and always in the same direction (an attention sink). Such vectors carry most of the variance, so they
would take most of the loss, and what a dictionary learns of all others would be what is left. A dictionary that was not
trained on them says nothing of them: it keeps the limit, and no feature is active on a longer vector.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from autointerp.errors import DamagedError

LIMIT = "longest_vector"
"""The name of the limit in the metadata of a saved dictionary."""


def limit_of(vectors: Tensor, multiple: float) -> float | None:
    """`multiple` times the median length of `vectors` [n, d]; None for 0, which sets no limit."""
    found = float(vectors.norm(dim=1).median()) * multiple
    return found if found > 0 else None


def is_ordinary(vectors: Tensor, limit: float) -> Tensor:
    """bool [...]: which of `vectors` [..., d] are at most `limit` long. One that holds NaN or infinite values counts as
    ordinary, so that whoever looks for those finds it."""
    lengths = vectors.float().norm(dim=-1)
    return ~(lengths.isfinite() & (lengths > limit))


def limit_in(metadata: object) -> dict[str, Any]:
    """The entry of the limit in the metadata of a file, whatever it is; empty where there is none."""
    found = metadata.get(LIMIT) if isinstance(metadata, dict) else None
    return {} if found is None else {LIMIT: found}


def saved_limit(metadata: dict[str, Any]) -> float | None:
    """The limit that the file of a dictionary names, None where it names none. Raises DamagedError if it is no
    length."""
    found = metadata.get(LIMIT)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not (0 < found < math.inf):
        raise DamagedError(f"the SAE's {LIMIT} is {found!r:.100}, which is no length")
    return float(found)
