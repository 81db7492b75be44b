"""Reads an excerpt as a prompt shows it, for test readers who take no notice of where it begins."""

from __future__ import annotations

import json
from typing import Any


def pieces_of(line: str) -> list[Any]:
    """The strings and pairs of one excerpt, or its text alone, without the object that says what it begins."""
    shown = json.loads(line)
    return [shown] if isinstance(shown, str) else [piece for piece in shown if not isinstance(piece, dict)]


def begins(line: str) -> str | None:
    """What the excerpt says that it begins."""
    shown = json.loads(line)
    first = shown[0] if isinstance(shown, list) and shown else None
    return str(first["begins"]) if isinstance(first, dict) else None
