"""Makes the folder of a new store, and tries whether a store can be made, without leaving anything there."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from autointerp.errors import InputError
from autointerp.store.store import Store


def make_folder(path: Path) -> None:
    """Make the folder in which the store at `path` lies. Raises InputError where it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_made(path, error) from None


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
        raise _cannot_be_made(path, error) from None


def _cannot_be_made(path: Path, error: OSError) -> InputError:
    return InputError(f"no store can be made at {path} ({error.strerror or error}); set store.path")
