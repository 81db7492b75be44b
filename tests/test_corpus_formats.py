"""What a corpus file holds decides how it is read: packed, in another encoding, as records, or not at all."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from support.corpus_reading import JSONL, TEXTS, read_texts, write_parquet

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.formats import json_rows, unpack
from autointerp.corpus.sources import check_sources, read_documents
from autointerp.errors import InputError


def as_csv(delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["id", "text"])
    writer.writerows(enumerate(TEXTS))
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    module = unpack._zstd_module()
    if module is None:
        pytest.skip("nothing here packs zstd")
    packed: bytes = module.compress(data)
    return packed


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd
}  # fmt: skip
UTF16 = JSONL.encode("utf-16")
CONTENT = {
    "a.jsonl": JSONL.encode(),
    "b.jsonl": UTF16,
    "c.jsonl": json.dumps([{"text": text} for text in TEXTS], indent=1).encode(),
    "a.json": json.dumps([{"text": text} for text in TEXTS]).encode(),
    "b.json": json.dumps([{"text": text, "n": [1, {"a": 2}]} for text in TEXTS], indent=1, ensure_ascii=False).encode(),
    "c.json": JSONL.encode(),
    "a.txt": JSONL.encode(),
    "b": json.dumps([{"text": text} for text in TEXTS]).encode(),
    "a.csv": as_csv().encode(),
    "b.csv": as_csv(";").encode("utf-8-sig"),
    "a.tsv": as_csv("\t").encode("utf-16"),
}


@pytest.mark.parametrize("chunk", [100, 1_000_000])
@pytest.mark.parametrize("name", CONTENT)
def test_records_are_read_as_records(tmp_path: Path, name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.endswith(("json", "b", "csv", "tsv")) or name == "c.jsonl":  # read in chunks; the others by the line
        monkeypatch.setattr("autointerp.corpus.formats.decoded_text.LINE_BYTES", chunk)
    (tmp_path / name).write_bytes(CONTENT[name])
    texts, report = read_texts(tmp_path / name)
    assert texts == TEXTS
    assert (report.n_records, report.n_skipped, report.n_replaced_characters) == (len(TEXTS), {}, 0)


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl", "a.json", "b.csv"])
def test_packed_records_are_the_same_records(tmp_path: Path, packing: str, name: str) -> None:
    packed = PACK[packing](CONTENT[name])
    path = tmp_path / f"{name}.{packing}"
    more = "\n".encode("utf-16-le") if name == "b.jsonl" else b"\n"
    path.write_bytes(packed + PACK[packing](more))  # several streams in one file
    texts, report = read_texts(path)
    assert texts == TEXTS and not report.n_skipped
    path.write_bytes(packed[:-9])  # in a file of one block, all of it is lost
    with pytest.raises(InputError, match="1 unreadable"):
        read_texts(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packing", [None, "gz", "bz2", "xz"])
def test_text_of_other_encodings_is_the_same_text(tmp_path: Path, encoding: str, packing: str | None) -> None:
    path, data = tmp_path / "a.txt", "".join(TEXTS).encode(encoding)
    path.write_bytes(data if packing is None else PACK[packing](data))  # the name need not say that it is packed
    texts, report = read_texts(path, document_separator="comma.")
    assert texts == [text.removesuffix("comma.") for text in TEXTS] and report.n_replaced_characters == 0
    (tmp_path / "b.txt.gz").write_bytes(b"not packed after all. " * 9)
    assert read_texts(tmp_path / "b.txt.gz")[0] == ["not packed after all. " * 9]


def test_damaged_utf16_is_unreadable_and_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("text ".encode("utf-16") + b"\x00\xd8" * 9)
    with pytest.raises(InputError, match=r"1 unreadable \(first: a.txt: it begins as utf-16 and is not"):
        read_texts(tmp_path / "a.txt")


def test_zstd_that_nothing_here_unpacks_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_module", lambda name: None)
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "z.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00\x00")
    for source in (tmp_path, tmp_path / "z.jsonl.zst"):
        with pytest.raises(InputError, match=r"z.jsonl.zst is compressed with zstd.*pip install backports.zstd"):
            read_documents(CorpusConfig(source=str(source)), CorpusReport())
    (tmp_path / "z.jsonl.zst").rename(tmp_path / "z.jsonl")
    with pytest.raises(InputError, match="zstd"):
        read_texts(tmp_path / "z.jsonl")


def zip_bytes() -> bytes:
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x.txt", "text " * 100)
    return out.getvalue()


def tar_bytes() -> bytes:
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        member = tarfile.TarInfo("x.txt")
        member.size = 500
        archive.addfile(member, io.BytesIO(b"text " * 100))
    return out.getvalue()


OTHER = {
    "a.zip": (zip_bytes(), "a zip archive"),
    "a.pdf": (b"%PDF-1.7\n" + bytes(range(256)) * 40, "a PDF"),
    "a.tar.gz": (tar_bytes(), "a tar archive"),
    "a.arrow": (b"\xff\xff\xff\xff\x10\x01" + b"text" * 99, "an Arrow stream"),
    "a.txt": (bytes(range(256)) * 40, "binary"),
    "b.txt": (("no mark. " * 99).encode("utf-16-le"), "binary (or UTF-16 without a byte order mark)"),
    "twice.txt": (gzip.compress(bz2.compress(b"text " * 100)), "a file compressed twice"),
    "bomb.txt": (gzip.compress(b"\0" * 3_000_000), "binary"),
    "object.json": (json.dumps({"text": "x", "version": 1}, indent=1).encode(), "one JSON object"),
    "squad.json": (json.dumps({"data": [{"text": "x"}]}).encode(), "one JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_what_is_no_text_is_refused_alone_and_left_out_of_a_folder(tmp_path: Path, name: str) -> None:
    data, what = OTHER[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name} is {what}".replace("(", r"\(").replace(")", r"\)")):
        read_texts(tmp_path / name)
    (tmp_path / "text.md").write_text("some text")
    texts, report = read_texts(tmp_path)
    assert texts == ["some text"] and report.n_skipped == {"not_text": 1} and what in report.examples["not_text"]
    assert report.remarks() == [f"skipped {report.skipped_summary()}"]


def test_a_text_may_begin_like_another_file(tmp_path: Path) -> None:
    for start in ("ORCs live here", "RIFF and rag", "GIF89a is a format", "PAR1", "[not JSON", "{'a': 1}"):
        (tmp_path / "a.txt").write_text(start + " text" * 9)
        assert read_texts(tmp_path / "a.txt")[0] == [start + " text" * 9]
    (tmp_path / "a.txt").write_text('{"text": "x"}\n{"text": "y"}\n')
    assert read_texts(tmp_path / "a.txt", format="text")[0] == ['{"text": "x"}\n{"text": "y"}\n'], "as the user says"


def test_a_corpus_of_mostly_unread_files_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A folder of Arrow files is not its README."""
    config = CorpusConfig(source=str(tmp_path))
    (tmp_path / "README.md").write_text("about the data")
    for name in ("a.arrow", "b.arrow"):
        (tmp_path / name).write_bytes(OTHER["a.arrow"][0])
    with pytest.raises(InputError, match=r"2 of the 3 files .* that may hold its text are not read \(a.arrow is"):
        check_sources(config)
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "b.arrow").unlink()
    check_sources(config)
    assert read_texts(tmp_path)[0] == ["about the data"]


