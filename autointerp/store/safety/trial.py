"""Tries whether a store can be made at a path, without leaving anything there."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from autointerp.errors import InputError
from autointerp.store.store import Store


def try_new_store(path: Path) -> None:
    """Make a store of this name, in these folders, inside a folder that is removed again. Raises what `Store.open`
    raises for the path, and InputError where the nearest folder that exists cannot be written to."""
    missing: list[str] = [path.name]
    folder = path.absolute().parent
    while not folder.exists():
        missing.insert(0, folder.name)
        folder = folder.parent
    try:
        with TemporaryDirectory(dir=folder, prefix=".autointerp-doctor-") as trial:
            Store.open(Path(trial, *missing), create=True).close()
    except OSError as error:
        raise InputError(
            f"no store can be made at {path}: {folder} cannot be written to ({error.strerror or error}); set store.path"
        ) from None
