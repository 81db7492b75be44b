"""A harvest's work folder: one Parquet folder per finished unit; now and then several are folded into one.

    <root>/identity.json        what the units depend on; a harvest with another identity is refused
    <root>/n_units.json         the number of units of the corpus, once a process has read to its end
    <root>/units/u00000012/     tables (store/unit_tables.py) and unit.json, with the checksums of the tables; either
                                complete or absent
    <root>/folds/f00000000-7/   the joined tables of several units, and unit.json, which names them
    <root>/partial/             the state of unfinished units (checkpoint.py)

A folder is written under another name, flushed to disk and renamed, and renamed again before it is deleted. A kill
therefore costs at most one unit and leaves no part of one. Several processes may share a root if each takes its own
units (a shard).
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autointerp.errors import DamagedError, InputError, MismatchError
from autointerp.harvest.sealed_files import AGAIN, check_files, file_hashes, read_json, write_json, written
from autointerp.harvest.unit_evidence import UnitEvidence
from autointerp.store.safety.row_ledger import fsync_folder
from autointerp.store.unit_tables import TABLES, ListBounds, fold_units, write_unit

FOLD_EVERY = 8
"""Unit folders that a process gathers before it folds them. This bounds the disk that a long harvest needs."""
PARTIAL = "partial"
_MANIFEST = "unit.json"
_ALL_AGAIN = "delete its folder to harvest again from the start"
_COUNT_AGAIN = "delete this file and run `autointerp harvest` again, which counts the units anew"


@dataclass(frozen=True, slots=True)
class Piece:
    """A complete folder, with its units and their summed totals."""

    path: Path
    units: tuple[int, ...]
    totals: Mapping[str, int]
    hashes: Mapping[str, str]
    """The sha256 of each of its Parquet files, by name."""


class HarvestFolder:
    """One dictionary's harvested units. Raises MismatchError if the folder holds another harvest's units."""

    def __init__(self, root: Path, identity: Mapping[str, Any], bounds: ListBounds) -> None:
        self.root, self._bounds = root, bounds
        self._units, self._folds = root / "units", root / "folds"
        with written(root):
            for folder in (self._units, self._folds):
                folder.mkdir(parents=True, exist_ok=True)
        self.identity: Mapping[str, Any] = json.loads(json.dumps(dict(identity), default=str))
        """Everything the units depend on."""
        self._check_identity(dict(self.identity))
        self._done = {unit for piece in self.pieces() for unit in piece.units}

    def _check_identity(self, identity: dict[str, Any]) -> None:
        path = self.root / "identity.json"
        if not path.exists():
            write_json(path, identity)
        found = read_json(path, _ALL_AGAIN)
        if found == identity:
            return
        names = sorted(set(found) | set(identity))
        other = [f"{n} was {found.get(n)!r}, now {identity.get(n)!r}" for n in names if found.get(n) != identity.get(n)]
        raise MismatchError(
            f"{self.root} holds units of another harvest ({'; '.join(other)}). Put the settings back to finish it, or "
            "delete the folder to start again"
        )

    def is_done(self, unit: int) -> bool:
        """Whether the unit was complete when this object was made, or has been written by it since."""
        return unit in self._done

    def checkpoint(self, unit: int) -> Path:
        """The file that keeps the state of an unfinished unit."""
        return self.root / PARTIAL / f"u{unit:08d}.npz"

    def pieces(self) -> list[Piece]:
        """The complete folders; each unit is in exactly one of them. Raises DamagedError if two folds overlap."""
        folds = _pieces(self._folds.glob("f*"))
        # A process stopped between writing a larger fold and deleting the folders it replaces leaves both.
        folds = [f for f in folds if not any(set(f.units) < set(g.units) for g in folds)]
        folded = [unit for fold in folds for unit in fold.units]
        if len(folded) != len(set(folded)):
            raise DamagedError(
                f"{self._folds} holds folds that share units; two processes harvested the same shard. Delete "
                f"{self.root} and harvest again"
            )
        inside = set(folded)
        return folds + [piece for piece in _pieces(self._units.glob("u*")) if not inside.issuperset(piece.units)]

    def write(self, evidence: UnitEvidence) -> None:
        """Write the unit's folder to the disk, whole. Raises DiskFullError."""
        target = self._units / f"u{evidence.index:08d}"
        if not target.exists():
            with self._new_folder(target) as folder:
                write_unit(evidence.index, evidence.tables, folder)
                _write_manifest(folder, [evidence.index], evidence.totals)
        self._done.add(evidence.index)

    def fold(
        self,
        shard_index: int = 0,
        num_shards: int = 1,
        at_least: int = FOLD_EVERY,
        memory_limit: str | None = None,
    ) -> None:
        """Join this shard's unit folders and its earlier fold into one folder, once it has `at_least` unit folders.
        Raises DamagedError if a file is not what was written."""
        own = [p for p in self.pieces() if all(unit % num_shards == shard_index for unit in p.units)]
        if sum(p.path.parent == self._units for p in own) < at_least:
            return
        _check(own)
        units = sorted(unit for piece in own for unit in piece.units)
        totals: dict[str, int] = {}
        for piece in own:
            for name, n in piece.totals.items():
                totals[name] = totals.get(name, 0) + n
        with self._new_folder(self._folds / f"f{units[0]:08d}-{len(units)}") as folder:
            fold_units([piece.path for piece in own], self._bounds, folder, memory_limit)
            _write_manifest(folder, units, totals)
        for piece in own:
            remove_folder(piece.path)

    def set_n_units(self, n_units: int) -> None:
        """Record the length of the corpus. Raises MismatchError if another length is recorded: the text has changed."""
        path = self.root / "n_units.json"
        if not path.exists():
            write_json(path, {"n_units": n_units})
        known = read_json(path, _COUNT_AGAIN)["n_units"]
        if known != n_units:
            raise MismatchError(
                f"the corpus had {known} work units when {self.root} was begun and now has {n_units}: the text has "
                "changed. Delete the folder to harvest the new text"
            )

    @property
    def n_units(self) -> int | None:
        """The number of units of the corpus; None until it has been read to its end."""
        path = self.root / "n_units.json"
        return int(read_json(path, _COUNT_AGAIN)["n_units"]) if path.exists() else None

    def complete(self) -> list[Piece]:
        """All pieces of a finished harvest. If it is not finished, raises InputError, which names what is missing.
        Raises DamagedError if a file is not what was written."""
        pieces, n_units = self.pieces(), self.n_units
        done = {unit for piece in pieces for unit in piece.units}
        if n_units is None:
            raise InputError(
                f"the harvest in {self.root} has not reached the end of the corpus ({len(done)} units done); run "
                "`autointerp harvest` again, it goes on where it stopped"
            )
        missing = [unit for unit in range(n_units) if unit not in done]
        if missing:
            listed = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise InputError(
                f"{len(missing)} of {n_units} work units are not harvested yet (units {listed}); run the shards that "
                "hold them, then merge again"
            )
        _check(pieces)
        return pieces

    @contextmanager
    def _new_folder(self, target: Path) -> Iterator[Path]:
        """A folder to fill, which is renamed to `target` once all its content is on the disk. If another process was
        first, the new folder is dropped, since both have equal content."""
        folder = self.root / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
        try:
            with written(folder):
                folder.mkdir()
                yield folder
                shutil.rmtree(folder / "spill", ignore_errors=True)
                for path in folder.iterdir():
                    with path.open("rb+") as handle:
                        os.fsync(handle.fileno())
                fsync_folder(folder)
                try:
                    os.rename(folder, target)
                except OSError:
                    if not target.exists():
                        raise
                fsync_folder(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def remove_finished_states(self) -> None:
        """Delete the states of units that are finished, which a process killed between the two leaves."""
        with suppress(OSError):
            for unit in self._done:
                self.checkpoint(unit).unlink(missing_ok=True)
            (self.root / PARTIAL).rmdir()  # fails while other units' states are there

    def remove_leftovers(self) -> None:
        """Delete half-written folders and files of killed processes, and the states of finished units. Call it only
        while no other process harvests here."""
        self.remove_finished_states()
        for path in (self.root / PARTIAL).glob(".*.tmp"):
            path.unlink(missing_ok=True)
        for folder in (self.root, self._units, self._folds):
            for path in folder.glob(".tmp-*"):
                shutil.rmtree(path, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder, and what a killed process has left of it. The folder is renamed first, so no part of it is ever
    found under its name."""
    with suppress(OSError):  # it is not there
        os.rename(folder, folder.with_name(f".tmp-{folder.name}-{uuid.uuid4().hex[:8]}"))
    for renamed in folder.parent.glob(f".tmp-{glob.escape(folder.name)}-*"):
        shutil.rmtree(renamed, ignore_errors=True)


def may_hold(root: Path, facts: Mapping[str, Any]) -> bool:
    """Whether `root` may hold a harvest with these facts: false only if its identity file says otherwise."""
    if not (root / "identity.json").exists():
        return True
    found = read_json(root / "identity.json", _ALL_AGAIN)
    return all(found.get(name) == value for name, value in json.loads(json.dumps(dict(facts), default=str)).items())


def _pieces(paths: Iterable[Path]) -> list[Piece]:
    """The pieces in order of name. Folders that another process (shard) has just folded and deleted are left out."""
    found = []
    for path in sorted(paths):
        try:
            found.append(_piece(path))
        except DamagedError:
            if path.exists():
                raise
    return found


def _piece(path: Path) -> Piece:
    found = read_json(path / _MANIFEST)
    missing = [name for name in TABLES if not (path / f"{name}.parquet").exists()]
    if missing:
        raise DamagedError(f"{path} lacks {missing[0]}.parquet; {AGAIN}")
    return Piece(path, tuple(found["units"]), found["totals"], found["files"])


def _write_manifest(folder: Path, units: Sequence[int], totals: Mapping[str, int]) -> None:
    hashes = file_hashes(folder / f"{name}.parquet" for name in TABLES)
    write_json(folder / _MANIFEST, {"units": list(units), "totals": dict(totals), "files": hashes})


def _check(pieces: Iterable[Piece]) -> None:
    for piece in pieces:
        check_files(piece.path, piece.hashes)