def test_the_columns_of_every_file_are_looked_at_before_one_is_read(tmp_path: Path) -> None:
    config = CorpusConfig(source=str(tmp_path))
    write_parquet(tmp_path / "a.parquet", "SELECT 'x' AS text")
    (tmp_path / "b.csv").write_text("id,text\n1,one\n")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 torn")
    check_sources(config)
    (tmp_path / "z.csv").write_text("id,body\n1,one\n")
    with pytest.raises(InputError, match="z.csv has no column 'text'"):
        check_sources(config)
    (tmp_path / "z.csv").unlink()
    write_parquet(tmp_path / "z.parquet", "SELECT 1 AS text")
    with pytest.raises(InputError, match="z.parquet: column 'text' holds INTEGER"):
        check_sources(config)


# --- characters that are not UTF-8 ----------------------------------------------------------------------------------


def test_replaced_characters_are_counted_shown_and_too_many_refused(tmp_path: Path) -> None:
    latin = "Où êtes-vous, mon ami? Déjà vu. "  # 4 of 32 characters
    (tmp_path / "a.txt").write_bytes(latin.encode("latin-1") * 5 + b"plain text " * 500)
    texts, report = read_texts(tmp_path / "a.txt")
    assert texts[0].count("\ufffd") == report.n_replaced_characters == 5 * 4
    assert report.remarks() == ["20 characters in 1 records are not UTF-8 and became U+FFFD"]
    (tmp_path / "a.txt").write_bytes(latin.encode("latin-1") * 100)
    with pytest.raises(InputError, match=r"1 not_utf8 \(first: a.txt: 400 of its first 3,200 characters are not UTF-8"):
        read_texts(tmp_path / "a.txt")
    for i in range(30):
        (tmp_path / f"b{i}.txt").write_text("plain text")
    texts, report = read_texts(tmp_path)
    assert texts == ["plain text"] * 30 and report.n_skipped == {"not_utf8": 1}, "one file of many is left out"


