"""What may stand in a row: text that DuckDB takes, JSON in one spelling, numbers that are finite."""

from __future__ import annotations

import json
import math
from typing import Any

from autointerp.errors import AutointerpError


def clean(value: Any) -> Any:
    """A string without lone surrogates (a model's JSON may hold them, DuckDB refuses them); a dict as JSON; anything
    else as it is."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "replace").decode("utf-8")
    return as_json(value) if isinstance(value, dict) else value


def as_json(value: Any) -> str:
    """`value` as JSON with sorted keys, so that equal values are equal texts."""
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=True)


def check_finite(what: str, **numbers: float | None) -> None:
    """Raises AutointerpError where a number that would go into the store is NaN or infinite."""
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            raise AutointerpError(f"{what}: {name} is {number}; a failure is stored as a status, never as a number")
