"""Makes the folder of a new store, or a store for a trial that leaves nothing there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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


@contextmanager
def trial_store(path: Path) -> Iterator[Store]:
    """An empty store of this name, in these folders, inside a folder that is removed afterwards. Raises what
    `Store.open` raises for the path, and InputError where its folder cannot be made or written to."""
    missing: list[str] = [path.name]
    folder = path.absolute().parent
    while not folder.exists():
        missing.insert(0, folder.name)
        folder = folder.parent
    with ExitStack() as stack:
        try:
            trial = stack.enter_context(TemporaryDirectory(dir=folder, prefix=".autointerp-doctor-"))
            store = stack.enter_context(Store.open(Path(trial, *missing), create=True))
        except OSError as error:
            raise _cannot_be_made(path, error) from None
        yield store


def _cannot_be_made(path: Path, error: OSError) -> InputError:
    return InputError(f"no store can be made at {path} ({error.strerror or error}); set store.path")
