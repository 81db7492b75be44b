"""A file that a user names for the result of a command: whether it can stand there, and how it is written."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autointerp.errors import AutointerpError, InputError, shown


def place_of(target: Path) -> Path:
    """The absolute path of `target`, whose last part may be a link. Raises InputError where no file can stand there."""
    try:
        place = target.parent.resolve() / target.name
        is_folder = place.is_dir()
    except OSError as error:
        raise InputError(f"{shown(str(target))} cannot be written: {error.strerror}") from None
    if is_folder:
        raise InputError(f"the result is to be a file, but there is a folder {target}")
    if not place.parent.is_dir():
        raise InputError(f"there is no folder {target.parent} to write {target.name!r} to")
    return place


@contextmanager
def put_in_place(target: Path) -> Iterator[Path]:
    """Where to write what is meant for `target`: a new file beside it, which replaces it when the block ends well. A
    device or a pipe is written to directly. Raises InputError where no file can stand there."""
    place = place_of(target)
    if {"dev", "proc"} & set(place.parts[1:2]) or (place.exists() and not place.is_file()):
        yield place.resolve()
        return
    # The end of the name is kept: DuckDB chooses the compression by it.
    new = place.with_name(f".{uuid.uuid4().hex[:8]}.{place.name[-100:]}")
    try:
        yield new
        if place.is_file() and not place.is_symlink():
            new.chmod(stat.S_IMODE(place.stat().st_mode))
        os.replace(new, place)
    except OSError as error:
        raise AutointerpError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        new.unlink(missing_ok=True)
