"""Files that carry their own checksum, so that a flipped bit on the disk is found before it changes a feature.

A small JSON file holds the sha256 of its own content. The one that marks a folder as complete also names the sha256 of
every other file in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from autointerp.errors import DamagedError
from autointerp.store.safety.faults import from_os
from autointerp.store.safety.row_ledger import fsync_folder

_SEAL = "sha256"
AGAIN = "delete its folder to harvest that part again"


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turns an OSError raised inside into this project's error about `path`."""
    try:
        yield
    except OSError as error:
        raise from_os(error, path) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a small JSON table with its seal, so that the file is either whole or absent. Raises DiskFullError."""
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with written(path):
        try:
            with new.open("w", encoding="utf-8") as handle:
                json.dump({**value, _SEAL: _seal(value)}, handle, sort_keys=True)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(new, path)
            fsync_folder(path.parent)
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)


def read_json(path: Path, remedy: str = AGAIN) -> dict[str, Any]:
    """The table that `write_json` wrote. Raises DamagedError, which ends with `remedy`, if it cannot be read or is no
    longer what was written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{path} holds no JSON object; {remedy}")
    seal = value.pop(_SEAL, None)
    if seal is None:
        raise DamagedError(f"{path} holds no checksum, so what it says cannot be trusted; {remedy}")
    if seal != _seal(value):
        raise DamagedError(f"{path} is damaged: its content does not have the checksum in it; {remedy}")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(value), sort_keys=True).encode()).hexdigest()


def file_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """The sha256 in hex of each file, by name."""
    return {path.name: _file_hash(path) for path in paths}


def check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Raise DamagedError, which names the file, if one of the folder's files is missing or is no longer what was
    hashed."""
    for name, expected in hashes.items():
        path = folder / name
        try:
            found = _file_hash(path)
        except OSError as error:
            raise DamagedError(f"{path} cannot be read ({error.strerror or error}); {AGAIN}") from None
        if found != expected:
            raise DamagedError(f"{path} is damaged: it is not the file that was written; {AGAIN}")


def _file_hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
