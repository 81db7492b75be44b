"""What is acknowledged stays: kill -9, a WAL deleted or cut short, a full disk."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from support.store_fixtures import child

from autointerp.errors import DamagedError, DiskFullError
from autointerp.store import Store
from autointerp.store.query import run_query
from autointerp.store.safety.row_ledger import LedgerLine, RowLedger

WRITER = """
    from autointerp.store import Store
    from support.store_fixtures import call
    store = Store.open(sys.argv[1], create=True)
    i = 0
    while True:
        group = [call(i + j) for j in range(20)]
        store.insert_calls(group)
        i += 20
        print(i, flush=True)
"""


def killed_after(path: Path, groups: int) -> int:
    """Rows that a writing process had acknowledged when it was killed with SIGKILL."""
    process = child(WRITER, path)
    assert process.stdout is not None
    for _ in range(groups):
        assert process.stdout.readline(), process.stderr.read() if process.stderr else ""
    os.kill(process.pid, signal.SIGKILL)
    rest, _ = process.communicate()
    more = [int(line) for line in rest.split()]
    return more[-1] if more else groups * 20


def test_kill_loses_no_acknowledged_row(tmp_path: Path) -> None:
    for round_ in range(3):
        path = tmp_path / f"{round_}.duckdb"
        acknowledged = killed_after(path, 3 + 4 * round_)
        with Store.open(path) as store:
            n = store.rows("SELECT count(*) FROM llm_calls")[0][0]
            assert n >= acknowledged
            assert n % 20 == 0  # groups are whole
            assert store.spent().requests == n
        with Store.open(path) as store:
            assert store.rows("SELECT count(*) FROM llm_calls") == [(n,)]


def test_a_link_leads_to_the_rows_in_the_wal_too(tmp_path: Path) -> None:
    """DuckDB looks for the WAL beside the name that it is given."""
    path, link = tmp_path / "x.duckdb", tmp_path / "elsewhere" / "y.duckdb"
    acknowledged = killed_after(path, 5)
    link.parent.mkdir()
    link.symlink_to(path)
    assert path.with_name("x.duckdb.wal").stat().st_size
    count = "SELECT count(*) FROM llm_calls"
    assert run_query(link, count)[1][0][0] >= acknowledged
    for read_only in (True, False):
        with Store.open(link, read_only=read_only) as store:
            assert store.path == path and store.rows(count)[0][0] >= acknowledged
    assert list(link.parent.iterdir()) == [link]


def test_lost_wal_is_found_and_nothing_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    acknowledged = killed_after(path, 10)
    names = ["x.duckdb", "x.duckdb.wal", "x.duckdb.ledger"]
    assert all((tmp_path / name).exists() for name in names)
    wal = (tmp_path / "x.duckdb.wal").read_bytes()
    for share in (None, 0.0, 0.1, 0.5, 0.9):
        folder = tmp_path / f"cut{share}"
        folder.mkdir()
        for name in names:
            shutil.copy(tmp_path / name, folder / name)
        cut = folder / "x.duckdb.wal"
        if share is None:
            cut.unlink()
        else:
            cut.write_bytes(wal[: int(len(wal) * share)])
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        for read_only in (True, False):
            with pytest.raises(DamagedError) as caught:
                Store.open(folder / "x.duckdb", read_only=read_only)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
        assert caught.value.exit_code == 7
        assert re.search(r"llm_calls: \d+ missing, commits: \d+ missing", str(caught.value))
        # The way out that the message names.
        (folder / "x.duckdb.ledger").rename(folder / "kept")
        with Store.open(folder / "x.duckdb") as store:
            assert store.rows("SELECT count(*) FROM llm_calls")[0][0] < acknowledged
    with Store.open(path) as store:
        assert store.rows("SELECT count(*) FROM llm_calls")[0][0] >= acknowledged


def test_flipped_wal_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    killed_after(path, 10)
    wal = path.with_name("x.duckdb.wal")
    raw = bytearray(wal.read_bytes())
    raw[len(raw) // 2] ^= 1
    wal.write_bytes(bytes(raw))
    with pytest.raises(DamagedError):
        Store.open(path)
    assert wal.read_bytes() == bytes(raw)


def test_an_update_that_is_lost_is_found_too(tmp_path: Path) -> None:
    """Row counts alone would not show it: the answer to a call that had given up replaces a row."""
    path = tmp_path / "x.duckdb"
    with Store.open(path, create=True) as store:
        first = store.ledger.last()
    code = """
        import os
        from autointerp.store import Store
        store = Store.open(sys.argv[1])
        store.set_label_choice(1, "contexts", None)
        os._exit(0)
    """
    process = child(code, path)
    process.communicate()
    assert process.returncode == 0
    assert RowLedger(path.with_name("x.duckdb.ledger")).last().commit_number == first.commit_number + 1
    path.with_name("x.duckdb.wal").unlink()
    with pytest.raises(DamagedError, match="commits: 1 missing"):
        Store.open(path)


def test_ledger_of_another_store_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    Store.open(path, create=True).close()
    ledger = path.with_name("x.duckdb.ledger")
    kept = ledger.read_bytes()
    ledger.write_bytes(kept + b'{"store_id": "torn')  # killed while it wrote
    Store.open(path).close()
    assert ledger.read_bytes() == kept
    ledger.write_bytes(b"not json\n")
    with pytest.raises(DamagedError, match="not readable"):
        Store.open(path)
    Store.open(tmp_path / "y.duckdb", create=True).close()
    shutil.copy(tmp_path / "y.duckdb.ledger", ledger)
    with pytest.raises(DamagedError, match="another store"):
        Store.open(path)


def test_ledger_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autointerp.store.safety.row_ledger.COMPACT_ABOVE", 300)
    ledger = RowLedger(tmp_path / "l")
    for n in range(50):
        ledger.append(LedgerLine("s", n, {"runs": n}))
    assert ledger.last() == LedgerLine("s", 49, {"runs": 49})
    assert ledger.path.stat().st_size < 600


def test_full_disk(tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: the write fails, the error says so, acknowledged rows are kept."""
    path = tmp_path / "x.duckdb"
    Store.open(path, create=True).close()
    code = """
        import resource, signal
        from autointerp.errors import DiskFullError
        from autointerp.store import Store
        from support.store_fixtures import call
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = Store.open(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
        done = 0
        try:
            while True:
                store.insert_calls([call(done + i, reply=f"{done}" + "x" * 3000) for i in range(50)])
                done += 50
        except DiskFullError as error:
            print(done, error.exit_code)
        try:
            store.insert_calls([call(10**6)])
        except DiskFullError:
            print("still full")
        import os; os._exit(0)
    """
    process = child(code, path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    lines = out.splitlines()
    done, exit_code = map(int, lines[0].split())
    assert (exit_code, lines[1]) == (DiskFullError.exit_code, "still full")
    assert done > 0
    with Store.open(path) as store:
        assert store.rows("SELECT count(*) FROM llm_calls WHERE feature < ?", [done]) == [(done,)]
