"""A time limit that holds for a statement inside this process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import duckdb

from autointerp.errors import StoppedError

GRACE_S = 5.0
"""Seconds after the limit until a statement that heeds no interrupt ends the process."""


@contextmanager
def time_limit(con: duckdb.DuckDBPyConnection, seconds: float, message: str) -> Iterator[None]:
    """Interrupts `con` after `seconds`; the block then raises StoppedError with `message`.

    DuckDB's planner, and some of its functions, heed no interrupt, and Python cannot end a thread. Where the block
    still runs GRACE_S later, the process ends with StoppedError's exit code. What was committed is kept, as after a
    kill.
    """
    done, timed_out = threading.Event(), threading.Event()

    def watch() -> None:
        if done.wait(seconds):
            return
        timed_out.set()
        with suppress(duckdb.Error):  # it may be closed; the process ends all the same where the block goes on
            con.interrupt()
        if not done.wait(GRACE_S):
            with suppress(Exception):  # whatever standard error is, the process ends
                sys.stderr.write(f"error: {message}\n")
                sys.stderr.flush()
            os._exit(StoppedError.exit_code)

    watcher = threading.Thread(target=watch, name="time limit", daemon=True)
    watcher.start()
    try:
        yield
    except Exception as error:
        if timed_out.is_set():
            raise StoppedError(message) from error
        raise
    finally:
        done.set()
        watcher.join()
    if timed_out.is_set():
        raise StoppedError(message)
