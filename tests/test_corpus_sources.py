"""Sources: every format, what bad input does, and how much of it is too much."""

from __future__ import annotations

import gzip
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.formats import decoded_text, text_files
from autointerp.corpus.source_files import corpus_fingerprint, source_files
from autointerp.corpus.sources import read_documents
from autointerp.errors import InputError
from autointerp.records import Document


def read(source: Path | str, **options: Any) -> tuple[list[Document], CorpusReport]:
    render = options.pop("render_chat", None)
    report = CorpusReport()
    config = CorpusConfig(source=str(source), max_skipped_share=options.pop("max_skipped_share", 0.5), **options)
    return list(read_documents(config, report, render)), report


def names(documents: list[Document]) -> list[str]:
    return [d.name for d in documents]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, select: str) -> Path:
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    return path


# --- text -------------------------------------------------------------------------------------------------------------


def test_a_file_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\n")
    documents, report = read(path)
    assert [(d.name, d.text) for d in documents] == [("a.txt", "one\r\ntwo\n")]
    assert (report.n_records, report.n_documents, report.n_characters) == (1, 1, 9)


def test_a_folder_is_read_in_name_order_without_hidden_and_binary_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b.py", ".hidden", ".git/config", "c.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"text of {name}")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xfe\0")
    documents, report = read(tmp_path)
    assert names(documents) == ["a/b.py", "a/z.md", "b.txt", "c.txt"]
    assert report.n_skipped == {"not_text": 1} and report.n_unusable == 0


def test_a_glob_is_named_from_its_fixed_part(tmp_path: Path) -> None:
    for name in ("x/one/a.txt", "x/two/a.txt", "x/two/b.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert names(read(tmp_path / "x" / "*" / "*.txt")[0]) == ["one/a.txt", "two/a.txt"]
    assert names(read(tmp_path / "**" / "b.md")[0]) == ["x/two/b.md"]


@pytest.mark.parametrize("chunk", [5, 1_000_000])
def test_a_separator_parts_documents(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_text, "LINE_BYTES", chunk)
    monkeypatch.setattr(text_files, "LINE_BYTES", chunk)
    path = tmp_path / "a.txt"
    path.write_text("first document\n===\nsecond =\n=== \n===\nthird\n===\n")
    documents, report = read(path, document_separator="\n===\n")
    assert [d.text for d in documents] == ["first document", "second =\n=== ", "third"]
    assert names(documents) == ["a.txt:0", "a.txt:1", "a.txt:2"]
    assert report.n_records == 3 and not report.n_skipped


def test_gzip_is_read_and_a_truncated_one_counts(tmp_path: Path) -> None:
    packed = gzip.compress(b"packed text\n" * 100)
    (tmp_path / "a.txt.gz").write_bytes(packed)
    write = [json.dumps({"text": f"row {i}"}) for i in range(3)]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(write).encode()))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"{}" * 5000)[:-9])
    documents, report = read(tmp_path)
    assert names(documents) == ["a.txt.gz", "b.jsonl.gz:0", "b.jsonl.gz:1", "b.jsonl.gz:2"]
    assert report.n_skipped == {"unreadable": 1} and "c.jsonl.gz" in report.examples["unreadable"]


@pytest.mark.parametrize("chunk", [3, 1_000_000])
def test_bytes_that_are_not_utf8_are_replaced_and_counted(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded_text, "LINE_BYTES", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfcaf\xe9 and \xf0\x9f\x99\x82 and a \0 NUL \xf0\x9f")
    documents, report = read(path)
    assert documents[0].text == "caf\ufffd and 🙂 and a  NUL \ufffd"
    assert (report.n_replaced, report.n_stripped) == (1, 1)


def test_a_genuine_replacement_character_is_no_replacement(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a \ufffd b")
    assert read(tmp_path)[1].n_replaced == 0


# --- jsonl ------------------------------------------------------------------------------------------------------------


def test_jsonl_rows_are_documents_named_by_line_or_id(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "one", "id": "x"}, {"text": "two"}, {"text": "three", "id": 7}])
    assert names(read(path)[0]) == ["a.jsonl:0", "a.jsonl:1", "a.jsonl:2"]
    assert names(read(path, id_field="id")[0]) == ["x", "a.jsonl:1", "7"]


def test_bad_rows_are_skipped_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    deep = "[" * 200_000
    lines = ['{"text": "good"}', "{not json", deep, "[1, 2]", '{"body": "x"}', '{"text": 7}', '{"text": null}', ""]
    lines += ['{"text": ""}', '{"text": "also good"}', '{"text": "\\ud800 lone \\u0000 NUL \\ud83d\\ude42"}']
    path.write_bytes("\n".join(lines).encode() + b'\n{"text": "caf\xe9"}')
    documents, report = read(path, max_skipped_share=0.6)
    assert [d.text for d in documents] == ["good", "also good", " lone  NUL 🙂", "caf\ufffd"]
    assert report.n_skipped == {"bad_json": 2, "not_an_object": 1, "missing_field": 2, "wrong_type": 1, "empty": 1}
    assert (report.n_records, report.n_stripped, report.n_replaced) == (11, 1, 1)


def test_a_huge_line_is_skipped_in_pieces(tmp_path: Path) -> None:
    """80 MB in one line: the reader never holds more than a few MB of it."""
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with path.open("wb") as handle:
        handle.write(b'{"text": "before"}\n{"text": "')
        for _ in range(80):
            handle.write(b"x" * 1_000_000)
        handle.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    documents, report = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.text for d in documents] == ["before", "after"]
    assert report.n_skipped == {"line_too_long": 1}
    assert peak < 8_000_000


