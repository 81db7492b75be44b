"""Names from a configuration and files that a user asks for: where they are written, and what they leave alone."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run
from support.store_fixtures import copied

from autointerp.config_file import from_table
from autointerp.errors import InputError
from autointerp.stages.session import Session, file_name
from autointerp.store import Selection, Store
from autointerp.store.progress_file import ProgressFile
from autointerp.store.query import run_query
from autointerp.store.safety.paths import evidence_path_of
from autointerp.store.safety.reading import open_for_reading
from autointerp.store.safety.recover import recover
from autointerp.store.safety.snapshot import SnapshotPublisher, open_for_writing
from autointerp.terminal import Terminal

EVIL = ["../x", "/etc/passwd", "..", ".", "", "a/../../b", "a\\..\\b", "-rf", "~", "a\nb", "x" * 5000, "\u202e", "CON/"]


@given(st.one_of(st.sampled_from(EVIL), st.text(), st.text("./\\~")), st.text())
def test_a_dictionary_name_is_one_part_of_a_path(name: str, other: str) -> None:
    part = file_name(name)
    assert Path(part).name == part and part not in (".", "..") and len(part) <= 120 and part.isascii()
    assert name == other or file_name(other) != part


@pytest.mark.parametrize("name", EVIL)
def test_what_a_dictionary_is_made_of_stays_beside_the_store(name: str, tmp_path: Path) -> None:
    store = tmp_path / "inside" / "x.duckdb"
    config = from_table({"sae": [{"hookpoint": "h", "name": name}], "store": {"path": str(store)}})
    session = Session(config, Terminal().silent())
    for folder in (session.sae_folder(config.sae[0]), session.work_folder(config.sae[0])):
        inside = Path(os.path.normpath(folder)).relative_to(store.parent)
        assert len(inside.parts) == 2


@pytest.mark.parametrize("key", ["store.path", "corpus.source", "model.name", "explain.explainer"])
def test_a_nul_is_refused(key: str) -> None:
    with pytest.raises(InputError, match=f"{key} holds a NUL"):
        from_table({}, {key: "a\0b"})


@pytest.fixture
def store(tmp_path: Path, filled_store: Path) -> Path:
    return copied(filled_store, tmp_path)


def write(capsys: pytest.CaptureFixture[str], store: Path, output: Path, sql: str = "SELECT 1 AS one") -> int:
    return run(capsys, "query", sql, "--store", str(store), "--format", "csv", "-o", str(output))[0]


def test_a_result_takes_the_place_of_a_link_not_of_what_it_leads_to(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("precious")
    for target in (other, tmp_path / "nowhere", store):
        link = tmp_path / "out.csv"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert write(capsys, store, link) == 0
        assert not link.is_symlink() and link.read_text() == "one\n1\n"
    assert other.read_text() == "precious" and not (tmp_path / "nowhere").exists()


def test_a_result_comes_whole_or_not_at_all(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.csv"
    output.write_text("before")
    output.chmod(0o600)
    fails = "SELECT CASE WHEN i < 400000 THEN i ELSE error('at last') END AS i FROM range(500000) AS r(i)"
    assert write(capsys, store, output, fails) == 2
    assert output.read_text() == "before"
    assert write(capsys, store, output) == 0
    assert output.read_text() == "one\n1\n" and stat.S_IMODE(output.stat().st_mode) == 0o600
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize(
    "name", ["x.duckdb", "x.evidence.duckdb", "x.duckdb.ledger", "x.duckdb.wal", "x.snapshot.duckdb"]
)
def test_no_result_takes_the_place_of_the_store(
    name: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "sub").mkdir()
    for output in (tmp_path / name, tmp_path / "sub" / ".." / name):
        assert write(capsys, store, output) == 2
    config = tmp_path / "autointerp.toml"
    config.write_text('[[sae]]\nhookpoint = "h"\n[store]\npath = "x.duckdb"\n')
    code, _, err = run(capsys, "evaluate", "-c", str(config), "--report", str(tmp_path / name))
    assert code == 2 and "belongs to the store" in err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name in before} == before


@pytest.mark.parametrize("name", ['d\'ir "q" ünï/s \'t".duckdb', 'a"b.duckdb', "[a]*/s[1]*.duckdb", "damaged.duckdb"])
def test_a_store_of_any_name_is_written_read_and_published(name: str, filled_store: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for file in filled_store.parent.iterdir():
        shutil.copy(file, path.with_name(path.stem + file.name.removeprefix("x")))
    with open_for_writing(path, snapshot_seconds=0) as opened:
        SnapshotPublisher(opened, 60).publish()
        assert opened.selected_features(1, Selection(where="feature > 3")) == [4, 5]
        with open_for_reading(path) as seen:
            assert seen.snapshot_age_s is not None and seen.rows("SELECT count(*) FROM contexts") == [(105,)]
    evidence_path_of(path).unlink()
    assert recover(path).lines[-1].endswith("`autointerp run` goes on from there")
    assert run_query(path, "SELECT count(*) FROM dictionaries")[1] == [(1,)]


@pytest.mark.parametrize(
    ("name", "told"), [("a?b/x.duckdb", "takes what follows a question mark"), ("Evidence.duckdb", "can be called Ev")]
)
def test_a_name_that_duckdb_takes_for_something_else_is_refused(name: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for use in (
        lambda: Store.open(path, create=True), lambda: open_for_reading(path), lambda: recover(path),
        lambda: run_query(path, "SELECT 1"), lambda: ProgressFile(path, "harvest", "shard-0-of-2"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=told):
            use()
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_that_a_store_cannot_have_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "autointerp.toml"
    config.write_text('[store]\npath = "what?.duckdb"\n')
    code, out, _ = run(capsys, "doctor", "-c", str(config))
    assert code == 2 and "FAIL  store: no store can be at" in out


def test_what_is_no_file_is_no_store(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.duckdb")
    long, undecoded = tmp_path / ("x" * 181), tmp_path / os.fsdecode(b"\xff")
    for path, told in (
        (tmp_path, "is a folder"), (tmp_path / "pipe.duckdb", "or a pipe"), (Path("/dev/zero"), "a device"),
        (long, "would be too long"), (tmp_path / ("x" * 300), "File name too long"), (undecoded, "not valid Unicode"),
    ):  # fmt: skip
        for use in (
            lambda p: Store.open(p, create=True),
            open_for_reading,
            recover,
            lambda p: run_query(p, "SELECT 1"),
        ):
            with pytest.raises(InputError, match=told):
                use(path)


@pytest.mark.parametrize("name", [":memory:", "md:x.duckdb", "s3:x.duckdb"])
def test_a_relative_name_is_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Store.open(name, create=True).close()
    assert (tmp_path / name).stat().st_size > 0
    with Store.open(name, read_only=True) as store:
        assert store.path == tmp_path / name


def test_where_no_file_can_be(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write(capsys, store, tmp_path) == 2
    assert write(capsys, store, tmp_path / "none" / "out.csv") == 2
    read, fifo = None, tmp_path / "pipe"
    os.mkfifo(fifo)
    read = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write(capsys, store, fifo)
    os.close(read)
    assert stat.S_ISFIFO(fifo.lstat().st_mode), "a pipe is written to, not replaced"
