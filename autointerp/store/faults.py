"""What a DuckDB error means for the user: one of this project's errors, with the exit code that goes with it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from autointerp.errors import AutointerpError, DamagedError, DiskFullError, InputError, StoreBusyError

_FULL = ("no space left on device", "file too large", "disk quota exceeded", "max_temp_directory_size")
_DAMAGED = (
    "checksum",
    "corrupt",
    "not a valid duckdb database",
    "replaying wal",
    "serialization error",
    "failed to deserialize",
    "newer version of duckdb",
)
_FULL_ERRNO = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def from_duckdb(error: duckdb.Error, path: Path, opening: bool = False) -> AutointerpError:
    """The project's error for `error`, met while working on the database at `path`.

    While opening, anything that is not a lock, a full disk or a permission is damage: DuckDB reports torn files under
    many exception types (IOException, TransactionException, SerializationException, InternalException).
    """
    text = str(error)
    low = text.lower()
    first = text.split("\n\nStack Trace", 1)[0].strip()
    if "could not set lock" in low or "conflicting lock" in low:
        found = re.search(r"PID (\d+)", text)
        holder = f"process {found[1]}" if found else "another process"
        return StoreBusyError(f"{path} is in use by {holder} (PID {found[1] if found else 'unknown'}); try again later")
    if "different configuration than existing connections" in low:
        return StoreBusyError(f"{path} is already open in this process (PID {os.getpid()}); close it first")
    if any(mark in low for mark in _FULL):
        return DiskFullError(
            f"the disk is full: could not write {path}. Rows already acknowledged are kept; free some space and run "
            f"the same command again ({first})"
        )
    if "permission denied" in low or "read-only file system" in low:
        return InputError(f"no permission to open {path}: {first}")
    if opening or any(mark in low for mark in _DAMAGED):
        return DamagedError(
            f"{path} cannot be read and was left as it is: {first}. Restore the file (and {path.name}.wal) from a "
            "backup, or move both away to start a new store"
        )
    return AutointerpError(f"{path}: {first}")


def from_os(error: OSError, path: Path) -> AutointerpError:
    """The project's error for a failed file operation on `path`."""
    if error.errno in _FULL_ERRNO:
        return DiskFullError(f"the disk is full: could not write {path}; free some space and run the command again")
    return AutointerpError(f"{path}: {error.strerror or error}")


@contextmanager
def translated(path: Path, opening: bool = False) -> Iterator[None]:
    """Turns duckdb.Error and OSError raised inside into this project's errors."""
    try:
        yield
    except duckdb.Error as error:
        raise from_duckdb(error, path, opening) from error
    except OSError as error:
        raise from_os(error, path) from error