def test_too_many_bad_rows_end_it_and_the_fields_are_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"content": "x", "title": "y"} for _ in range(500)])
    with pytest.raises(InputError, match=r"100 of 100 records.*100 missing_field.*content, title"):
        read(path, max_skipped_share=0.05)
    rows: list[Any] = [{"text": f"row {i}"} for i in range(94)] + [{"tex": "y"}] * 6
    write_jsonl(path, rows)
    with pytest.raises(InputError, match=r"6 of 100 records.*Did you mean tex\?"):
        read(path, max_skipped_share=0.05)
    assert len(read(path, max_skipped_share=0.06)[0]) == 94


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text, jsonl, JSON, CSV or Parquet files"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(InputError, match="no usable text: 1 empty"):
        read(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(InputError, match="no usable text: no records"):
        read(tmp_path)


@pytest.mark.parametrize(("source", "message"), [("", "not set"), ("/nowhere/at/all", "no file or folder")])
def test_a_missing_source_is_an_error_at_once(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_documents(CorpusConfig(source=source), CorpusReport())


# --- parquet ----------------------------------------------------------------------------------------------------------


def test_parquet_streams_in_order(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a[1].parquet", "SELECT 'row ' || i AS text, i AS id FROM range(1000) t(i)")
    documents, report = read(path)
    assert [d.text for d in documents] == [f"row {i}" for i in range(1000)]
    assert names(documents)[999] == "a[1].parquet:999" and report.n_records == 1000
    assert names(read(path, id_field="id")[0])[:2] == ["0", "1"]


def test_parquet_without_the_column_names_those_it_has(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", "SELECT 'x' AS texts, 1 AS n")
    with pytest.raises(InputError, match=r"no column 'text'; it has texts, n\. Did you mean texts"):
        read(path)


def test_parquet_nulls_and_numbers_are_skipped_and_damage_is_counted(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", "SELECT CASE WHEN i < 8 THEN 'row' || i END AS text FROM range(10) t(i)")
    documents, report = read(tmp_path)
    assert len(documents) == 8 and report.n_skipped == {"missing_field": 2}
    (tmp_path / "b.parquet").write_bytes(b"PAR1 this is not Parquet PAR1")
    report = read(tmp_path)[1]
    assert report.n_skipped["unreadable"] == 1 and "b.parquet" in report.examples["unreadable"]


# --- chats, hf, stdlib ------------------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def render(messages: list[dict[str, str]]) -> str:
    if messages[0]["role"] != "user":
        raise ValueError("conversations begin with the user")
    return "".join(f"<{m['role']}>{m['content']}\n" for m in messages)


def test_chats_are_rendered(tmp_path: Path) -> None:
    rows = [{"m": CHAT}, {"m": CHAT[::-1]}, {"m": "text"}, {"m": [{"role": "user"}]}, {"m": []}]
    documents, report = read(
        write_jsonl(tmp_path / "a.jsonl", rows), chat_field="m", render_chat=render, max_skipped_share=0.8
    )
    assert [d.text for d in documents] == ["<user>Hi\n<assistant>Hello\n"]
    assert report.n_skipped == {"chat_template": 1, "wrong_type": 3}
    path = write_parquet(tmp_path / "a.parquet", "SELECT [{'role': 'user', 'content': 'Hi'}] AS m")
    assert read(path, chat_field="m", render_chat=render)[0][0].text == "<user>Hi\n"
    with pytest.raises(InputError, match="no chat template"):
        read(path, chat_field="m")


def test_hf_streams_a_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for the optional package: what is asked of it, and what its rows become."""
    asked: list[Any] = []

    def load_dataset(name: str, subset: str | None, *, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
        asked.append((name, subset, split, streaming))
        if name == "o/missing":
            raise FileNotFoundError("Dataset 'o/missing' doesn't exist on the Hub")
        return iter([{"text": "one"}, {"text": None}, {"text": "two"}])

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    documents, report = read("hf:o/data:en@validation")
    assert [(d.name, d.text) for d in documents] == [
        ("o/data:en@validation:0", "one"),
        ("o/data:en@validation:2", "two"),
    ]
    assert asked == [("o/data", "en", "validation", True)] and report.n_records == 3
    read("hf:o/data")
    assert asked[1] == ("o/data", None, "train", True)
    with pytest.raises(InputError, match="doesn't exist"):
        read("hf:o/missing")


def test_hf_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        read("hf:o/data")


def test_the_standard_library_is_a_corpus() -> None:
    found = {file.name for file in source_files(CorpusConfig(source="stdlib")).files}
    assert {"argparse.py", "json/decoder.py"} <= found
    assert not any(part in name.split("/") for name in found for part in ("test", "encodings", "site-packages"))
    documents, report = read("stdlib")
    assert report.n_documents == len(documents) > 200
    assert all(report.split_documents[split] > 30 for split in ("explain", "select", "report"))


# --- fingerprint ------------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_content_and_reading_options_not_place_or_time(tmp_path: Path) -> None:
    def fingerprint(folder: str, **options: Any) -> str:
        return corpus_fingerprint(CorpusConfig(source=str(tmp_path / folder), **options))

    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("a" * 300_000)
    first = fingerprint("one")
    assert fingerprint("two") == first
    assert fingerprint("one", document_separator="\n") != first
    assert fingerprint("one", context_length=64) == first
    (tmp_path / "one" / "a.txt").write_text("a" * 299_999 + "b")
    changed = fingerprint("one")
    assert changed != first
    (tmp_path / "one" / "a.txt").rename(tmp_path / "one" / "b.txt")
    assert fingerprint("one") not in (first, changed)
