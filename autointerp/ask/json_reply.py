"""JSON objects in an LLM's reply, whatever stands around them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

_LONGEST = 40_000
"""Only the last so many characters of a reply are looked at: no answer that is asked for is nearly as long."""


def last_object(text: str, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """The last JSON object in `text` that fits, or None. Objects inside others are skipped, so that braces in an
    answer's strings are not taken for an answer."""
    text = text[-_LONGEST:]
    decoder = json.JSONDecoder()
    found: dict[str, Any] | None = None
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except RecursionError:
            return None  # nested a thousand deep: no answer, and every brace of it would be tried
        except ValueError:
            end = at + 1
        else:
            if fits(value):
                found = value
        at = text.find("{", end)
    return found
