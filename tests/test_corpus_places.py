"""Where a corpus is: links, pipes, places that the system refuses, and folders that `save_to_disk` wrote."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.corpus_reading import JSONL, TEXTS, read_texts

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.source_files import source_files
from autointerp.corpus.sources import read_documents
from autointerp.errors import InputError


def test_links_out_of_a_folder_are_not_followed_but_told(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a private key")
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("text")
    (folder / "sub" / "b.txt").symlink_to("../a.txt")
    (folder / "c.txt").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "d.txt")
    for source in (folder, folder / "*" / "*.txt", folder / "*.txt"):
        texts, report = read_texts(source)
        assert set(texts) == {"text"}
        assert report.n_skipped == ({"link_out": 1} if source.name != "*.txt" or source.parent == folder else {})
    assert read_texts(tmp_path / "corpus" / "c.txt")[0] == ["a private key"], "a file that is named is read"
    (folder / "a.txt").unlink()
    (folder / "sub" / "b.txt").unlink()
    with pytest.raises(InputError, match="links that lead out of the folder are not followed .c.txt."):
        read_texts(folder)


def test_a_snapshot_of_the_hubs_cache_is_all_links_and_is_read(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--o--d" / "snapshots" / "abc"
    (snapshot / "data").mkdir(parents=True)
    (tmp_path / "datasets--o--d" / "blobs").mkdir()
    (tmp_path / "datasets--o--d" / "blobs" / "1234").write_text(JSONL)
    (snapshot / "data" / "a.jsonl").symlink_to("../../../blobs/1234")
    (snapshot / "b.txt").symlink_to("/etc/hostname")
    for source in (snapshot, snapshot / "data"):
        assert read_texts(source)[0] == TEXTS


def test_a_pipe_or_device_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a regular file"):
            source_files(CorpusConfig(source=str(source)))


def test_a_place_that_the_system_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for source in ("x" * 5000, "a\0b", str(loop), "~no-such-user-here/x"):
        with pytest.raises(InputError, match="cannot be read"):
            read_documents(CorpusConfig(source=source), CorpusReport())
    with pytest.raises(InputError, match="there is no file or folder"):
        read_documents(CorpusConfig(source=str(tmp_path / "a.txt" / "b")), CorpusReport())

    def walk(folder: Path, onerror: Callable[[OSError], None]) -> Any:
        onerror(PermissionError(13, "Permission denied", str(folder / "locked")))

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(InputError, match="locked cannot be read: Permission denied"):
        read_texts(tmp_path)


class SavedDataset:
    """What `datasets.load_from_disk` gives, as far as it is used."""

    column_names = ("text", "n")

    def __iter__(self) -> Any:
        return iter([{"text": text, "n": i} for i, text in enumerate(TEXTS)])


def test_a_saved_dataset_is_opened_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    (folder / "data-00000-of-00001.arrow").write_bytes(b"\xff\xff\xff\xff\x10\x01\0\0")
    (folder / "dataset_info.json").write_text('{\n "features": {}\n}')
    (folder / "state.json").write_text('{\n "_data_files": []\n}')
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="needs the package `datasets`"):
        read_texts(folder)
    asked: list[str] = []
    module = types.ModuleType("datasets")
    module.load_from_disk = lambda path: (asked.append(path), SavedDataset())[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    texts, report = read_texts(folder)
    assert texts == TEXTS and report.n_records == len(TEXTS) and asked == [str(folder)]
    with pytest.raises(InputError, match=r"has no column 'body'; it has text, n"):
        read_texts(folder, text_field="body")
    splits = tmp_path / "saved" / "dataset_dict.json"
    splits.write_text('{"splits": ["test", "train"]}')
    assert read_texts(tmp_path / "saved")[0] == TEXTS and asked[-1] == str(folder)
    splits.write_text('{"splits": ["test", "validation"]}')
    with pytest.raises(InputError, match="holds the splits test, validation; name the folder of one"):
        read_texts(tmp_path / "saved")
    for nonsense in ("[" * 100_000, '{"splits": 7}', "{}", ""):
        splits.write_text(nonsense)
        with pytest.raises(InputError, match="dataset_dict.json cannot be read"):
            read_texts(tmp_path / "saved")


def test_a_real_saved_dataset(tmp_path: Path) -> None:
    datasets, arrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    table = datasets.table.InMemoryTable(arrow.table({"text": TEXTS}))
    saved = datasets.Dataset(table, fingerprint="f")
    datasets.DatasetDict({"test": saved, "train": saved}).save_to_disk(str(tmp_path / "d"))
    for folder in (tmp_path / "d", tmp_path / "d" / "test"):
        assert read_texts(folder)[0] == TEXTS
    torn = next((tmp_path / "d" / "test").glob("*.arrow"))
    torn.write_bytes(torn.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be opened"):
        read_texts(tmp_path / "d" / "test")
