"""Units on disk and the merge's edges; what the merge computes is in test_harvest_text_pass.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
from support.evidence_helpers import SMALL, Setup
from support.recorded_steps import RecordedSteps

from autointerp.errors import DamagedError, InputError
from autointerp.harvest.merge import merge_source
from autointerp.records import WorkUnit
from autointerp.store.contexts import stored_contexts
from autointerp.store.merge_units import MergeTarget, merge_units
from autointerp.store.store import Store
from autointerp.store.unit_tables import TABLES, ListBounds, connect, fold_units, read_units, write_unit


@pytest.fixture(scope="module")
def setup(tiny_gpt2: Path) -> Setup:
    return Setup(tiny_gpt2, n_units=2)


def test_what_is_written_is_read_with_the_same_types(tmp_path: Path) -> None:
    stats = {
        "split": np.array([0, 2], np.int8),
        "feature": np.array([4, 4]),
        "n_active_tokens": np.array([3, 5]),
        "n_active_tiles": np.array([1, 2]),
        "scaled_sum": np.array([2**62, 7]),
        "max": np.float32([1.5, 2.5]),
    }
    for index in (0, 1):
        (tmp_path / str(index)).mkdir()
        write_unit(index, {"stats": stats}, tmp_path / str(index))
    (tmp_path / "fold").mkdir()
    fold_units([tmp_path / "0", tmp_path / "1"], ListBounds(1, 1, 1), tmp_path / "fold")
    with connect(tmp_path) as con:
        read_units(con, [tmp_path / "fold"])
        assert con.execute("SELECT * FROM unit_stats ORDER BY split").fetchall() == [
            (0, 4, 6, 2, 2**63, 1.5), (2, 4, 10, 4, 14, 2.5)
        ]  # fmt: skip
        for name, types in TABLES.items():
            described = con.execute(f"DESCRIBE unit_{name}").fetchall()
            assert {row[0]: row[1].replace("(38,0)", "(38, 0)") for row in described} == types
            assert con.execute(f"SELECT count(*) FROM unit_{name}").fetchall() == [(2 if name == "stats" else 0,)]


def test_a_unit_without_windows(setup: Setup, tmp_path: Path) -> None:
    setup.units.append(WorkUnit(2, [], 1))
    try:
        folder = setup.folder(tmp_path / "work")
        setup.harvest(folder)
        assert folder.complete()[-1].totals["n_windows"] == 0
        setup.store(tmp_path / "x.duckdb", folder)
    finally:
        setup.units.pop()


def test_merge_without_units_and_with_a_torn_file(setup: Setup, tmp_path: Path) -> None:
    folder = setup.folder(tmp_path / "work")
    setup.harvest(folder)
    with Store.open(tmp_path / "x.duckdb", create=True) as store:
        source = merge_source([], setup.sae, setup.text, SMALL)
        with pytest.raises(InputError, match="no harvested units"):
            merge_units(store, source, MergeTarget(1, 1, 1), SMALL)
        setup.merge(store, folder)
        before = store.rows("SELECT * FROM evidence.context_rows")
        torn = folder.pieces()[0].path / "candidates.parquet"
        torn.write_bytes(torn.read_bytes()[:-100])
        with pytest.raises(DamagedError, match="candidates.parquet"):
            setup.merge(store, folder)
        assert store.rows("SELECT * FROM evidence.context_rows") == before
        assert not list(tmp_path.glob("*.new*"))


def test_a_flipped_bit_in_a_unit_is_named_and_that_unit_alone_is_done_again(setup: Setup, tmp_path: Path) -> None:
    folder = setup.folder(tmp_path / "work")
    setup.harvest(folder)
    tables = ("SELECT * FROM evidence.context_rows", "SELECT * FROM features ORDER BY feature")
    with Store.open(tmp_path / "x.duckdb", create=True) as store:
        setup.merge(store, folder)
        before = [store.rows(query) for query in tables]
        unit = folder.pieces()[0].path
        for name in TABLES:
            path = unit / f"{name}.parquet"
            whole = bytearray(path.read_bytes())
            flipped = whole.copy()
            flipped[len(flipped) // 3] ^= 4
            path.write_bytes(flipped)
            with pytest.raises(DamagedError, match=f"{path} is damaged.*delete its folder"):
                setup.merge(store, folder)
            path.write_bytes(whole)
        shutil.rmtree(unit)
        again = setup.folder(tmp_path / "work")
        setup.harvest(again)
        setup.merge(store, again)
        assert [store.rows(query) for query in tables] == before


def test_rows_lie_in_order_and_settings_are_put_back(setup: Setup, tmp_path: Path) -> None:
    folder = setup.folder(tmp_path / "work")
    setup.harvest(folder)
    with Store.open(tmp_path / "x.duckdb", create=True) as store:
        names = ("memory_limit", "threads", "preserve_insertion_order")
        query = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
        before = store.rows(query)
        dictionary_id = setup.merge(store, folder)
        assert store.rows(query) == before
        ids = [row[0] for row in store.rows("SELECT context_id FROM evidence.context_rows")]
        assert ids == list(range(ids[0], ids[0] + len(ids))) and ids[0] == 1 << 40
        key = "(dictionary_id, feature, list_position(['explain','select','report'], split), "
        key += "list_position(['top','sampled','negative'], kind), "
        key += "list_position(['same_token','neighbour','random'], tier), rank)"
        rows = store.rows(f"SELECT {key} FROM evidence.context_rows")
        assert [r[0][:4] for r in rows] == sorted(r[0][:4] for r in rows)
        drawn = stored_contexts(store, dictionary_id, 5, seed=3)
        assert [c.context_id for c in drawn] == [c.context_id for c in stored_contexts(store, dictionary_id, 5, seed=3)]
        assert len(drawn) == 5
    with duckdb.connect(str(tmp_path / "x.evidence.duckdb"), read_only=True) as con:
        row = con.execute("SELECT n_contexts, (SELECT count(*) FROM contexts) FROM harvest_info").fetchone()
        assert row is not None and row[0] == row[1] == len(ids)


def test_every_part_of_a_merge_is_counted(setup: Setup, tmp_path: Path) -> None:
    folder, steps = setup.folder(tmp_path / "work"), RecordedSteps()
    setup.harvest(folder)
    with Store.open(tmp_path / "x.duckdb", create=True) as store:
        setup.merge(store, folder, counting=steps)
        ((n_windows,),) = store.rows("SELECT count(*) FROM evidence.windows")
    windows = (n_windows, "windows")
    assert steps.totals == {
        "choosing contexts": (6, "steps"), "decoding windows": windows, "writing windows": windows,
        "writing contexts": (setup.sae.d_sae, "features"),
    }  # fmt: skip


@pytest.mark.slow
def test_a_memory_limit_that_is_too_small_costs_memory_and_not_the_merge(setup: Setup, tmp_path: Path) -> None:
    folder = setup.folder(tmp_path / "work")
    setup.harvest(folder)
    rows = []
    for number, limit in enumerate(("1MiB", None)):
        with Store.open(tmp_path / f"{number}.duckdb", create=True) as store:
            dictionary_id = setup.merge(store, folder)
            source = merge_source(folder.complete(), setup.sae, setup.text, SMALL)
            target = MergeTarget(dictionary_id, 1, store.harvests(dictionary_id)[0].harvest_id)
            merge_units(store, source, target, SMALL, memory_limit=limit)
            rows.append(store.rows("SELECT * EXCLUDE (context_id, window_id) FROM evidence.context_rows"))
    assert rows[0] == rows[1] and rows[0]
