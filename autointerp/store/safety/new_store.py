"""Tries whether a store can be made, without leaving anything there."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from autointerp.store.safety.paths import cannot_be_made
from autointerp.store.store import Store


def try_new_store(path: Path) -> None:
    """Make a store of this name, in these folders, inside a folder that is removed again. Raises what `Store.open`
    raises for the path, and InputError where its folder cannot be made or written to."""
    missing: list[str] = [path.name]
    folder = path.absolute().parent
    while not folder.exists():
        missing.insert(0, folder.name)
        folder = folder.parent
    try:
        with TemporaryDirectory(dir=folder, prefix=".autointerp-doctor-") as trial:
            Store.open(Path(trial, *missing), create=True).close()
    except OSError as error:
        raise cannot_be_made(path, error) from None
