"""Where the files of a store lie, all in the folder of its main file X.duckdb."""

from __future__ import annotations

import glob
from pathlib import Path

from autointerp.errors import InputError

DATABASE_LOGS = (".wal", ".wal.checkpoint", ".wal.recovery")
"""The ends of the files that DuckDB keeps beside a database X.duckdb, and looks for where it opens one."""


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


def real_path(path: Path | str) -> Path:
    """The file that a link leads to. Its WAL, ledger and evidence lie beside that file, and would not be found beside
    the link."""
    path = Path(path)
    return path.resolve() if path.is_symlink() else path
