"""What `autointerp evaluate` is asked for. No torch, so that a command line can say what is wrong without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autointerp.errors import InputError


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What `autointerp evaluate` was asked for."""

    tokens: int = 200_000
    """Tokens of each corpus for the structural metrics."""
    splice_tokens: int = 20_000
    """Of those, tokens on which the whole model runs with the reconstruction spliced in."""
    corpora: tuple[str, ...] = ()
    """Further corpora to measure on: does the dictionary generalise?"""
    probes: tuple[Path, ...] = ()
    """Labelled text (jsonl) for k-sparse probing."""
    is_structural_only: bool = False
    report: Path | None = None


def check_options(options: EvaluateOptions) -> None:
    """Raises InputError where a number makes no sense."""
    if options.tokens < 1 or options.splice_tokens < 1:
        raise InputError("--tokens and --splice-tokens must be positive")
