"""What files and the names of their folders tell about a dictionary besides its numbers."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from autointerp.errors import InputError


def declared(l0: object = None, fvu: object = None) -> dict[str, Any]:
    """{"declared": {"l0": ..., "fvu": ...}} with the figures that are told; {} where none is. A dictionary's loading is
    checked against them."""
    figures = {name: number(value) for name, value in (("l0", l0), ("fvu", fvu))}
    known = {name: value for name, value in figures.items() if value is not None}
    return {"declared": known} if known else {}


def number(value: object) -> float | None:
    """A positive finite number as a float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value < math.inf else None


def positive_number(value: object, name: str, path: Path) -> float:
    """The same for a number without which the dictionary cannot be read. Raises InputError that names it."""
    found = number(value)
    if found is None:
        raise InputError(f"{path}: {name} must be a positive number, not {value!r:.100}")
    return found


def known(**facts: object) -> dict[str, Any]:
    """The facts that are told."""
    return {name: value for name, value in facts.items() if value is not None}


def in_path(pattern: str, path: Path) -> re.Match[str] | None:
    """The last match of `pattern` in the names of the file and the folders in which it lies. The hub's cache calls a
    repository's folder models--owner--name."""
    for name in reversed(path.absolute().parts):
        found = re.search(pattern, name)
        if found:
            return found
    return None
