"""Reads text sources as a stream of cleaned documents: files, folders and globs (Parquet; plain text and jsonl, also
gzipped), `hf:` datasets, and the standard library's own source.

Unusable records are skipped and counted in a CorpusReport, never guessed at; too many of them are an InputError.
Memory is bounded by the largest record (1 MB for jsonl lines and text chunks) and by what splits.py reads ahead.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import duckdb
from jinja2 import TemplateError

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.splits import Piece, SplitRule, split_documents, split_rule_of
from autointerp.errors import InputError, nearest
from autointerp.records import Document

__all__ = ["ChatRenderer", "CorpusReport", "SourceFile", "corpus_fingerprint", "read_documents", "source_files"]

ChatRenderer = Callable[[list[dict[str, str]]], str]
Format = Literal["text", "jsonl", "parquet"]

LINE_BYTES = 1_000_000
"""A longer jsonl line is skipped without being held in memory. Text is read in chunks of this size."""
SNIFF_BYTES = 8192
FINGERPRINT_BYTES = 65_536
PARQUET_ROWS = 256
JSONL_SUFFIXES = (".jsonl", ".ndjson")
STDLIB_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "encodings", "pydoc_data", "test", "tests", "idle_test", "testmock"}
)
UNREADABLE = (OSError, EOFError, zlib.error)
"""Errors of a file that cannot be read to its end. A truncated gzip file raises EOFError."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    path: Path
    name: str
    """The path relative to the source's folder, with forward slashes. The file's documents are named after it."""
    format: Format


def read_documents(
    config: CorpusConfig, report: CorpusReport, render_chat: ChatRenderer | None = None
) -> Iterator[Document]:
    """The corpus as documents with their splits, in a fixed order. `report` counts them as they are drawn.

    Raises InputError: at once when the source does not exist or the configuration contradicts itself; while reading
    when more than `max_skipped_share` of the records are unusable; at the end when no document was usable.
    """
    if config.chat_field is not None and render_chat is None:
        raise InputError(
            f"corpus.chat_field is {config.chat_field!r} but the model's tokenizer has no chat template; "
            "use corpus.text_field, or a model with a chat template"
        )
    if config.source.startswith("hf:"):
        documents = split_documents(_hf_pieces(config, report, render_chat), config, report, by_runs=False)
    else:
        pieces = _file_pieces(source_files(config), config, report, render_chat)
        documents = split_documents(pieces, config, report)
    return _checked(documents, config, report)


def split_rule(config: CorpusConfig) -> SplitRule:
    """By which rule the corpus is split. Reads the beginning of the files; a data set of the hub, which may not be
    within reach, is always split by hash."""
    if config.source.startswith("hf:"):
        return "hash"
    return split_rule_of(_file_pieces(source_files(config), config, CorpusReport(), str), config)


def _checked(documents: Iterator[Document], config: CorpusConfig, report: CorpusReport) -> Iterator[Document]:
    yield from documents
    report.check(config.max_skipped_share, config.chat_field or config.text_field, final=True)
    if not report.n_documents:
        skipped = report.skipped_summary() or "no records"
        raise InputError(f"the corpus {config.source!r} holds no usable text: {skipped}")


# --- which files -----------------------------------------------------------------------------------------------------


def source_files(config: CorpusConfig) -> list[SourceFile]:
    """The files behind `config.source`, sorted by name. Raises InputError when there are none."""
    source = config.source
    if not source:
        raise InputError("corpus.source is not set; name a file, folder, glob, hf:dataset, or stdlib")
    if source == "stdlib":
        return _stdlib_files()
    path = Path(source).expanduser()
    if path.is_file():
        found = [(path, path.name)]
    elif path.is_dir():
        found = [(f, f.relative_to(path).as_posix()) for f in _walk(path) if _wanted_in_folder(f, config)]
    elif glob.has_magic(str(path)):
        root = _glob_root(path)
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))
        found = [(f, f.relative_to(root).as_posix()) for f in matches if f.is_file()]
    else:
        raise InputError(f"corpus.source: there is no file or folder {source!r}")
    if not found:
        raise InputError(f"corpus.source: no {_kind(config)} files match {source!r}")
    found.sort(key=lambda pair: pair[1])
    return [SourceFile(f, name, _format_of(f, config)) for f, name in found]


