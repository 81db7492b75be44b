"""Names from a configuration and files that a user asks for: where they are written, and what they leave alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run
from support.store_fixtures import filled

from autointerp.config_file import from_table
from autointerp.errors import InputError
from autointerp.stages.session import Session, file_name
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
def store(tmp_path: Path) -> Path:
    path = tmp_path / "x.duckdb"
    filled(path)[0].close()
    return path


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


def test_where_no_file_can_be(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write(capsys, store, tmp_path) == 2
    assert write(capsys, store, tmp_path / "none" / "out.csv") == 2
    read, fifo = None, tmp_path / "pipe"
    os.mkfifo(fifo)
    read = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write(capsys, store, fifo)
    os.close(read)
    assert stat.S_ISFIFO(fifo.lstat().st_mode), "a pipe is written to, not replaced"
