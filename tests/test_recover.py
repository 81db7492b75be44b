"""`autointerp recover`: what is set aside, what is kept, what is told, and that a run goes on from there."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
from support.damaged_store import ALIVE, CALLS, EVIDENCE, IN_FILE, IN_WAL, LEDGER, MAIN, WAL, bytes_of, content, group
from support.damaged_store import killed_store as make_killed_store
from support.known_words import WORDS, World, copy_of, job
from support.llm_server import LlmServer
from support.older_store import as_of_version_3
from support.store_fixtures import add_features, call, child, explanation, filled, write_evidence

from autointerp.cli import app
from autointerp.config import ExplainConfig
from autointerp.errors import DamagedError, InputError, StoreBusyError
from autointerp.explain.explaining import explain
from autointerp.store import Store
from autointerp.store.safety.paths import snapshot_path_of
from autointerp.store.safety.recover import Recovery, recover
from autointerp.store.safety.snapshot import SnapshotPublisher

BLOCK, FIRST_BLOCK = 262144, 3 * 4096
ALL = CALLS * (IN_FILE + IN_WAL)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_killed_store(tmp_path_factory.mktemp("killed"))


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    shutil.copytree(template, folder)
    return folder / MAIN


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = app.guarded(lambda: app.app(list(arguments), standalone_mode=False), False)
    return code, *capsys.readouterr()


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(bytes(data))


def told(recovery: Recovery) -> str:
    return "\n".join(recovery.lines)


def test_a_sound_store_is_left_alone(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = bytes_of(path.parent)
    code, out, _ = command(capsys, "recover", "--store", str(path))
    assert code == 0 and "nothing is wrong" in out
    assert recover(path).is_sound and bytes_of(path.parent) == before
    with pytest.raises(InputError, match="no store"):
        recover(path.with_name("other.duckdb"))


@pytest.mark.parametrize("damage", ["flip", pytest.param("flip_first", marks=pytest.mark.slow), "cut", "deleted"])
def test_a_damaged_wal(path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    wal = path.with_name(WAL)
    if damage == "flip":
        flip(wal, wal.stat().st_size // 2)
    elif damage == "flip_first":
        flip(wal, 3)
    elif damage == "cut":
        wal.write_bytes(wal.read_bytes()[: wal.stat().st_size // 2])
    else:
        wal.unlink()
    before = bytes_of(path.parent)
    with pytest.raises(DamagedError, match="autointerp recover"):
        Store.open(path)
    code, plan, _ = command(capsys, "recover", "--dry-run", "--store", str(path))
    assert code == 0 and "would be" in plan
    assert bytes_of(path.parent) == before
    code, out, err = command(capsys, "recover", "--store", str(path))
    assert code == 0, err
    after = bytes_of(path.parent)
    for name in (WAL, LEDGER):  # nothing is deleted: what was there lies beside it
        if name in before:
            (kept,) = [n for n in after if n.startswith(f"{name}.quarantined-")]
            assert after[kept] == before[name]
    lost = int(re.findall(r"lost: (\d+) rows of llm_calls", out)[0])
    assert f"{lost} LLM calls that were paid for" in out
    with Store.open(path) as store:
        n = store.rows("SELECT count(*) FROM llm_calls")[0][0]
        assert n + lost == ALL and n % CALLS == 0
        if damage in ("flip", "cut"):
            assert CALLS * IN_FILE < n < ALL, "what stands before the damage is kept"
        else:
            assert n == CALLS * IN_FILE
        for k in range(IN_FILE - 1, IN_FILE + IN_WAL):  # a run that goes on writes what is missing, and nothing twice
            store.insert_group(*group(k))
        assert store.row_counts()["llm_calls"] == ALL
        assert store.row_counts()["scores"] == len(ALIVE) * (IN_FILE + IN_WAL)
    assert recover(path).is_sound


def test_a_ledger_that_is_unreadable_or_another_stores(path: Path, tmp_path: Path) -> None:
    Store.open(tmp_path / "other.duckdb", create=True).close()
    for bad in (b"\x00not json\n", (tmp_path / "other.duckdb.ledger").read_bytes()):
        path.with_name(LEDGER).write_bytes(bad)
        with pytest.raises(DamagedError, match="autointerp recover"):
            Store.open(path)
        assert "row ledger" in told(recover(path))
        with Store.open(path) as store:
            assert store.row_counts()["llm_calls"] == ALL
    kept = [name for name in bytes_of(path.parent) if name.startswith(f"{LEDGER}.quarantined-")]
    assert len(kept) == 2


@pytest.mark.parametrize(
    "damage", ["flip", "missing", *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("foreign", "cut"))]
)
def test_evidence_is_set_aside_and_made_again(path: Path, damage: str) -> None:
    evidence = path.with_name(EVIDENCE)
    with Store.open(path) as store:
        whole = content(store)
        features = store.rows("SELECT * FROM features ORDER BY feature")
    if damage == "flip":
        flip(evidence, evidence.stat().st_size - BLOCK // 2)
    elif damage == "cut":
        evidence.write_bytes(evidence.read_bytes()[: BLOCK // 2])
    else:
        evidence.unlink()
        if damage == "foreign":
            write_evidence(evidence, "0" * 32, 1, 1)
    before = evidence.read_bytes() if evidence.exists() else None
    found = recover(path)
    assert not found.lost and "autointerp merge" in told(found) and "autointerp harvest" in told(found)
    after = bytes_of(path.parent)
    if before is not None:
        assert before in [data for name, data in after.items() if name.startswith(f"{EVIDENCE}.quarantined-")]
    (aside,) = path.parent.glob("x.features.parquet.quarantined-*")
    assert duckdb.sql(f"SELECT * FROM read_parquet('{aside}') ORDER BY feature").fetchall() == features
    with Store.open(path) as store:
        assert store.current_harvest(1) is None, "the next harvest would be skipped as done"
        assert store.row_counts()["llm_calls"] == ALL
        # What a merge does.
        new = path.with_name("new.duckdb")
        write_evidence(new, store.store_id, 1, 1)
        store.replace_evidence(new)
        add_features(store, 1, 1)

        def without_counter(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
            return [row for row in rows if row[0] != "x.store_state"]

        assert without_counter(content(store)) == without_counter(whole)
    assert recover(path).is_sound


def damage_table(path: Path, table: str, apart_from: tuple[str, ...]) -> None:
    """Flips a bit in a block that holds rows of `table`, and of none of the others."""
    of = "SELECT DISTINCT block_id FROM pragma_storage_info('{}') WHERE block_id >= 0"
    with duckdb.connect(str(path), read_only=True) as con:
        others = "".join(f" EXCEPT {of.format(other)}" for other in apart_from)
        blocks = con.execute(f"SELECT * FROM ({of.format(table)}{others}) ORDER BY block_id").fetchall()
    flip(path, FIRST_BLOCK + blocks[len(blocks) // 2][0] * BLOCK + 1000)


def test_a_damaged_main_file_is_copied_as_far_as_it_can_be_read(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n = 300_000
    with Store.open(path) as store, store.transaction() as con:
        con.register("noise", {"value": np.random.default_rng(0).random(n)})
        con.execute("INSERT INTO training_metrics SELECT 1, 1000 + row_number() OVER (), 'noise', value FROM noise")
        con.unregister("noise")
    with Store.open(path, read_only=True) as store:
        whole = {row[0]: row for row in content(store)}
        others = tuple(
            name for (name,) in store.rows("SELECT table_name FROM duckdb_tables()") if "training" not in name
        )
    damage_table(path, "training_metrics", tuple(o for o in others if f"x.{o}" in whole))
    before = bytes_of(path.parent)
    code, plan, _ = command(capsys, "recover", "--dry-run", "--store", str(path))
    assert code == 0 and "training_metrics" in plan and bytes_of(path.parent) == before
    code, out, err = command(capsys, "recover", "--store", str(path))
    assert code == 6 and "x.recovered.duckdb" in err, err
    assert {name: data for name, data in bytes_of(path.parent).items() if name in before} == before
    lost = int(re.findall(r"lost: ([\d,]+) rows of training_metrics", out)[0].replace(",", ""))
    assert 0 < lost <= 122_880  # less than the row group of the block
    with pytest.raises(InputError, match="exists already"):
        recover(path)
    (commands,) = re.findall(r"to go on with it: (.*)", out)
    for words in (part.split() for part in commands.split("; ")):
        if words[0] == "mkdir":
            (path.parent / words[1]).mkdir()
            continue
        for name in words[1:-1]:
            if (path.parent / name).exists():
                shutil.move(path.parent / name, path.parent / words[-1])
    with Store.open(path) as store:
        saved = {row[0]: row for row in content(store)}
        (kept,) = store.rows("SELECT count(*) FROM training_metrics")[0]
        assert kept == n + 40 - lost
        same = set(whole) - {"x.training_metrics", "x.schema_migrations", "x.settings", "x.store_state"}
        assert {name: saved[name] for name in same} == {name: whole[name] for name in same}
        store.insert_group(*group(99))
        assert store.row_counts()["llm_calls"] == ALL + CALLS
    assert recover(path).is_sound


def test_nothing_on_this_machine_is_copied_out_of_a_store_from_elsewhere(path: Path, tmp_path: Path) -> None:
    """A view in the place of a table, and a table of its name elsewhere so that it is looked for; another view fails,
    so that the store counts as damaged."""
    private = tmp_path / "private.txt"
    private.write_text("PRIVATE")
    with Store.open(path) as store:
        held = store.row_counts()
    with duckdb.connect(str(path)) as con:
        con.execute("CREATE SCHEMA other")
        for table, view in (
            (
                "explanations",
                f"SELECT k.* REPLACE (content AS text), 0 AS rowid FROM kept_explanations k, read_text('{private}')",
            ),
            ("scores", "SELECT error('unreadable') AS score_id"),
        ):
            con.execute(f"CREATE TABLE other.{table} (a INTEGER)")
            con.execute(f"ALTER TABLE {table} RENAME TO kept_{table}")
            con.execute(f"CREATE VIEW {table} AS {view}")
        ((read,),) = con.execute("SELECT DISTINCT text FROM explanations").fetchall()
    assert read == "PRIVATE"
    found = recover(path)
    assert found.recovered is not None
    assert {table: found.lost[table] for table in ("explanations", "scores")} == {
        table: held[table] for table in ("explanations", "scores")
    }
    with duckdb.connect(str(found.recovered), read_only=True) as con:
        assert con.execute("SELECT count(*) FROM explanations").fetchall() == [(0,)]
        assert con.execute("SELECT count(*) FROM llm_calls").fetchall() == [(held["llm_calls"],)] == [(ALL,)]


def test_nothing_readable_is_said_plainly_unless_a_snapshot_is_left(path: Path) -> None:
    with Store.open(path) as store:
        SnapshotPublisher(store, 60.0).publish()
        shutil.copy(snapshot_path_of(path), path.with_name("kept"))
    Store.open(path).close()
    for position in (100, 4096 + 20, 2 * 4096 + 20):
        flip(path, position)
    before = bytes_of(path.parent)
    with pytest.raises(DamagedError, match="nothing of .* can be read"):
        recover(path)
    assert bytes_of(path.parent) == before
    path.with_name("kept").rename(snapshot_path_of(path))
    with pytest.raises(DamagedError):
        Store.open(path)
    found = recover(path)
    assert found.recovered is not None and "without replies" in told(found)
    assert found.lost == {"llm_calls": ALL}  # calls without their reply are no calls
    for name in (MAIN, LEDGER):
        path.with_name(name).rename(path.with_name(f"away-{name}"))
    found.recovered.rename(path)
    with Store.open(path) as store:
        assert store.row_counts()["scores"] == len(ALIVE) * (IN_FILE + IN_WAL)
        store.insert_calls([call(1)])


def test_a_store_whose_main_file_is_gone(path: Path) -> None:
    path.unlink()
    with pytest.raises(DamagedError, match="autointerp recover"):
        Store.open(path, create=True)
    before = bytes_of(path.parent)
    assert "is missing" in told(recover(path))
    assert sorted(bytes_of(path.parent).values()) == sorted(before.values())
    Store.open(path, create=True).close()


def test_a_store_of_an_older_version_is_brought_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.duckdb"
    store, _, _ = filled(path)
    store.insert_explanations([explanation(0)])
    store.close()
    as_of_version_3(path)
    status, _, err = command(capsys, "search", "words", "--store", str(path))
    assert status == InputError.exit_code and "`autointerp recover`" in err
    before = bytes_of(path.parent)
    assert "would be brought up to date" in told(recover(path, dry_run=True))
    assert bytes_of(path.parent) == before
    status, out, _ = command(capsys, "recover", "--store", str(path))
    assert status == 0 and "was brought up to date" in out
    assert command(capsys, "search", explanation(0).text or "", "--store", str(path))[0] == 0
    assert "nothing was changed" in told(recover(path))


@pytest.mark.parametrize("read_only", [False, True])
def test_a_store_in_use_is_left_alone(path: Path, read_only: bool, capsys: pytest.CaptureFixture[str]) -> None:
    code = f"""
        from autointerp.store import Store
        store = Store.open(sys.argv[1], read_only={read_only})
        print("open", flush=True)
        sys.stdin.read()
    """
    process = child(code, path)
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        path.with_name(LEDGER).write_bytes(b"damaged\n")
        before = bytes_of(path.parent)
        status, _, err = command(capsys, "recover", "--store", str(path))
        assert status == StoreBusyError.exit_code == 75
        assert "in use" in err and (read_only or str(process.pid) in err)
        assert bytes_of(path.parent) == before
    finally:
        process.communicate()


def test_labels_lost_with_the_wal_are_asked_for_again(
    bare_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_waits: None
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    template, left = tmp_path / "run" / "x.duckdb", tmp_path / "left"
    template.parent.mkdir()
    with LlmServer(World()) as server:
        config = ExplainConfig(explainer="combined", model="test-model", base_url=server.url, reply="text")
        with copy_of(bare_world, template) as store:
            store.con.execute("CHECKPOINT")
            asyncio.run(explain(job(store, features="0-2"), config))
            store.con.execute("CHECKPOINT")
            asyncio.run(explain(job(store), config))
            paid = len(server.requests)
            shutil.copytree(template.parent, left)  # as a kill leaves it
            expected = sorted(store.rows("SELECT feature, text FROM explanations"))
        path = left / "x.duckdb"
        wal = path.with_name("x.duckdb.wal")
        flip(wal, 3)
        found = recover(path)
        assert 0 < found.lost["llm_calls"] < paid
        with Store.open(path) as store:
            kept = store.row_counts()["explanations"]
            assert 3 <= kept < len(WORDS)
            asyncio.run(explain(job(store), config))
            again = len(server.requests) - paid
            assert again <= found.lost["llm_calls"] + 1  # and a probe
            assert sorted(store.rows("SELECT feature, text FROM explanations")) == expected
            assert store.row_counts()["explanations"] == len(WORDS)
