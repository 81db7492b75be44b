"""Pieces of the lines that evidence methods put on a feature's page."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.log import visible
from autointerp.store.finding_tables import Row

LISTED = 8
"""Tokens or words on one line."""


def token_text(token: str) -> str:
    """A token as it is written in Python, without the quotes: its spaces stay, a line break is \\n."""
    return visible(repr(token)[1:-1])


def words_line(title: str, rows: Sequence[Row], number: str) -> list[str]:
    """One line with the first words and the column `number` of each; none without rows."""
    shown = ", ".join(f"{visible(row['word'])} {row[number]:.2g}" for row in rows[:LISTED])
    return [f"{title}  {shown}"] if rows else []


def shortened(label: str, limit: int) -> str:
    told = visible(label)
    return told if len(told) <= limit else f"{told[: limit - 1].rstrip()}…"
