"""Tasks that run beside those who wait for what they do. None of them dies unobserved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from autointerp.errors import AutointerpError

T = TypeVar("T")


def in_background(
    work: Coroutine[Any, Any, T], name: str, on_failure: Callable[[AutointerpError], None]
) -> asyncio.Task[T]:
    """A task that runs `work`. If it raises anything, `on_failure` is told, as one of our errors, so that nobody waits
    any longer for what the task was to do. A cancellation is no failure."""

    def ended(task: asyncio.Task[T]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            on_failure(as_ours(error, name))

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    return task


def as_ours(error: BaseException, name: str) -> AutointerpError:
    """`error`, or an error of ours that stands for it where it is a fault of this program."""
    if isinstance(error, AutointerpError):
        return error
    ours = AutointerpError(f"unexpected: {name} ended with {type(error).__name__}: {error}; please report this")
    ours.__cause__ = error
    return ours
