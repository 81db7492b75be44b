"""A store for a trial that leaves nothing there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from autointerp.store.safety.paths import cannot_be_made
from autointerp.store.store import Store


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
            raise cannot_be_made(path, error) from None
        yield store
