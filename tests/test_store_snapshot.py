"""Readers see a whole, recent copy of the store while another process writes to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest
from support.store_fixtures import add_features, call, child, filled, write_evidence

from autointerp.cli import app
from autointerp.errors import DamagedError, InputError, MismatchError, StoreBusyError
from autointerp.store import Store
from autointerp.store.evidence_file import has_known_tiles
from autointerp.store.query import run_query
from autointerp.store.safety import bare_reading, snapshot
from autointerp.store.safety.paths import snapshot_path_of, unfinished_snapshot_of
from autointerp.store.safety.reading import open_for_reading
from autointerp.store.safety.snapshot import SnapshotPublisher, open_for_writing

SECONDS = 0.2
# Every commit adds one call and one explanation: a reader that ever counts differently many saw half of one.
WRITER = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from support.store_fixtures import call, explanation
from autointerp.store.safety.snapshot import open_for_writing

with open_for_writing(Path({path!r}), snapshot_seconds={seconds}) as store:
    for i in range(1_000_000):
        store.insert_group([call(i, reply="r" * 100)], [explanation(i % 6, seed=i)], [])
        print(i, time.time(), flush=True)
        time.sleep(0.002)
"""


@contextmanager
def writer(path: Path, seconds: float = SECONDS) -> Iterator[subprocess.Popen[bytes]]:
    """A process that commits in a loop; killed at the end, its printed lines in `written(path)`."""
    code = WRITER.format(tests=str(Path(__file__).parent), path=str(path), seconds=seconds)
    with (
        open(path.with_suffix(".log"), "wb") as log,
        subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def written(path: Path) -> list[tuple[int, float]]:
    """(number, time) of every commit that the writer has acknowledged."""
    lines = path.with_suffix(".log").read_text().split("\n")[:-1]
    return [(int(line.split()[0]), float(line.split()[1])) for line in lines]


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.duckdb"
    filled(path)[0].close()
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = app.guarded(lambda: app.app(list(arguments), standalone_mode=False), False)
    return code, *capsys.readouterr()


def test_commands_read_while_another_process_writes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = (
        "SELECT (SELECT count(*) FROM llm_calls) AS calls, (SELECT count(*) FROM explanations) AS labels, "
        "(SELECT count(*) FROM contexts) AS contexts, (SELECT count(reply) FROM llm_calls) AS replies"
    )
    seen = []
    with writer(path) as process:
        wait_for(lambda: snapshot_path_of(path).exists() and len(written(path)) > 20)
        for _ in range(3):
            before = written(path)
            asked = time.time()
            code, out, err = run(capsys, "query", counts, "--store", str(path), "--format", "json")
            assert code == 0, err
            (row,) = json.loads(out)
            assert row["calls"] == row["labels"], "half a commit"
            assert row["contexts"] == 105 and row["replies"] == 0
            told = re.search(rf"reading a snapshot from (\d+) s ago: process {process.pid} is writing the store", err)
            assert told, err
            # What was committed longer ago than the interval (and a generous allowance for a busy machine) is there.
            assert row["calls"] > max((i for i, t in before if t < asked - SECONDS - 4), default=-1)
            seen.append(row["calls"])
            time.sleep(SECONDS)
        assert seen == sorted(seen) and seen[-1] > seen[0]

        code, out, err = run(capsys, "status", "--store", str(path), "--json")
        assert code == 0 and 0 <= json.loads(out)["snapshot_age_s"] < 10, err
        for command in (["show", "0"], ["search", "words"], ["compare"], ["verify", "--leakage-only"]):
            code, _, err = run(capsys, *command, "--store", str(path))
            # verify finds what there is to find here, the same words in every split, and so ends with 1
            assert code == (command[0] == "verify") and "reading a snapshot" in err, (command, err)
        with open_for_reading(path) as store, pytest.raises(Exception, match="opened for reading only"):
            store.set_label_choice(1, "contexts", None)
        for sql in ("DELETE FROM features", "SELECT * FROM read_text('/etc/passwd')", "SET memory_limit = '9GB'"):
            with pytest.raises(InputError):
                run_query(path, sql)
        assert process.poll() is None, path.with_suffix(".log").read_text()


@pytest.mark.slow
def test_a_killed_writer_leaves_a_store_that_opens(path: Path) -> None:
    """Killed at many moments, most of them while a snapshot is made (publishing never pauses here)."""
    new = unfinished_snapshot_of(path)
    for turn in range(2):
        with writer(path, seconds=0.001) as process:
            wait_for(lambda: snapshot_path_of(path).exists() and bool(written(path)))
            if turn:
                wait_for(new.exists)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            n = len(written(path))
        leftover = snapshot_path_of(path)
        assert leftover.exists()
        with open_for_reading(path) as store:  # the lock is gone: the store itself, not the older snapshot
            assert store.snapshot_age_s is None
            held = store.row_counts()
            assert held["llm_calls"] == held["explanations"] >= n
        with Store.open(path) as store:
            assert not leftover.exists() and not new.exists()
            with pytest.raises(StoreBusyError, match="publishes x.snapshot.duckdb"):
                open_for_reading(path)


def test_the_snapshot_goes_with_its_run(path: Path) -> None:
    with open_for_writing(path, snapshot_seconds=SECONDS) as store:
        wait_for(lambda: snapshot_path_of(path).exists())
        inode = snapshot_path_of(path).stat().st_ino
        with open_for_reading(path) as seen:
            assert seen.row_counts() == store.row_counts()
            assert seen.check() == []
        shown = snapshot_path_of(path).stat().st_mtime
        wait_for(lambda: snapshot_path_of(path).stat().st_mtime > shown)
        assert snapshot_path_of(path).stat().st_ino == inode, "nothing was committed, yet it was copied again"
        store.insert_calls([call(1)])
        wait_for(lambda: open_for_reading(path).row_counts()["llm_calls"] == 1)
    assert sorted(f.name for f in path.parent.iterdir()) == ["x.duckdb", "x.duckdb.ledger", "x.evidence.duckdb"]
    with open_for_writing(path, snapshot_seconds=0.0), pytest.raises(StoreBusyError):
        run_query(path, "SELECT 1")
    assert run_query(path, "SELECT 1")[1] == [(1,)]


@pytest.mark.parametrize("read_only", [True, False])
def test_a_run_waits_for_readers_and_not_for_a_writer(
    path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    code = "import duckdb; c = duckdb.connect(sys.argv[1], read_only=bool(sys.argv[2])); print('open', flush=True)"
    holder = child(f"{code}; sys.stdin.read()", path, "1" if read_only else "")
    assert holder.stdout is not None and holder.stdin is not None and holder.stdout.readline() == "open\n"
    told: list[str] = []
    monkeypatch.setattr(snapshot, "READERS_WAIT_S", 0.0)
    with pytest.raises(StoreBusyError, match="in use"), open_for_writing(path, say=told.append):
        pass
    monkeypatch.setattr(snapshot, "READERS_WAIT_S", 60.0)

    def say(message: str) -> None:
        told.append(message)
        holder.communicate()

    try:
        with open_for_writing(path, say=say) as store:
            assert read_only and store.rows("SELECT 1") == [(1,)]
    except StoreBusyError as error:
        assert not read_only and str(holder.pid) in str(error)
    assert told == ([f"waiting for those who read {path}, 60 s at most"] if read_only else [])
    if holder.poll() is None:
        holder.communicate()


def test_a_reader_waits_for_the_first_snapshot(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(path) as store:
        publisher = SnapshotPublisher(store, SECONDS)
        monkeypatch.setattr(bare_reading.time, "sleep", lambda seconds: publisher.publish())
        with open_for_reading(path) as seen:
            assert seen.snapshot_age_s is not None


def test_a_run_does_not_wait_for_its_own_process(path: Path) -> None:
    with (
        Store.open(path, read_only=True),
        pytest.raises(StoreBusyError, match="already open in this process"),
        open_for_writing(path, say=pytest.fail),
    ):
        pass


@pytest.mark.slow
def test_a_snapshot_is_never_read_with_other_evidence(path: Path) -> None:
    with Store.open(path) as store:
        publisher = SnapshotPublisher(store, 60.0)
        publisher.publish()
        assert open_for_reading(path).current_harvest(1) == 1
        harvest = store.add_harvest(1, 1, 43, {"context_tokens": 4})
        new = path.with_name("new.duckdb")
        write_evidence(new, store.store_id, 1, harvest)
        store.replace_evidence(new)
        assert store.evidence_replaced.is_set()
        for reader in (lambda: open_for_reading(path), lambda: run_query(path, "SELECT 1")):
            with pytest.raises(StoreBusyError, match="new evidence"):
                reader()
        add_features(store, 1, harvest)
        publisher.publish()
        assert open_for_reading(path).current_harvest(1) == harvest


def test_new_evidence_is_published_at_once(path: Path) -> None:
    with open_for_writing(path, snapshot_seconds=1000.0) as store:
        wait_for(lambda: snapshot_path_of(path).exists())
        harvest = store.add_harvest(1, 1, 43, {"context_tokens": 4})
        write_evidence(path.with_name("new.duckdb"), store.store_id, 1, harvest)
        with store.exclusive():
            store.replace_evidence(path.with_name("new.duckdb"))
            add_features(store, 1, harvest)

        def is_new() -> bool:
            try:
                with open_for_reading(path) as seen:
                    return seen.current_harvest(1) == harvest
            except StoreBusyError:
                return False

        wait_for(is_new)


def test_a_snapshot_of_another_store_is_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "x.duckdb"
    with Store.open(other, create=True) as store:
        SnapshotPublisher(store, 60.0).publish()
        with Store.open(path):
            os.replace(snapshot_path_of(other), snapshot_path_of(path))
            with pytest.raises(MismatchError, match="another store"):
                open_for_reading(path)


def test_who_looks_through_all_catalogs_only_delays_a_snapshot(path: Path) -> None:
    """The transaction of another thread that has looked through the tables of all attached files holds on to the copy,
    also when the copy was detached."""
    new = unfinished_snapshot_of(path)
    with Store.open(path) as store:
        copying, other = store.con.cursor(), store.con.cursor()
        copying.execute(f"ATTACH '{new}' AS copy")
        copying.execute("CREATE TABLE copy.store_state AS FROM store_state")
        other.begin()
        other.execute("SELECT count(*) FROM duckdb_tables()").fetchall()
        copying.execute("DETACH copy")
        with pytest.raises(duckdb.ResourceInUseException):
            snapshot.connect(new)
        ending = threading.Timer(0.3, other.commit)
        ending.start()
        snapshot._connect_once_let_go(new).close()
        ending.join()
        # What is asked for every label looks at the evidence alone.
        copying.execute(f"ATTACH '{new}' AS copy")
        other.begin()
        assert has_known_tiles(other)
        copying.execute("DETACH copy")
        snapshot.connect(new).close()
        other.commit()


def test_what_cannot_be_published_is_told_and_does_not_end_the_run(path: Path) -> None:
    told: list[str] = []
    blocked = unfinished_snapshot_of(path)
    with Store.open(path) as store:
        blocked.mkdir()
        with SnapshotPublisher(store, 0.01, told.append):
            wait_for(lambda: bool(told))
            store.insert_calls([call(1)])
            blocked.rmdir()
            wait_for(lambda: snapshot_path_of(path).exists())
        assert ["could not be made" in message for message in told].count(True) == 1
        assert open_for_reading(path).row_counts()["llm_calls"] == 1
        snapshot_path_of(path).write_bytes(b"x" * 10_000)
        with pytest.raises((StoreBusyError, DamagedError), match="cannot be read"):
            open_for_reading(path)
