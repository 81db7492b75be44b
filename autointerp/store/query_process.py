"""A query in a process of its own, which the system ends: DuckDB heeds neither an interrupt nor its memory limit
everywhere (the planner, a result's rows in Python)."""

from __future__ import annotations

import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from autointerp.errors import AutointerpError, InputError, StoppedError

Say = Callable[[str], None]
Rows = tuple[list[str], list[tuple[Any, ...]]]
Answer = Callable[["Alarm", Say], Rows]
"""What the process does: it is given its alarm and a way to say something, and makes the result."""

GRACE_S = 2.0
"""Seconds after the time limit until the process is ended, for what DuckDB's own interrupt can stop."""
_HEADROOM = 1 << 30
"""Bytes beyond the query's own limit: the interpreter, its modules, and what DuckDB does not count."""
_PER_THREAD = 16 << 20
"""Bytes for the stack and the allocator's cache of one of DuckDB's threads."""
_ROWS_AT_A_TIME = 10_000
_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from autointerp.store.query_process import serve; serve(int(sys.argv[1]))"
)


_UNITS = {"K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a user's SQL may use."""

    what: str
    """The SQL, as a message names it: "the query"."""
    seconds: float
    memory: str
    """Of DuckDB: "2GB" or "512MiB"."""
    way_out: str = ""
    """How to allow it more time."""

    @property
    def bytes(self) -> int:
        """`memory` as a number. Raises InputError where it is none."""
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?([KMGT])(i?)B", self.memory, re.IGNORECASE | re.ASCII)
        if found is None:
            raise InputError(f"memory limit must look like 2GB or 512MB, not {self.memory!r}")
        return int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2].upper()])

    def took_too_long(self) -> StoppedError:
        return StoppedError(
            f"{self.what} took longer than {self.seconds:g} s and was stopped; narrow it down{self.way_out}"
        )

    def needs_more_memory(self, reason: str = "") -> InputError:
        return InputError(f"{self.what} needs more memory than {self.memory}{reason and ': '}{reason}")


class Alarm:
    """Ends this process by SIGALRM, whatever it is doing, unless it is switched off in time."""

    def set(self, seconds: float) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def off(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def answer_in_a_process(answer: Answer, limits: Limits, say: Say | None = None) -> Rows:
    """What `answer` (which must be picklable) gives, called in a new process that may hold the memory of `limits`
    beside its own modules. `answer` itself sets the alarm.

    Raises what `answer` raises, StoppedError where its alarm went off, InputError where the process ran out of memory
    or crashed.
    """
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as replies, tempfile.TemporaryFile() as errors:
        try:
            # -P: the current folder holds no modules of ours. Nothing that DuckDB prints mixes with our own output.
            command = [sys.executable, "-P", "-c", _START, str(write_end), *sys.path]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, pass_fds=[write_end]
            )
        finally:
            os.close(write_end)
        try:
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as requests:
                pickle.dump((answer, limits.bytes), requests)
            result = _received(replies, say)
            if result is not None:
                return result
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        if code == -signal.SIGALRM:
            raise limits.took_too_long()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
        if code == -signal.SIGKILL or "bad_alloc" in said or "MemoryError" in said:
            raise limits.needs_more_memory()
        if code < 0:
            raise InputError(
                f"{limits.what} crashed DuckDB (signal {signal.Signals(-code).name}): it nests too deep, or needs "
                f"more memory than {limits.memory}"
            )
        raise AutointerpError(f"the process of {limits.what} ended with {code}: {said[-2000:]}")


def _received(replies: BinaryIO, say: Say | None) -> Rows | None:
    """The result that the process sends; None where it ends before that."""
    columns: list[str] = []
    rows: list[tuple[Any, ...]] = []
    while True:
        try:
            kind, value = pickle.load(replies)
        except (EOFError, pickle.UnpicklingError):
            return None
        if kind == "say" and say is not None:
            say(value)
        elif kind == "columns":
            columns = value
        elif kind == "rows":
            rows += value
        elif kind == "error":
            raise value
        elif kind == "end":
            return columns, rows


def serve(write_end: int) -> NoReturn:
    """The other side: the main function of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked decides
    os.set_inheritable(write_end, False)
    answer, memory = pickle.load(sys.stdin.buffer)
    with suppress(OSError, ValueError):  # a system without these limits, or with lower ones
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = memory + _HEADROOM + _PER_THREAD * (os.cpu_count() or 1)
        # What is written to, not what is reserved (RLIMIT_AS): allocators reserve far more than they use.
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with open(write_end, "wb") as replies:

        def send(kind: str, value: Any = None) -> None:
            pickle.dump((kind, value), replies)
            replies.flush()

        try:
            columns, rows = answer(Alarm(), lambda text: send("say", text))
            send("columns", columns)
            for first in range(0, len(rows), _ROWS_AT_A_TIME):
                send("rows", rows[first : first + _ROWS_AT_A_TIME])
            send("end")
        except BrokenPipeError:  # nobody waits for it any more
            pass
        except AutointerpError as error:
            send("error", error)
    # Without the interpreter's tidying up, which may wait for a thread of DuckDB that never ends.
    os._exit(0)
