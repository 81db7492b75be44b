"""Lines about the work, on stderr: as text, as text for journald, or as JSON.

    text      the message, after the time of day
    journald  the message after sd-daemon's priority (<6>, <4>, <3>), without the time, which journald adds. This is the
              default where $JOURNAL_STREAM says that stderr is journald's (systemd.exec(5))
    json      one object a line: time, level, event, message, and the fields of the event

In each form a message is one line, and no control character in it reaches a terminal. In the last two, which programs
read, everything else written to stderr (by logging, warnings or a library) takes the same form.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, TextIO

ENVIRONMENT = "AUTOINTERP_LOG_FORMAT"
Level = Literal["debug", "info", "warning", "error"]
_PRIORITIES: dict[Level, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_OWN = ("time", "level", "event", "message")


class LogFormat(StrEnum):
    text = "text"
    json = "json"


def asked_for(arguments: list[str]) -> LogFormat:
    """The log format that a command line or the environment asks for, so that errors in the rest of the command line
    can be reported in it. An unknown name is left to the option's own check."""
    asked = os.environ.get(ENVIRONMENT, "")
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--log-format":
            asked = following
        elif word.startswith("--log-format="):
            asked = word.partition("=")[2]
    return LogFormat.json if asked == LogFormat.json else LogFormat.text


class Log:
    """Writes lines to stderr, as it is when they are written. If stderr does not accept them (a closed pipe, a full
    disk), the work goes on."""

    def __init__(self, form: LogFormat = LogFormat.text, quiet: bool = False) -> None:
        self.is_json = form is LogFormat.json
        self.is_journald = not self.is_json and _is_journald()
        self.quiet = quiet

    @property
    def is_for_programs(self) -> bool:
        return self.is_json or self.is_journald

    def write(self, message: str, level: Level = "info", event: str = "message", **fields: Any) -> None:
        """Write one line. `fields` are plain values that only JSON shows; those that are None are left out."""
        if self.is_json:
            self._put(_as_json(message, level, event, fields))
        elif self.is_journald:
            self._put(f"<{_PRIORITIES[level]}>{visible(message)}")
        else:
            self._put(f"{datetime.now():%H:%M:%S} {visible(message)}")

    def end(self, word: str, message: str, exit_code: int, level: Level = "error", trace: str | None = None) -> None:
        """Write why the command ends. In text, `word` comes before the message. `trace` is a traceback of several
        lines."""
        if self.is_json:
            self.write(message, level, "error", exit_code=exit_code, traceback=trace)
            return
        prefix = f"<{_PRIORITIES[level]}>" if self.is_journald else ""
        for line in trace.rstrip().split("\n") if trace else ():
            self._put(("<7>" if self.is_journald else "") + visible(line))
        self._put(f"{prefix}{word}{visible(message)}")

    def _put(self, line: str) -> None:
        if self.quiet:
            return
        stream = _stderr()
        with suppress(OSError, ValueError):  # ValueError: stderr was closed
            stream.write(line + "\n")
            stream.flush()


def _as_json(message: str, level: Level, event: str, fields: dict[str, Any]) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record = dict(zip(_OWN, (now, level, event, visible(message)), strict=True))
    more = {name: _plain(name, value) for name, value in fields.items() if value is not None and name not in _OWN}
    return json.dumps({**record, **more})


def _plain(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # Split only at line feeds; the other characters at which str.splitlines() splits are shown.
    return "\n".join(visible(line) for line in value.rstrip().split("\n")) if name == "traceback" else visible(value)


def visible(text: str) -> str:
    """`text` on one line, with control characters, such as a terminal's escape sequences, written out."""
    shown = text.replace("\n", "\u21b5").replace("\t", "\u2192")
    return "".join(c if c.isprintable() or c in "\u21b5\u2192" else f"\\x{ord(c):02x}" for c in shown)


def _is_journald() -> bool:
    """Whether stderr is the stream that $JOURNAL_STREAM names by device and inode. The variable alone says little,
    since everything that a service starts inherits it, such as a desktop's terminals and jobs that write to a file."""
    try:
        status = os.fstat(_stderr().fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _descriptor(stream: Any) -> int | None:
    """The descriptor to which a stream writes; None if it has none."""
    try:
        found = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return found if isinstance(found, int) else None


def _stderr() -> TextIO:
    """The real stderr, beneath any capture."""
    stream = sys.stderr
    return stream.beneath if isinstance(stream, _Lines) else stream


class Capture:
    """From its creation to its end, everything else written to stderr goes through `log`, line by line."""

    def __init__(self, log: Log) -> None:
        self._beneath = _stderr()
        self._lines = _Lines(log, self._beneath)
        self._handler = _Records(log)
        sys.stderr = self._lines
        root = logging.getLogger()
        self._replaced = [handler for handler in root.handlers if self._is_beneath(handler)]
        for handler in self._replaced:  # from logging.basicConfig, if a library was told to log
            root.removeHandler(handler)
        root.addHandler(self._handler)
        for logger in logging.root.manager.loggerDict.values():
            for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
                if isinstance(handler, logging.StreamHandler) and self._is_beneath(handler):
                    handler.setStream(self._lines)
        logging.captureWarnings(True)

    def _is_beneath(self, handler: logging.Handler) -> bool:
        """Whether a library's handler writes to the real stderr, perhaps through an object that stood for it before."""
        if not isinstance(handler, logging.StreamHandler):
            return False
        return handler.stream is self._beneath or _descriptor(handler.stream) == _descriptor(self._beneath) is not None

    def flush(self) -> None:
        """Write out a last line that has no end of line yet."""
        self._lines.finish()

    def end(self) -> None:
        self.flush()
        logging.captureWarnings(False)
        root = logging.getLogger()
        root.removeHandler(self._handler)
        for handler in self._replaced:
            root.addHandler(handler)
        if sys.stderr is self._lines:
            sys.stderr = self._beneath


class _Records(logging.Handler):
    """Turns records of `logging`, and warnings, into lines of the log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
            found = record.exc_info if record.exc_info and record.exc_info[0] is not None else None
            trace = logging.Formatter().formatException(found) if found else None
        except Exception:  # the arguments may not fit the message
            self.handleError(record)
            return
        level: Level = (
            "error" if record.levelno >= logging.ERROR
            else "warning" if record.levelno >= logging.WARNING
            else "info" if record.levelno >= logging.INFO
            else "debug"
        )  # fmt: skip
        if trace and not self._log.is_json:
            message = f"{message}: {trace.rstrip().split(chr(10))[-1]}"
        text = f"{record.name}: {message.strip()}"
        self._log.write(text, level, "library", logger=record.name, traceback=trace)


class _Lines(io.TextIOBase):
    """Takes the place of stderr: every line written to it becomes a line of the log."""

    encoding = "utf-8"
    """Libraries read it, and TextIOBase has None."""

    def __init__(self, log: Log, beneath: TextIO) -> None:
        self.beneath = beneath
        self._log = log
        self._rest = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            *whole, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in whole:
            self._tell(line)
        return len(text)

    def finish(self) -> None:
        with self._lock:
            rest, self._rest = self._rest, ""
        self._tell(rest)

    def _tell(self, line: str) -> None:
        if line.strip():
            self._log.write(line.rstrip(), event="stderr")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.beneath.fileno()
