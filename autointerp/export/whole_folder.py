"""Writes a folder whole or not at all: into a new one beside it, which takes its name once all of it is on disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from autointerp.errors import AutointerpError, DiskFullError, InputError, StoreBusyError, shown

MARK = "autointerp-export.json"
"""The file that says what an export holds. What it does not name no export may replace."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_free(target: Path, force: bool) -> Path:
    """The absolute path of `target`. Raises InputError where a folder cannot be written there, or must not be: only an
    empty folder or, with `force`, an earlier export to which nothing was added is replaced."""
    try:
        place = Path(os.path.abspath(target)).parent.resolve() / target.name
        is_there, is_folder = os.path.lexists(place), place.is_dir() and not place.is_symlink()
        held = sorted(one.name for one in place.iterdir()) if is_folder else []
    except (OSError, ValueError) as error:
        raise InputError(f"{shown(str(target))} cannot be written: {error}") from None
    if target.name in ("", "..") or not place.name:
        raise InputError(f"{shown(str(target))} names no folder of its own; name a new folder for the export")
    if not place.parent.is_dir():
        raise InputError(f"there is no folder {target.parent} to write {target.name!r} to")
    if not is_there or (is_folder and not held):
        return place
    if not is_folder:
        raise InputError(f"{target} is there already, and is no folder; name another one")
    other = sorted(set(held) - _written(place))
    if other:
        raise InputError(f"{target} holds what no export wrote ({shown(', '.join(other[:4]))}); name another folder")
    if not force:
        raise InputError(f"{target} holds an export already; --force replaces it")
    return place


@contextmanager
def whole_folder(target: Path, force: bool, about: Callable[[], Mapping[str, Any]]) -> Iterator[Path]:
    """An empty folder to fill. When the block ends well, what `about` then gives is written into it as MARK, and it
    becomes `target`; else nothing of it is left.

    Of an export that was killed at any moment, `target` holds nothing or the earlier export; the next one to the same
    place removes what else it left. Raises InputError (see `check_free`), DiskFullError, and StoreBusyError while
    another process exports to the same place.
    """
    place = check_free(target, force)
    stem = f".{place.name[:40]}.{hashlib.sha256(place.name.encode()).hexdigest()[:8]}"
    new, old, lock = (place.with_name(f"{stem}.{end}") for end in ("new", "old", "lock"))
    with _translated(place), _locked(lock, place):
        _clear(place, new, old)
        check_free(target, force)  # an export that was killed while it was replaced is there again
        try:
            new.mkdir()
            yield new
            told = {**about(), "holds": sorted(path.name for path in new.iterdir())}
            (new / MARK).write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            _sync(new)
            check_free(target, force)  # somebody may have put something there meanwhile
            if place.exists() and any(place.iterdir()):
                os.rename(place, old)
            os.rename(new, place)
            _sync_one(place.parent)
        finally:
            _clear(place, new, old)


def _written(place: Path) -> set[str]:
    """What the export at `place` wrote there, by its MARK; nothing where it has none that can be read."""
    try:
        holds = json.loads((place / MARK).read_text(encoding="utf-8"))["holds"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    return {MARK, *(name for name in holds if isinstance(name, str))} if isinstance(holds, list) else set()


def _clear(place: Path, new: Path, old: Path) -> None:
    """Removes an unfinished export, and the one that was replaced; brings that back where nothing took its place."""
    if old.exists() and not place.exists():
        os.rename(old, place)
    for left in (new, old):
        if left.exists():
            shutil.rmtree(left)


@contextmanager
def _locked(lock: Path, place: Path) -> Iterator[None]:
    with lock.open("ab") as file:
        with suppress(ModuleNotFoundError):  # on Windows nothing is locked
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _busy(place) from None
        if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(file.fileno())):
            raise _busy(place)  # its owner has just removed it
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _busy(place: Path) -> StoreBusyError:
    return StoreBusyError(f"another process is exporting to {place}; try again later")


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(f"the disk is full: {place} was not written; free some space and run again") from error
        raise AutointerpError(f"{place} cannot be written: {error.strerror or error}") from error