def _kind(config: CorpusConfig) -> str:
    return "text, jsonl or parquet" if config.format == "auto" else config.format


def _walk(folder: Path, left_out: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Regular files below `folder`, without hidden ones. Links to folders, hidden folders and folders with a name in
    `left_out` are not entered."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in left_out]
        for name in files:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _glob_root(pattern: Path) -> Path:
    """The part of a glob before its first wildcard."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _wanted_in_folder(path: Path, config: CorpusConfig) -> bool:
    """Whether a file of a folder is read: any text format, or only the one that corpus.format names."""
    if config.format == "jsonl":
        return _suffix(path) in (*JSONL_SUFFIXES, ".json")
    return config.format != "parquet" or _suffix(path) == ".parquet"


def _format_of(path: Path, config: CorpusConfig) -> Format:
    if config.format != "auto":
        return config.format
    suffix = _suffix(path)
    if suffix in JSONL_SUFFIXES:
        return "jsonl"
    return "parquet" if suffix == ".parquet" else "text"


def _stdlib_files() -> list[SourceFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    names = [path.relative_to(root).as_posix() for path in _walk(root, STDLIB_LEFT_OUT) if path.suffix == ".py"]
    # The order is random but fixed, so that the first max_tokens are a sample of the whole.
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    if not names:
        raise InputError(f"corpus.source = 'stdlib': no Python source files under {root}; name a folder of text")
    return [SourceFile(root / name, name, "text") for name in names]


def corpus_fingerprint(config: CorpusConfig) -> str:
    """A sha256 in hex that changes with the corpus' content and with the options that decide how it is read.

    It is cheap: it covers names, sizes, and the first and last 64 kB of each file, but not the folder they are in. An
    `hf:` dataset counts by its name.
    """
    how = [config.format, config.text_field, config.chat_field, config.id_field, config.document_separator]
    digest = hashlib.sha256(json.dumps(how).encode())
    if config.source.startswith("hf:"):
        digest.update(config.source.encode())
        return digest.hexdigest()
    for file in source_files(config):
        try:
            with file.path.open("rb") as handle:
                size = handle.seek(0, os.SEEK_END)
                handle.seek(0)
                ends = handle.read(FINGERPRINT_BYTES)
                handle.seek(max(FINGERPRINT_BYTES, size - FINGERPRINT_BYTES))
                ends += handle.read(FINGERPRINT_BYTES)
        except OSError as error:  # counted as unreadable when the corpus is read
            size, ends = -1, type(error).__name__.encode()
        digest.update(json.dumps([file.name, file.format, size]).encode())
        digest.update(hashlib.sha256(ends).digest())
    return digest.hexdigest()


# --- files to pieces of documents ------------------------------------------------------------------------------------


def _file_pieces(
    files: list[SourceFile], config: CorpusConfig, report: CorpusReport, render_chat: ChatRenderer | None
) -> Iterator[Piece]:
    for file in files:
        if file.format == "text":
            if len(files) > 1 and _is_binary(file.path):
                report.skip("binary", file.name)
                continue
            yield from _text_pieces(file, config, report)
        else:
            rows = _jsonl_rows(file, config, report) if file.format == "jsonl" else _parquet_rows(file, config, report)
            yield from _row_pieces(rows, config, report, render_chat)


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.name.endswith(".gz") else path.open("rb")


def _is_binary(path: Path) -> bool:
    """Whether the file is a picture, an archive or the like: it holds NUL bytes and is not UTF-8. A text with a stray
    NUL is still UTF-8."""
    try:
        with _open(path) as handle:
            start = handle.read(SNIFF_BYTES)
        codecs.getincrementaldecoder("utf-8")("strict").decode(start)
    except UnicodeDecodeError:
        return b"\0" in start
    except UNREADABLE:
        return False  # reading it will count it as unreadable
    return False


def _decoded(handle: IO[bytes], report: CorpusReport) -> Iterator[str]:
    """The file's text in chunks, without byte order mark and NULs. Bytes that are not UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    replaced = stripped = False
    first = True
    while True:
        chunk = handle.read(LINE_BYTES)
        final = not chunk
        try:
            text = decoder.decode(chunk, final)
        except UnicodeDecodeError:
            # The failure left the decoder's pending bytes as they were, so the chunk can be decoded again.
            replaced, decoder.errors = True, "replace"
            text = decoder.decode(chunk, final)
            decoder.errors = "strict"
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if "\0" in text:
            stripped, text = True, text.replace("\0", "")
        if text:
            yield text
        if final:
            break
    report.n_replaced += replaced
    report.n_stripped += stripped


def _text_pieces(file: SourceFile, config: CorpusConfig, report: CorpusReport) -> Iterator[Piece]:
    """The documents of a text file, in pieces of about 1 MB. A file is one document unless there is a separator."""
    separator = config.document_separator
    report.n_records += 1
    index, rest, is_open = 0, "", False

    def named() -> str:
        return f"{file.name}:{index}" if separator else file.name

    try:
        with _open(file.path) as handle:
            for text in _decoded(handle, report):
                if not separator:
                    yield Piece(file.name, text, True)
                    continue
                *whole, rest = (rest + text).split(separator)
                for document in whole:
                    yield Piece(named(), document, False)
                    index, is_open = index + 1, False
                report.n_records += len(whole)
                if len(rest) > LINE_BYTES:
                    # The document has no end yet. Hand it on, except for what may be half a separator.
                    keep = len(rest) - (len(separator) - 1)
                    yield Piece(named(), rest[:keep], True)
                    rest, is_open = rest[keep:], True
    except UNREADABLE as error:
        report.skip("unreadable", f"{file.name}: {error}")
        report.check(config.max_skipped_share, config.text_field, final=False)
    if index and not is_open and not rest.strip():
        report.n_records -= 1  # the file ended with a separator
        return
    yield Piece(named(), rest, False)


Row = tuple[str, Mapping[str, Any]]


def _jsonl_rows(file: SourceFile, config: CorpusConfig, report: CorpusReport) -> Iterator[Row]:
    def skip(reason: str, where: str) -> None:
        report.skip(reason, where)
        report.check(config.max_skipped_share, config.chat_field or config.text_field, final=False)

    index = -1
    try:
        with _open(file.path) as handle:
            while line := handle.readline(LINE_BYTES):
                index += 1
                where = f"{file.name}:{index}"
                if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                    rest = b"-"
                    while rest and not rest.endswith(b"\n"):
                        rest = handle.readline(LINE_BYTES)
                    report.n_records += 1
                    skip("line_too_long", where)
                    continue
                if not line.strip():
                    continue
                report.n_records += 1
                row = _parsed(line.removeprefix(codecs.BOM_UTF8), report)
                if isinstance(row, str):
                    skip(row, where)
                else:
                    yield where, row
    except UNREADABLE as error:
        report.n_records += 1
        skip("unreadable", f"{file.name}: {error}")


def _parsed(line: bytes, report: CorpusReport) -> dict[str, Any] | str:
    """The JSON object in the line, or the reason why the line is skipped."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        text = line.decode("utf-8", "replace")
        report.n_replaced += 1
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return "bad_json"
    return row if isinstance(row, dict) else "not_an_object"


def _parquet_rows(file: SourceFile, config: CorpusConfig, report: CorpusReport) -> Iterator[Row]:
    """The rows of a Parquet file. Only the wanted columns are read, with a few row groups in memory at a time."""
    wanted = config.chat_field or config.text_field
    # Without this, DuckDB would read [, * and ? in the file's name as a glob.
    path = "".join(f"[{c}]" if c in "[*?" else c for c in str(file.path))
    index = -1
    with duckdb.connect(":memory:", config={"threads": 1, "autoinstall_known_extensions": "false"}) as connection:
        connection.execute("SET enable_progress_bar = false")  # DuckDB would draw it on stdout after two seconds
        try:
            described = connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [path]).fetchall()
            columns = [str(row[0]) for row in described]
            for name in (wanted, *([config.id_field] if config.id_field else [])):
                if name not in columns:
                    raise InputError(
                        f"{file.path} has no column {name!r}; it has {', '.join(columns)}.{nearest(name, columns)}"
                    )
            names = [wanted, *([config.id_field] if config.id_field else [])]
            select = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
            result = connection.execute(f"SELECT {select} FROM read_parquet(?)", [path])
            while rows := result.fetchmany(PARQUET_ROWS):
                for values in rows:
                    index += 1
                    report.n_records += 1
                    yield f"{file.name}:{index}", dict(zip(names, values, strict=True))
        except duckdb.Error as error:
            report.n_records += 1
            report.skip("unreadable", f"{file.name}: {str(error).splitlines()[0]}")
            report.check(config.max_skipped_share, wanted, final=False)


def _hf_pieces(config: CorpusConfig, report: CorpusReport, render_chat: ChatRenderer | None) -> Iterator[Piece]:
    """A Hugging Face dataset, streamed in its own order. `hf:owner/dataset[:config][@split]`; default split:
    `train`."""
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"corpus.source = {config.source!r} needs the package `datasets`; pip install datasets, or name files"
        ) from None
    spec, _, split = config.source.removeprefix("hf:").partition("@")
    name, _, subset = spec.partition(":")
    split = split or "train"
    if not name:
        raise InputError(f"corpus.source = {config.source!r} names no dataset; write hf:owner/dataset[:config][@split]")
    try:
        stream = datasets.load_dataset(name, subset or None, split=split, streaming=True)
    except (OSError, ValueError) as error:  # no such dataset, configuration or split; no network
        raise InputError(f"corpus.source = {config.source!r} cannot be opened: {error}") from None

    def rows() -> Iterator[Row]:
        for index, row in enumerate(stream):
            report.n_records += 1
            yield f"{spec}@{split}:{index}", row

    return _row_pieces(rows(), config, report, render_chat)


# --- rows to pieces --------------------------------------------------------------------------------------------------


def _row_pieces(
    rows: Iterator[Row], config: CorpusConfig, report: CorpusReport, render_chat: ChatRenderer | None
) -> Iterator[Piece]:
    wanted = config.chat_field or config.text_field
    for where, row in rows:
        value: Any = row.get(wanted)
        reason: str | None = None
        if value is None:
            reason = "missing_field"
            report.saw_fields(row)
        elif config.chat_field is not None and render_chat is not None:
            value, reason = _rendered(value, render_chat)
        elif not isinstance(value, str):
            reason = "wrong_type"
        if reason is not None:
            report.skip(reason, where)
            report.check(config.max_skipped_share, wanted, final=False)
            continue
        identity = row.get(config.id_field) if config.id_field else None
        yield Piece(where if identity is None else _cleaned(str(identity), None), _cleaned(value, report), False)


def _rendered(messages: Any, render_chat: ChatRenderer) -> tuple[str, str | None]:
    """(the chat's text, None), or ('', the reason why it has none)."""
    if not isinstance(messages, list) or not messages:
        return "", "wrong_type"
    plain: list[dict[str, str]] = []
    for message in messages:
        if not isinstance(message, dict):
            return "", "wrong_type"
        role, content = message.get("role"), message.get("content")
        if not (isinstance(role, str) and isinstance(content, str)):
            return "", "wrong_type"
        plain.append({"role": role, "content": content})
    try:
        return render_chat(plain), None
    except (TemplateError, ValueError, TypeError, KeyError):  # a template may refuse two user turns in a row
        return "", "chat_template"


def _cleaned(text: str, report: CorpusReport | None) -> str:
    """`text` without NULs and lone surrogates, which JSON escapes can make but DuckDB and UTF-8 cannot hold."""
    clean = text.replace("\0", "") if "\0" in text else text
    try:
        clean.encode()
    except UnicodeEncodeError:
        clean = clean.encode("utf-8", "ignore").decode()
    if report is not None and len(clean) != len(text):
        report.n_stripped += 1
    return clean
