"""The errors that this project raises on purpose, and the exit code with which each ends a command.

    AutointerpError                   1  failed
      InputError                      2  usage, configuration, bad or empty input
        NoProjection                  2  what a hookpoint holds cannot be said in tokens; harvests go on without it
      CredentialsError                3  the endpoint refused the key or the model name
      StoppedError                    4  a budget, quota or deadline was reached; what is done is kept, run again
      DiskFullError                   5
      PartialFailure                  6  finished, but some rows failed
      DamagedError                    7  a store or an SAE file is damaged
      MismatchError                   8  store, model, tokenizer and SAE do not belong together
      OutOfMemoryError                9  out of memory after the batch was halved as often as allowed
      StoreBusyError                 75  another process holds the store; try again
      CutShortError                 130  Ctrl-C ended work that another run begins anew; what was found is told

A message says what is wrong, with which value, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class AutointerpError(Exception):
    exit_code = 1


class InputError(AutointerpError):
    exit_code = 2


class NoProjection(InputError):
    """The model does not lead the vectors of a hookpoint to its logits in a way that can be followed."""


class CredentialsError(AutointerpError):
    exit_code = 3


class StoppedError(AutointerpError):
    exit_code = 4


class DiskFullError(AutointerpError):
    exit_code = 5


class PartialFailure(AutointerpError):
    exit_code = 6


class DamagedError(AutointerpError):
    exit_code = 7


class MismatchError(AutointerpError):
    exit_code = 8


class OutOfMemoryError(AutointerpError):
    exit_code = 9


class StoreBusyError(AutointerpError):
    exit_code = 75


class CutShortError(AutointerpError):
    exit_code = 130


def nearest(name: str, known: Iterable[str], n: int = 5) -> str:
    """' Did you mean a, b?' with the known names closest to `name`, or '' if no name is close."""
    close = difflib.get_close_matches(name, list(known), n=n, cutoff=0.4)
    return f" Did you mean {', '.join(close)}?" if close else ""


def shown(value: Any) -> str:
    """`value` for a message: shortened, and not written out where Python refuses to (5,000 digits, deep nests)."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "a value too large to show"
    return text if len(text) <= 200 else f"{text[:200]}..."
