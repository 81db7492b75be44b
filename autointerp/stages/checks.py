"""The checks that `doctor` and the start of a run share.

A check is small, has a name and a reason, and looks by the very function that the run calls later. So whatever that
function refuses, doctor names, and a run refuses before hours are spent: model_checks.py has those of the model, the
text and the SAEs, label_checks.py those of explaining and scoring, doctor_checks.py all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


def _nothing() -> str:
    return "not looked at"


class Lack(str):
    """What a look found missing that a run can do without."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at."""

    name: str
    why: str
    """What becomes of a run where nobody looks."""
    look: Callable[[], str] = _nothing
    """Says what was found. Raises the AutointerpError that the run would end with."""
    after: tuple[str, ...] = ()
    """The names of checks without whose success this one says nothing new."""
    pays: str = ""
    """What looking costs, in words. Such a check is doctor's alone, and its cost is told before."""
    skipped: str = ""
    """Why there is nothing to look at."""


def require(checks: Iterable[Check]) -> None:
    """Look at everything that costs nothing; raise the first error."""
    for check in checks:
        if not check.pays and not check.skipped:
            check.look()
