"""Whether the files that an open store writes to and reads are still those at their paths.

A file that somebody deletes, or replaces by a rename, lives on for the process that has it open: every write succeeds,
and all of it is gone once the process ends.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_OPEN_FILES = Path("/dev/fd")
"""The open files of this process, on systems that list them."""


def _status(path: Path) -> os.stat_result | None:
    """None where there is no such file. Raises OSError where that cannot be found out."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _same(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    return one is not None and other is not None and os.path.samestat(one, other)


def _is_open_here(status: os.stat_result) -> bool:
    """Whether this process has that file open: some file systems number a file anew while it is open."""
    with suppress(OSError):
        for handle in os.listdir(_OPEN_FILES):
            with suppress(OSError, ValueError):
                if os.path.samestat(os.fstat(int(handle)), status):
                    return True
    return False


class OpenFiles:
    """The main file at `main`, which has just been opened for writing, its WAL, and its evidence."""

    def __init__(self, main: Path) -> None:
        self.main = main
        self._wal = main.with_name(main.name + ".wal")
        self._evidence: Path | None = None
        self._seen = {main: _status(main)}
        self._seen_wal: os.stat_result | None = None
        self._size = 0

    def evidence_is(self, path: Path | None) -> None:
        """`path` is the evidence from now on; None where there is none."""
        if self._evidence is not None:
            del self._seen[self._evidence]
        self._evidence = path
        if path is not None:
            self._seen[path] = _status(path)

    def written(self) -> None:
        """Notes how large our own writing has left the main file, and which file the WAL is."""
        with suppress(OSError):
            found = _status(self.main)
            self._size = found.st_size if found is not None else 0
            self._seen_wal = _status(self._wal)

    def displaced(self, wrote: bool = False) -> dict[Path, str]:
        """The files that are not at their paths any more, and what became of them. A main file that is smaller than our
        own writing left it was overwritten in place. `wrote`: we have written since then, and a checkpoint, which
        DuckDB makes at a commit where the WAL has grown, may itself have made the file smaller."""
        found = {}
        for path, seen in self._seen.items():
            try:
                now = _status(path)
            except OSError:  # a network that is down for a while, say
                continue
            if now is None:
                found[path] = "deleted"
            elif not _same(seen, now):
                if _is_open_here(now):
                    self._seen[path] = now
                else:
                    found[path] = "replaced by another file"
            elif path == self.main and now.st_size < self._size and not wrote:
                found[path] = "overwritten"
        return found

    def remove_wal(self) -> None:
        """Removes the WAL of a main file that is not there any more, unless it is another one by now: beside another
        main file it would stand in that one's way."""
        with suppress(OSError):
            if _same(self._seen_wal, _status(self._wal)):
                self._wal.unlink()
