"""A store whose file, or evidence, is deleted or replaced while it is open: the command stops, and nothing is lost."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import run
from support.known_words import WORDS, World, copy_of
from support.llm_server import LlmServer
from support.store_fixtures import call, copied, explanation, score

from autointerp.errors import DamagedError
from autointerp.store import Store
from autointerp.store.safety.paths import evidence_path_of, saved_files_of
from autointerp.store.safety.recover import recover

LABELS = [explanation(feature) for feature in range(3)]


@pytest.fixture
def path(filled_store: Path, tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return copied(filled_store, tmp_path / "runs")


def contents(store: Store) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, of the evidence too, and of the views."""
    tables = store.rows("SELECT table_name FROM duckdb_tables() WHERE database_name = current_database()")
    views = store.rows("SELECT view_name FROM duckdb_views() WHERE database_name = current_database() AND NOT internal")
    evidence = [("evidence.context_rows",), ("evidence.windows",), ("evidence.harvest_info",)]
    names = [name for (name,) in tables + views + evidence]
    return {name: store.rows(f"SELECT * FROM {name} ORDER BY ALL") for name in names if name != "store_state"}


def delete(path: Path) -> None:
    path.unlink()


def delete_all(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def delete_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace(path: Path) -> None:
    """By another, older store, as a backup that is restored by a rename."""
    other = path.with_name("other.duckdb")
    Store.open(other, create=True).close()
    other.with_name("other.duckdb.ledger").unlink()
    os.replace(other, path)


@pytest.mark.parametrize("take_away", [delete, delete_all, delete_the_folder, replace])
def test_all_that_was_committed_is_saved_beside(path: Path, take_away: Callable[[Path], None]) -> None:
    store = Store.open(path)
    store.insert_calls([call(0)])
    store.insert_explanations(LABELS[:1])
    take_away(path)
    for number, write in enumerate(
        [lambda: store.insert_explanations(LABELS[1:2]), lambda: store.insert_calls([call(1)])]
    ):
        with pytest.raises(DamagedError, match=r"x\.duckdb was .* It stopped, and all that the store held is saved"):
            write()
        (saved,) = saved_files_of(path)
        assert number or saved.exists()
    held = contents(store)
    assert len(held["explanations"]) == 2 and len(held["llm_calls"]) == 2 and len(held["labels"]) == 6
    store.close()
    assert saved_files_of(path) == [saved]
    with Store.open(saved, read_only=True) as read:
        assert contents(read) == held
    with Store.open(saved) as again:  # it takes new rows as before
        again.insert_scores([score(LABELS[0])])
        again.insert_explanations(LABELS)
        assert again.rows("SELECT count(*) FROM explanations") == [(3,)]
    leftovers = {file.name for file in path.parent.iterdir() if file.suffix in (".new", ".wal")}
    assert not leftovers
    if take_away is replace:  # the other store is as it was put there
        path.with_name("x.duckdb.ledger").unlink()
        evidence_path_of(path).unlink()
        with Store.open(path) as other:
            assert other.rows("SELECT count(*) FROM explanations") == [(0,)]


def test_moved_to_its_place_the_saved_store_is_the_store(path: Path) -> None:
    with pytest.raises(DamagedError), Store.open(path) as store:
        store.insert_explanations(LABELS[:1])
        path.unlink()
        store.insert_explanations(LABELS[1:])
    (saved,) = saved_files_of(path)
    with pytest.raises(
        DamagedError, match=r"Move .*x\.saved-.*Z\.duckdb, where a run saved what it held, to its place"
    ):
        Store.open(path)
    assert str(saved) in "\n".join(recover(path, dry_run=True).lines)
    os.replace(saved, path)
    with Store.open(path) as store:
        assert store.rows("SELECT count(*) FROM explanations") == [(3,)]


def test_what_happens_after_the_last_commit_is_found_when_the_store_is_closed(path: Path) -> None:
    with pytest.raises(DamagedError, match="was deleted"), Store.open(path) as store:
        store.insert_explanations(LABELS)
        path.unlink()
    with Store.open(saved_files_of(path)[0], read_only=True) as read:
        assert read.rows("SELECT count(*) FROM explanations") == [(3,)]


@pytest.mark.parametrize("replaced", [False, True])
def test_evidence_that_is_taken_away_stops_the_run_and_is_saved(path: Path, replaced: bool) -> None:
    evidence = evidence_path_of(path)
    with pytest.raises(DamagedError, match=r"x\.evidence\.duckdb was .*the store is whole"), Store.open(path) as store:
        before = contents(store)
        if replaced:
            evidence.with_name("y").write_bytes(b"gone")
            os.replace(evidence.with_name("y"), evidence)
        else:
            evidence.unlink()
        store.insert_explanations(LABELS)
    (saved,) = path.parent.glob("x.saved-*.evidence.duckdb")
    assert not saved_files_of(path)
    os.replace(saved, evidence)
    with Store.open(path, read_only=True) as read:
        now = contents(read)
        assert len(now.pop("explanations")) == 3 and not before.pop("explanations")
        assert [now[name] for name in ("contexts", "windows", "features")] == [
            before[name] for name in ("contexts", "windows", "features")
        ]


def test_a_file_cut_short_in_place_is_noticed(path: Path) -> None:
    store = Store.open(path)
    store.insert_explanations(LABELS[:1])
    os.truncate(path, 7)
    with pytest.raises(DamagedError, match=r"x\.duckdb was overwritten while this command had it open"):
        store.insert_explanations(LABELS[1:])
    store.close()


def test_a_file_that_our_own_checkpoint_made_smaller_is_no_matter(path: Path) -> None:
    with Store.open(path) as store:
        store.con.execute("SET wal_autocheckpoint = '100KB'")
        sizes = []
        for i in range(20):
            with store.transaction() as con:
                n = 50_000 if i % 2 else 10
                con.execute(f"CREATE OR REPLACE TABLE filler AS SELECT md5(i::VARCHAR) FROM range({n}) t(i)")
            sizes.append(path.stat().st_size)
        store.insert_explanations(LABELS[:1])
    assert any(later < earlier for earlier, later in itertools.pairwise(sizes))


def test_other_names_and_new_evidence_are_no_matter(path: Path) -> None:
    """A hard link, a backup by copying, touched times, and evidence that the run itself replaces."""
    with Store.open(path) as store:
        os.link(path, path.with_name("another-name.duckdb"))
        shutil.copyfile(path, path.with_name("backup.duckdb"))
        os.utime(path)
        store.insert_explanations(LABELS[:1])
        new = path.with_name("new.duckdb")
        shutil.copyfile(store.evidence_path, new)
        store.replace_evidence(new)
        store.insert_explanations(LABELS[1:])
        assert store.displaced is None
    with Store.open(path, read_only=True) as read:
        assert read.rows("SELECT count(*) FROM explanations") == [(3,)]


def test_a_run_stops_paying(
    bare_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    path, config = tmp_path / "planted.duckdb", tmp_path / "autointerp.toml"
    copy_of(bare_world, path).close()
    answered = 0

    def label(body: dict[str, object]) -> str:
        nonlocal answered
        answered += 1
        if answered == 2:
            path.unlink()
        return f"label {answered}"

    with LlmServer(World(label=label)) as server:
        config.write_text(
            f'[explain]\nexplainer = "contexts"\nreply = "text"\nmodel = "m"\nbase_url = "{server.url}"\n'
            f'[llm]\nmax_connections = 1\n[store]\npath = "{path}"\n'
        )
        code, _, err = run(capsys, "explain", "-c", str(config))
        sent = len(server.requests)
    (saved,) = saved_files_of(path)
    assert code == 7 and f"error: {path} was deleted while this command had it open" in err and str(saved) in err
    assert sent <= 3 < len(WORDS)
    with Store.open(saved, read_only=True) as read:
        assert read.rows("SELECT count(*) FROM llm_calls WHERE status = 'ok'") == [(sent,)], "every answer is kept"
        assert read.rows("SELECT status, exit_code FROM runs WHERE command = 'explain'") == [("failed", 7)]