def test_many_records_with_few_replaced_characters_each_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"".join(b'{"text": "caf\xe9 number %d"}\n' % i for i in range(300)))
    with pytest.raises(InputError, match=r"101 of [\d,]+ characters of the corpus are not UTF-8.*iconv"):
        read_texts(tmp_path / "a.jsonl")


# --- JSON arrays and CSV --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "n"),
    [("", 0), ("] more", 1), ('] [{"text": "x"}]', 1), (', {"text": nonsense}]', 1), (', {"text": "x"} {}]', 2),
     (f', {{"text": {"9" * 5000}}}]', 1), (f", {'[' * 100_000}", 1), (', {"text": "x"', 1)],
)  # fmt: skip
def test_a_damaged_array_is_counted_from_where_it_is_damaged(tmp_path: Path, end: str, n: int) -> None:
    (tmp_path / "a.json").write_text('[{"text": "good"}' + end)
    texts, report = read_texts(tmp_path / "a.json", max_skipped_share=0.9)
    assert texts[:1] == ["good"] and report.n_skipped == {"unreadable": 1}


def test_an_array_holds_one_record_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autointerp.corpus.formats.decoded_text.LINE_BYTES", 1000)
    monkeypatch.setattr(json_rows, "LONGEST_ITEM", 3000)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}, {"text": "b" * 2000}, 7, {"text": "c" * 9000}]))
    texts, report = read_texts(tmp_path / "a.json", max_skipped_share=0.9)
    assert texts == ["a", "b" * 2000] and report.n_skipped == {"not_an_object": 1, "unreadable": 1}


def test_csv_needs_the_column_and_counts_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,texts\n1,one\n")
    with pytest.raises(InputError, match=r"no column 'text' in its first line.*it has id, texts\. Did you mean texts"):
        read_texts(path)
    path.write_text("only some text, with a comma\nand another line\n")
    with pytest.raises(InputError, match="no column 'text'.*corpus.format = 'text'"):
        read_texts(path)
    assert read_texts(path, format="text")[0] == ["only some text, with a comma\nand another line\n"]
    path.write_text('text\none\n\n"two\n, lines"\n')
    assert read_texts(path)[0] == ["one", "two\n, lines"]
    path.write_text('id,text\n1,one\n2,two,three\n4\n5,""\n6,"six"x\n7,seven\n')
    texts, report = read_texts(path, max_skipped_share=0.9)
    assert texts == ["one"] and report.n_skipped == {"bad_csv": 2, "empty": 1, "unreadable": 1}
    path.write_text("id,text\n1,one\n2," + "x" * 1_100_000 + "\n")
    texts, report = read_texts(path, max_skipped_share=0.9)
    assert texts == ["one"] and report.n_skipped == {"unreadable": 1}
