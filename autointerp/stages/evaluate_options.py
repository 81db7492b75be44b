"""The options of `autointerp evaluate`, without torch, so that the command line can check them without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autointerp.errors import InputError


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """The options of `autointerp evaluate`."""

    tokens: int = 200_000
    """Tokens of each corpus for the structural metrics."""
    splice_tokens: int = 20_000
    """How many of those tokens the whole model reads with the reconstruction spliced in."""
    corpora: tuple[str, ...] = ()
    """Further corpora to measure on, to see whether the dictionary generalises."""
    probes: tuple[Path, ...] = ()
    """Labelled text (jsonl) for k-sparse probing."""
    is_structural_only: bool = False
    report: Path | None = None


def check_options(options: EvaluateOptions) -> None:
    """Raise InputError when a number makes no sense."""
    if options.tokens < 1 or options.splice_tokens < 1:
        raise InputError("--tokens and --splice-tokens must be positive")
