"""What an error of DuckDB or the file system means for the user: one of this project's errors, with its exit code."""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from autointerp.errors import AutointerpError, DamagedError, DiskFullError, InputError, StoreBusyError

_FULL = ("no space left on device", "file too large", "disk quota exceeded", "max_temp_directory_size")
_DAMAGED = (
    "checksum",
    "corrupt",
    "not a valid duckdb database",
    "replaying wal",
    "could not read enough bytes",
    "serialization error",
    "failed to deserialize",
    "newer version of duckdb",
)
_FULL_ERRNO = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class OpenHereError(StoreBusyError):
    """This process itself has the store open, so that no waiting helps."""


def from_duckdb(error: duckdb.Error, path: Path, opening: bool = False) -> AutointerpError:
    """The project's error for `error`, which was raised while working on the database at `path`.

    While opening, every fault is damage unless it is a lock, a full disk or a permission: DuckDB reports torn files by
    many types of exception (IOException, TransactionException, SerializationException, InternalException).
    """
    text = str(error)
    low = text.lower()
    first = text.split("\n\nStack Trace", 1)[0].strip()
    if "could not set lock" in low or "conflicting lock" in low:
        found = re.search(r"PID (\d+)", text)
        holder = f"another process (PID {found[1] if found else 'unknown'})"
        return StoreBusyError(f"{path} is in use by {holder}; try again later")
    if "different configuration than existing connections" in low:
        return OpenHereError(f"{path} is already open in this process (PID {os.getpid()}); close it first")
    if any(mark in low for mark in _FULL):
        return DiskFullError(
            f"the disk is full: could not write {path}. Rows already acknowledged are kept; free some space and run "
            f"the same command again ({first})"
        )
    if "permission denied" in low or "read-only file system" in low:
        return InputError(f"no permission to open {path}: {first}")
    if opening or any(mark in low for mark in _DAMAGED):
        file = _damaged_file(text, path)
        return DamagedError(f"{file} cannot be read and was left as it is: {first}. {way_out(file)}")
    return AutointerpError(f"{path}: {first}")


def way_out(file: Path) -> str:
    """What to do about the damaged `file`, as a sentence for the user."""
    if file.name.endswith(".evidence.duckdb"):
        return (
            "Restore it from a backup, or let `autointerp recover` set it aside, after which `autointerp merge` or "
            "`autointerp harvest` makes it anew"
        )
    if file.suffix == ".duckdb":
        return (
            f"Restore it (and {file.name}.wal) from a backup, or let `autointerp recover` save what can be read; it "
            "deletes nothing"
        )
    return "Restore it from a backup, or make it anew"


def _damaged_file(text: str, path: Path) -> Path:
    """The database that the error `text` is about: the one at `path`, or one that belongs to it and was read through
    the same connection. DuckDB names a file that is too short; for a bad block it says only which checksum is where."""
    short = re.search(r'could not read enough bytes from file "([^"]+\.duckdb)"', text, re.IGNORECASE)
    if short:
        return path.with_name(Path(short[1]).name)
    block = re.search(r"stored checksum (\d+) in block at location (\d+)", text)
    if block:
        stem = path.name.removesuffix(".duckdb")
        for file in (path, *sorted(path.parent.glob(f"{glob.escape(stem)}.*.duckdb"))):
            with suppress(OSError), open(file, "rb") as opened:
                opened.seek(int(block[2]))
                if int.from_bytes(opened.read(8), "little") == int(block[1]):
                    return file
    return path


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
