"""Opening a store for reading: the main file or, while a run writes to it, the snapshot that the run publishes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autointerp.store.connection import connect, restrict
from autointerp.store.safety.bare_reading import either, snapshot_connection
from autointerp.store.safety.paths import real_path
from autointerp.store.store import Store


def open_for_reading(path: Path | str, say: Callable[[str], None] | None = None) -> Store:
    """The store at `path`, for reading. Where another process writes to it, this is its newest snapshot, and `say` is
    told how old that is (Store.snapshot_age_s). A snapshot has no replies (llm_calls.reply).

    Raises what Store.open raises; StoreBusyError only where the writer has published nothing.
    """
    path = real_path(path)

    def of_snapshot() -> Store:
        con, age_s = snapshot_connection(path, say, lambda file: restrict(connect(file, read_only=True), path))
        try:
            return Store.on_snapshot(path, con, age_s)
        except BaseException:
            con.close()
            raise

    return either(path, lambda: Store.open(path, read_only=True), of_snapshot)
