"""Bounds for Jinja2 templates that come from somebody else: how many steps one may take, and how much text it may make.

Jinja's sandbox does not bound either: nested loops run for years, and a text that is doubled forty times fills any
memory. Loops, filters and calls take steps from a number that `counting` sets for one rendering.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

MOST_CHARACTERS = 10_000_000
"""The longest text that a rendering, or one step of it, may make."""


class _Steps:
    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def take(self, n: int) -> None:
        self._left -= n
        if self._left < 0:
            raise SecurityError(f"more than {self._most:,} steps through loops and filters")


_steps: ContextVar[_Steps | None] = ContextVar("_steps", default=None)
"""What the template that is being rendered may still do."""


@contextmanager
def counting(most: int) -> Iterator[None]:
    """Within this context, a template with counted loops and filters raises SecurityError after `most` steps."""
    token = _steps.set(_Steps(most))
    try:
        yield
    finally:
        _steps.reset(token)


def take(n: int = 1) -> None:
    """Count `n` steps. Outside `counting` nothing is counted. Raises SecurityError past the number."""
    steps = _steps.get()
    if steps is not None:
        steps.take(n)


def check_length(n: int) -> None:
    """Raise SecurityError for a text of `n` characters if that is too long."""
    if n > MOST_CHARACTERS:
        raise SecurityError(f"a text is longer than {MOST_CHARACTERS:,} characters")


def weigh(value: Any) -> None:
    """Take a step for every value that a nested list or mapping holds, before it is made a text. A list that holds
    another one twice, which does so too, is small in memory and endless in print."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            take(len(one))
            waiting += one.values()
        elif isinstance(one, (list, tuple, set, frozenset)):
            take(len(one))
            waiting += one


def joined(pieces: Iterable[Any], between: str = "") -> str:
    """The pieces' texts with `between` between them. Raises SecurityError as soon as the text is too long."""
    found, length = [], -len(between)
    for piece in pieces:
        if not isinstance(piece, str):
            weigh(piece)
        text = str(piece)
        length += len(between) + len(text)
        check_length(length)
        found.append(text)
    return between.join(found)


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose work and whose result are bounded. functools.wraps keeps Jinja's marks on the function."""
    at = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def bounded(*args: Any, **named: Any) -> Any:
        value = args[at] if len(args) > at else None
        is_missing = isinstance(value, jinja2.Undefined)  # it refuses len()
        take(1 + (len(value) // 16 if isinstance(value, Sized) and not is_missing else 0))
        result = function(*args, **named)
        if isinstance(result, str):
            check_length(len(result))
            take(len(result) // 1024)
        return result

    return bounded


def counted_loop(values: Iterable[Any]) -> Iterator[Any]:
    """The values, at one step each."""
    for value in values:
        take()
        yield value
