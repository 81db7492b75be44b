"""Names of folders for dictionaries, whose own names may hold any characters."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence


def folder_names(names: Sequence[str]) -> list[str]:
    """For each of these different names a folder name of its own, which is never a path. A name that has only letters,
    digits and _ . - stays as it is."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip(".")[:100] or "dictionary"
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        found.append(plain if plain == name and plain.lower() not in map(str.lower, found) else f"{plain}-{digest}")
    return found
