"""Where the files of a store lie, all in the folder of its main file X.duckdb."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from autointerp.errors import InputError, shown

EVIDENCE = "evidence"
"""The name by which SQL knows the attached evidence file."""
DATABASE_LOGS = (".wal", ".wal.checkpoint", ".wal.recovery")
"""The ends of the files that DuckDB keeps beside a database X.duckdb, and looks for where it opens one."""


_LONGEST_NAME = 180
"""Bytes. A file system takes 255, and files beside the store have its name and up to 60 more."""


def evidence_path_of(path: Path) -> Path:
    """X.duckdb -> X.evidence.duckdb, in the same folder."""
    return path.with_name(path.name.removesuffix(".duckdb") + ".evidence.duckdb")


def snapshot_path_of(path: Path) -> Path:
    """X.duckdb -> X.snapshot.duckdb, in the same folder: the copy that readers see while a run writes (snapshot.py)."""
    return path.with_name(path.name.removesuffix(".duckdb") + ".snapshot.duckdb")


def unfinished_snapshot_of(path: Path) -> Path:
    """Where a snapshot is made, until it is whole."""
    return path.with_name(snapshot_path_of(path).name + ".new")


def saved_path_of(path: Path, stamp: str) -> Path:
    """X.duckdb -> X.saved-<stamp>.duckdb: where a run whose store was deleted saves what it holds (keeping.py)."""
    return path.with_name(f"{path.name.removesuffix('.duckdb')}.saved-{stamp}.duckdb")


def saved_files_of(path: Path) -> list[Path]:
    """What runs have saved of the store at `path`, the oldest first."""
    pattern = f"{glob.escape(path.name.removesuffix('.duckdb'))}.saved-*Z.duckdb"
    return sorted(path.parent.glob(pattern))


def progress_path_of(path: Path, part: str = "") -> Path:
    """X.duckdb -> X.duckdb.progress: how the running command gets on (store/progress_file.py). `part` names one of
    several processes that work for the store at once."""
    return path.with_name(f"{path.name}.progress{part and '.' + part}")


def refuse_own_file(store: Path, target: Path) -> None:
    """Raises InputError where a file written to `target` would replace one of the store's own files."""
    place = target.parent.resolve() / target.name
    for path in (store, store.resolve()):
        main = path.parent.resolve() / path.name
        own = [main, evidence_path_of(main), snapshot_path_of(main), unfinished_snapshot_of(main)]
        own += [file.with_name(file.name + end) for end in DATABASE_LOGS for file in own] + [
            main.with_name(main.name + ".ledger")
        ]
        is_progress = place.parent == main.parent and place.name.startswith(progress_path_of(main).name)
        if place in own or is_progress:
            raise InputError(f"{target} belongs to the store {store}; write to another file")


def path_with_folder(path: Path | str) -> Path:
    """`real_path`, whose folder is made where there is none. Raises InputError where that cannot be."""
    real = real_path(path)
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_be_made(path, error) from None
    return real


def cannot_be_made(path: Path | str, error: OSError) -> InputError:
    return InputError(f"no store can be made at {shown(str(path))} ({error.strerror or error}); set store.path")


def real_path(path: Path | str) -> Path:
    """The absolute path of a store's main file; where `path` is a link, of the file that it leads to. Its WAL, ledger
    and evidence lie beside that file, and would not be found beside the link.

    Absolute, because DuckDB takes relative names such as `:memory:` and `md:x` for something else than a file. Raises
    InputError for a path at which DuckDB cannot keep a store.
    """
    path = Path(path)
    try:
        path = path.resolve() if path.is_symlink() else Path(os.path.abspath(path))
        is_other = path.exists() and not path.is_file()
        str(path).encode()
    except (OSError, UnicodeEncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not valid Unicode"
        raise InputError(f"no store can be at {shown(str(path))}: {reason}") from None
    if is_other:  # a pipe would be waited for
        raise InputError(f"{path} is a folder, a device or a pipe, and no store; name a file")
    if len(path.name.encode()) > _LONGEST_NAME:
        raise InputError(
            f"no store can be called {shown(path.name)}: the names of the files beside it would be too long"
        )
    if "?" in str(path):
        raise InputError(
            f"no store can be at {path}: DuckDB would put its log elsewhere, as it takes what follows a question mark "
            "for options. Give the file or folder another name"
        )
    if path.name.partition(".")[0].lower() == EVIDENCE:
        raise InputError(
            f"no store can be called {path.name}: queries know the store by the name before the first dot, and "
            f"{EVIDENCE!r} stands for the file of contexts beside it. Give it another name"
        )
    return path
