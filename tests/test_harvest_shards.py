"""The harvest's folder: what is refused, what is resumed, what a crash may leave behind."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from autointerp.errors import DamagedError, InputError, MismatchError
from autointerp.harvest.sealed_files import write_json
from autointerp.harvest.shards import HarvestFolder
from autointerp.harvest.unit_evidence import UnitEvidence
from autointerp.store.unit_tables import TABLES, ListBounds

BOUNDS = ListBounds(4, 4, 8)


def folder_at(root: Path, **identity: object) -> HarvestFolder:
    return HarvestFolder(root, {"sae": "a", "k": 3, **identity}, BOUNDS)


def unit(index: int) -> UnitEvidence:
    return UnitEvidence(index, {}, {"n_documents": 2, "n_tokens_explain": 10 + index})


def filled(root: Path, n: int) -> HarvestFolder:
    folder = folder_at(root)
    for index in range(n):
        folder.write(unit(index))
    folder.set_n_units(n)
    return folder


def test_another_identity_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    assert folder_at(tmp_path).is_done(0)
    with pytest.raises(MismatchError, match="k was 3, now 4"):
        folder_at(tmp_path, k=4)


def test_a_corpus_that_changed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="had 2 work units"):
        filled(tmp_path, 2).set_n_units(3)


def test_missing_units_are_named(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    folder.write(unit(1))
    with pytest.raises(InputError, match="has not reached the end"):
        folder.complete()
    folder.set_n_units(3)
    with pytest.raises(InputError, match=r"2 of 3 work units .*units 0, 2"):
        folder.complete()


def test_folding_keeps_units_and_totals(tmp_path: Path) -> None:
    folder = filled(tmp_path, 5)
    folder.fold(at_least=6)
    assert len(folder.pieces()) == 5
    folder.fold(0, 2, at_least=3)  # units 0, 2, 4
    assert sorted(p.units for p in folder.pieces()) == [(0, 2, 4), (1,), (3,)]
    folder.fold(at_least=2)  # the others, and the fold
    (piece,) = folder.complete()
    assert piece.units == (0, 1, 2, 3, 4)
    assert piece.totals == {"n_documents": 10, "n_tokens_explain": 60}
    assert folder_at(tmp_path).is_done(3)


def test_stopped_between_folding_and_deleting(tmp_path: Path) -> None:
    folder = filled(tmp_path, 4)
    shutil.copytree(tmp_path / "units", tmp_path / "kept")
    folder.fold(at_least=1)
    shutil.rmtree(tmp_path / "units")
    (tmp_path / "kept").rename(tmp_path / "units")
    assert [p.units for p in folder_at(tmp_path).complete()] == [(0, 1, 2, 3)]


def test_overlapping_folds_are_damage(tmp_path: Path) -> None:
    folder = filled(tmp_path, 3)
    folder.fold(at_least=1)
    other = tmp_path / "folds" / "f00000002-2"
    shutil.copytree(folder.complete()[0].path, other)
    write_json(other / "unit.json", {"units": [2, 3], "totals": {}, "files": {}})
    with pytest.raises(DamagedError, match="share units"):
        folder.pieces()


def test_half_written_folders_are_no_units(tmp_path: Path) -> None:
    folder = filled(tmp_path, 1)
    half = tmp_path / ".tmp-u00000001-abc"
    half.mkdir()
    assert not folder_at(tmp_path).is_done(1)
    folder.remove_leftovers()
    assert not half.exists()
    assert not list(tmp_path.glob(".tmp*"))


def test_states_of_finished_units_are_leftovers(tmp_path: Path) -> None:
    """A process killed between writing a unit and deleting its state leaves both."""
    filled(tmp_path, 2)
    folder = folder_at(tmp_path)
    states = [folder.checkpoint(i) for i in range(4)]
    states[0].parent.mkdir()
    for state in states:
        state.write_bytes(b"state")
    half = states[3].with_name(f".{states[3].name}.4711.tmp")
    half.write_bytes(b"half")
    folder.remove_finished_states()
    assert [state.exists() for state in states] == [False, False, True, True] and half.exists()
    states[1].write_bytes(b"state")
    folder.remove_leftovers()
    assert [state.exists() for state in states] == [False, False, True, True] and not half.exists()
    for state in states[2:]:
        state.unlink()
    folder.remove_leftovers()
    assert not states[0].parent.exists()


def test_a_unit_that_another_process_wrote_first_stays(tmp_path: Path) -> None:
    first, second = folder_at(tmp_path), folder_at(tmp_path)
    first.write(unit(0))
    second.write(UnitEvidence(0, {}, {"n_documents": 99}))
    assert second.pieces()[0].totals["n_documents"] == 2


def test_a_unit_without_its_files_is_damage(tmp_path: Path) -> None:
    folder = filled(tmp_path, 1)
    path = folder.pieces()[0].path
    assert {f.stem for f in path.glob("*.parquet")} == set(TABLES)
    (path / "stats.parquet").unlink()
    with pytest.raises(DamagedError, match="stats.parquet"):
        folder_at(tmp_path)
    (path / "unit.json").write_text("{")
    with pytest.raises(DamagedError, match="unit.json"):
        folder_at(tmp_path)


def flips(data: bytes, n: int, rng: random.Random) -> list[bytes]:
    """The data with one bit flipped, n times anew."""
    found = []
    for _ in range(n):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        found.append(bytes(flipped))
    return found


def test_a_flipped_bit_anywhere_is_found_and_its_file_named(tmp_path: Path) -> None:
    stats = {
        "split": np.zeros(50, dtype=np.int8), "feature": np.arange(50), "n_active_tokens": np.arange(50) * 7,
        "n_active_tiles": np.arange(50), "scaled_sum": np.arange(50), "max": np.linspace(0, 3, 50, dtype=np.float32),
    }  # fmt: skip
    folder = folder_at(tmp_path)
    for index in range(3):
        folder.write(UnitEvidence(index, {"stats": stats}, {"n_documents": 2}))
    folder.set_n_units(3)
    folder.fold(0, 2, at_least=2)
    rng = random.Random(0)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2 * (len(TABLES) + 1) + 2  # a fold, a unit, n_units.json and identity.json
    for path in files:
        whole = path.read_bytes()
        for damaged in (*flips(whole, 6, rng), whole[: len(whole) // 2], b""):
            path.write_bytes(damaged)
            with pytest.raises(DamagedError, match=re.escape(str(path))):
                folder_at(tmp_path).complete()
        path.write_bytes(whole)
    assert [piece.units for piece in folder_at(tmp_path).complete()] == [(0, 2), (1,)]


def test_a_damaged_unit_is_not_folded(tmp_path: Path) -> None:
    folder = filled(tmp_path, 3)
    path = tmp_path / "units" / "u00000001" / "stats.parquet"
    whole = path.read_bytes()
    path.write_bytes(flips(whole, 1, random.Random(0))[0])
    with pytest.raises(DamagedError, match="u00000001/stats.parquet is damaged.*delete its folder"):
        folder.fold(at_least=1)
    assert len(folder.pieces()) == 3 and not list(tmp_path.glob(".tmp*"))
    shutil.rmtree(path.parent)
    folder = folder_at(tmp_path)
    assert [folder.is_done(i) for i in range(3)] == [True, False, True]
    folder.write(unit(1))
    folder.fold(at_least=1)
    assert folder.complete()[0].units == (0, 1, 2)


@pytest.mark.parametrize("text", ["", "[" * 20_000, '{"a": ' + "9" * 5000 + "}", "3", "{}", '{"sha256": 7}', "\0"])
def test_nonsense_for_a_file_of_the_folder_is_damage(tmp_path: Path, text: str) -> None:
    filled(tmp_path, 1)
    for name in ("units/u00000000/unit.json", "n_units.json", "identity.json"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_text(text)
        with pytest.raises(DamagedError, match=name):
            folder_at(tmp_path).complete()
        (tmp_path / name).write_bytes(whole)
