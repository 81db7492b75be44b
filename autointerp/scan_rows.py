"""What a scan finds of a label: plain records for the terminal, JSON and files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class ScanExample:
    """A place where a rule holds."""

    document: str
    position: int
    """The place of the token on which the rule predicts most, in the document's tokens."""
    strength: float
    """What it predicts there, 0..10."""
    text: str
    """The tile."""
    marked: str
    """The tile with `<<` and `>>` around the tokens on which the rule predicts at least what a claim takes."""


@dataclass(frozen=True, slots=True)
class ScanRow:
    """What a scan found of one feature's label."""

    dictionary: str
    feature: int
    label: str
    second_label: str | None
    explainer: str
    explanation_id: str
    at_least: float
    """From which prediction on, 0..10, a tile counts as claimed."""
    n_tiles: int
    """Tiles that were scanned."""
    n_claimed: int
    """Tiles in which the rule predicts that much somewhere."""
    share: float
    """n_claimed of n_tiles."""
    n_documents: int
    """Documents with a claimed tile."""
    n_tokens: int
    """Tokens on which the rule predicts that much."""
    density: float
    """The share of tiles of the harvested text in which the feature fires."""
    natural: float | None
    """How well the rule predicts ordinary text of the harvest (simulation_natural)."""
    precision: float | None
    """The share of claimed tiles of that text in which the feature fires, at a claim of 1 and more."""
    precision_low: float | None
    precision_high: float | None
    recall: float | None
    """The share of the tiles of that text in which it fires that are claimed."""
    recall_low: float | None
    recall_high: float | None
    examples: tuple[ScanExample, ...]
    """The strongest places, each from another document."""
