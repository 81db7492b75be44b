"""The standard streams of the command's process, so that whatever they lead to, none of them spoils the work.

a stream that is closed     is opened on /dev/null: else the next file to be opened, such as the store, would get its
                            number, and what a library prints would be written into that file
standard error              what it does not take is dropped
standard output             a reader that has gone (`| head`, a terminal that was closed) is no fault: the rest is
                            dropped and the work goes on. Any other failure, such as a full disk, is an error
an encoding without a sign  the sign is written as JSON writes it: \\u00e9
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import stat
import sys
from typing import Any, TextIO

from autointerp.errors import AutointerpError, DiskFullError

_ESCAPED = "autointerp.escaped"
"""The name of the error handler that writes what an encoding lacks as an escape of JSON."""


def secure_streams() -> None:
    """Makes the standard streams of this process what the text at the head of this file says."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free: this one
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = text_stream(1, sys.stdout, must_arrive=True)
    sys.stderr = text_stream(2, sys.stderr, must_arrive=False)


class _Stream(io.FileIO):
    """A standard stream's descriptor, which stays open."""

    def __init__(self, number: int, must_arrive: bool) -> None:
        super().__init__(number, "wb", closefd=False)
        self._must_arrive, self._is_over = must_arrive, False

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if self._is_over:
            return size
        try:
            return super().write(data) or 0
        except OSError as error:
            self._is_over = True
            # EIO: from a terminal that was closed.
            has_gone = error.errno == errno.EPIPE or (error.errno == errno.EIO and not self._is_file())
            if has_gone or not self._must_arrive:
                return size
            kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else AutointerpError
            raise kind(f"the results cannot be written to standard output: {error.strerror}") from None

    def _is_file(self) -> bool:
        return stat.S_ISREG(os.fstat(self.fileno()).st_mode)


def text_stream(number: int, before: TextIO | None, must_arrive: bool) -> TextIO:
    """A text stream that writes to the descriptor `number`, in the encoding of `before`. With `must_arrive`, what
    cannot be written raises DiskFullError or AutointerpError, once, unless the reader has gone."""
    codecs.register_error(_ESCAPED, _escaped)
    if before is not None:
        before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Stream(number, must_arrive)),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors=_ESCAPED,
        line_buffering=not must_arrive or any(getattr(before, n, False) for n in ("line_buffering", "write_through")),
    )


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Writes what an encoding lacks as JSON does, in UTF-16's units: \\u00e9, \\ud83d\\ude00."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    shown = (f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
    return "".join(shown), error.end
