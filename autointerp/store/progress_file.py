"""Tells `autointerp status` in another process how a running command gets on, by a small JSON file beside the store.

The store itself cannot tell: a writer holds it alone, a shard of a harvest never opens it, and before the first harvest
it does not exist. The file is replaced whole every few seconds and removed when the command ends. A killed process
leaves its file behind, which is recognised by the PID in it and the time at which that process began.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autointerp.progress import Standing, iso
from autointerp.store.safety.paths import progress_path_of, real_path

WRITE_EVERY_S = 2.0
"""Seconds between two versions of the file."""
SILENT_AFTER_S = 120.0
"""A process on another machine that has not written for so long is not known to run."""
FORMAT = 1
_UNKNOWN = "unknown"
"""When a process began, where the system does not say."""


class ProgressFile:
    """`with ProgressFile(store, "harvest") as told:` then `told(standing)` whenever there is something new. What goes
    wrong with the file never ends the work. `part`: see progress_path_of."""

    def __init__(self, store: Path, command: str, part: str = "", every_s: float = WRITE_EVERY_S) -> None:
        self.path = progress_path_of(real_path(store), part)
        self._every_s, self._last = every_s, -every_s
        self._lock = threading.Lock()
        self._is_over = False
        self._process = {
            "format": FORMAT, "command": command, "part": part or None, "pid": os.getpid(), "host": platform.node(),
            "process_started": _start_of(os.getpid()), "started_at": iso(datetime.now(UTC)),
        }  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_over = True
            with suppress(OSError):
                self.path.unlink()

    def __call__(self, standing: Standing) -> None:
        with self._lock:
            if self._is_over or time.monotonic() - self._last < self._every_s:
                return
            self._last = time.monotonic()
            now = datetime.now(UTC)
            counted = {"done": standing.done, "total": standing.total, "unit": standing.unit or None}
            told = {
                **self._process, "updated_at": iso(now), "stage": standing.stage,
                "dictionary": standing.dictionary or None,
                **(counted if standing.is_counted else dict.fromkeys(counted)),
                "seconds": round(standing.seconds, 1), "rate": standing.rate,
                "expected_end": iso(standing.expected_end(now)), "note": standing.note or None,
            }  # fmt: skip
            new = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
            try:
                new.write_text(json.dumps(told), encoding="utf-8")
                os.replace(new, self.path)
            except OSError:  # a full or read-only disk
                with suppress(OSError):
                    new.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class CommandProgress:
    """What one command has last told of itself."""

    state: str
    """ "running", "killed", or "silent": on another machine and not heard of for SILENT_AFTER_S."""
    facts: dict[str, Any]
    """command, part, pid, host, started_at, updated_at, stage, dictionary, done, total, unit, seconds, rate,
    expected_end, note; None for what is not known."""

    def as_dict(self) -> dict[str, Any]:
        shown = {name: value for name, value in self.facts.items() if name not in ("format", "process_started")}
        return {"state": self.state, **shown}


def read_progress(store: Path) -> list[CommandProgress]:
    """The commands that work for the store, or were killed while they did; by file name. A file that cannot be read is
    left out."""
    return [progress for _, progress in _progress_files(store)]


def remove_shards_files(store: Path) -> None:
    """Remove the files of a harvest's shards that do not run. A killed shard's file stays until that shard runs again,
    and once all are merged it does not. Call it after the merge."""
    for file, progress in _progress_files(store):
        if progress.facts.get("part") is not None and progress.state != "running":
            with suppress(OSError):
                file.unlink()


def _progress_files(store: Path) -> list[tuple[Path, CommandProgress]]:
    path = real_path(store)
    first = progress_path_of(path)
    found = []
    for file in sorted(path.parent.glob(f"{glob.escape(first.name)}*")):
        if file.suffix == ".tmp" or not file.is_file():
            continue
        with suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            facts = json.loads(file.read_text(encoding="utf-8"))
            if facts["format"] == FORMAT:
                found.append((file, CommandProgress(_state_of(facts), facts)))
    return found


def _state_of(facts: dict[str, Any]) -> str:
    is_here = facts["host"] == platform.node()
    if is_here and not _start_of(int(facts["pid"])):
        return "killed"
    if not is_here or facts["process_started"] == _UNKNOWN:
        age_s = time.time() - datetime.fromisoformat(facts["updated_at"]).timestamp()
        return "running" if age_s < SILENT_AFTER_S else "silent"
    return "running" if _start_of(int(facts["pid"])) == facts["process_started"] else "killed"


def _start_of(pid: int) -> str:
    """When the process began, in a form that no other process shares: boot id and clock ticks since boot; where the
    system does not say, only that it is there. "" where there is no such process."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:
        return _is_there(pid)
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()  # the name before may hold anything
        return "" if fields[0] in "ZX" else f"{boot} {fields[19]}"
    except OSError:
        return ""


def _is_there(pid: int) -> str:
    if os.name != "nt":  # on Windows, signal 0 is not a mere test
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except OSError:
            pass
    return _UNKNOWN
