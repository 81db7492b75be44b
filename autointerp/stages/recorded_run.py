"""What a store and other processes are told of a run: its row in `runs`, how it ended, and its progress meanwhile."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from autointerp import __version__
from autointerp.config import Config
from autointerp.config_file import as_dict
from autointerp.errors import AutointerpError, PartialFailure, StoppedError
from autointerp.stages import labelling
from autointerp.store.progress_file import ProgressFile
from autointerp.store.safety.paths import path_with_folder
from autointerp.store.safety.snapshot import open_for_writing
from autointerp.store.selection import Selection
from autointerp.store.store import Store
from autointerp.terminal import Terminal

_REPORTED_VERSIONS = ("torch", "transformers", "openai", "duckdb", "numpy")


@contextmanager
def recorded(
    config: Config, command: str, terminal: Terminal, create: bool = True, selection: Selection | None = None,
    is_summed_up: bool = False,
) -> Iterator[tuple[Store, str]]:  # fmt: skip
    """The open store and the id of this run's row in `runs`, which records how the run ended. `selection` (the features
    to label) is kept for `status`. With `is_summed_up`, the log ends with a line that says what was done, however the
    run ended; only an error follows it."""
    path, begun = path_with_folder(config.store.path), time.monotonic()
    seconds = config.store.snapshot_seconds
    chosen = {} if selection is None else {"selection": as_dict(selection)}
    with (
        terminal.working(f"running {command}"),
        open_for_writing(path, create=create, snapshot_seconds=seconds, say=terminal.say) as store,
        told(path, command, terminal),
    ):
        run_id = store.begin_run(command, {**as_dict(config), **chosen}, _versions())

        def sum_up() -> None:
            if not is_summed_up:
                return
            with suppress(AutointerpError):  # a damaged store, or one on a full disk, cannot be read
                labelling.say_summary(store, run_id, command, time.monotonic() - begun, terminal)

        try:
            yield store, run_id
        except BaseException as error:
            sum_up()
            code = error.exit_code if isinstance(error, AutointerpError) else 1
            status = "partial" if isinstance(error, PartialFailure) else "failed"
            if isinstance(error, StoppedError):
                status = "stopped"
            if isinstance(error, KeyboardInterrupt):
                status, code = "interrupted", 130
            store.finish_run(run_id, status, code)
            raise
        sum_up()
        store.finish_run(run_id, "ok", 0)


@contextmanager
def told(path: Path, command: str, terminal: Terminal, part: str = "") -> Iterator[None]:
    """Within this context, `autointerp status` in another process can show the command's progress."""
    with ProgressFile(path, command, part) as progress_file:
        terminal.watch(progress_file)
        try:
            yield
        finally:
            terminal.watch(None)


def _versions() -> dict[str, str]:
    found = {"autointerp": __version__, "python": platform.python_version()}
    for name in _REPORTED_VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
