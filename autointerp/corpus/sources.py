"""Reads a corpus as a stream of cleaned documents: files, folders and globs (plain text, jsonl, JSON arrays, CSV,
Parquet, all but Parquet also compressed), saved datasets, `hf:` datasets, and the standard library's own source.

Unusable records are skipped and counted in a CorpusReport, never guessed at; too many of them are an InputError.
Memory is bounded by the largest record (see formats/) and by what splits.py reads ahead.
"""

from __future__ import annotations

from collections.abc import Iterator

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.formats.csv_rows import csv_rows
from autointerp.corpus.formats.dataset_rows import hub_rows, is_saved_dataset, saved_rows
from autointerp.corpus.formats.json_rows import NotRecordsError, json_rows
from autointerp.corpus.formats.parquet_rows import parquet_rows
from autointerp.corpus.formats.row_pieces import ChatRenderer, Row, row_pieces
from autointerp.corpus.formats.text_files import text_pieces
from autointerp.corpus.formats.unpack import UNREADABLE
from autointerp.corpus.source_files import Format, SourceFile, corpus_fingerprint, place_of, source_files
from autointerp.corpus.source_formats import READ, check_files, content_of
from autointerp.corpus.splits import Piece, SplitRule, split_documents, split_rule_of, whole_documents
from autointerp.errors import InputError
from autointerp.records import Document

__all__ = ["ChatRenderer", "check_sources", "corpus_fingerprint", "read_documents"]


def read_documents(
    config: CorpusConfig, report: CorpusReport, render_chat: ChatRenderer | None = None, leaves_gaps: bool = True
) -> Iterator[Document]:
    """The corpus as documents with their splits, in a fixed order. `report` counts them as they are drawn.
    `leaves_gaps` False: all of the text, for a use that has no splits (see splits.whole_documents).

    Raises InputError: at once when the source does not exist or the configuration contradicts itself; while reading
    when the only file is no text, when more than `max_skipped_share` of the records are unusable, and when too many
    characters are not UTF-8; at the end when no document was usable.
    """
    if config.chat_field is not None and render_chat is None:
        raise InputError(
            f"corpus.chat_field is {config.chat_field!r} but the model's tokenizer has no chat template; "
            "use corpus.text_field, or a model with a chat template"
        )
    is_hub = config.source.startswith("hf:")
    if is_hub:
        pieces = row_pieces(hub_rows(config, report), config, report, render_chat)
    else:
        pieces = _local_pieces(config, report, render_chat)
    if leaves_gaps:
        documents = split_documents(pieces, config, report, by_runs=not is_hub)
    else:
        documents = whole_documents(pieces, config, report)
    return _checked(documents, config, report)


def _local_pieces(config: CorpusConfig, report: CorpusReport, render_chat: ChatRenderer | None) -> Iterator[Piece]:
    """The pieces of every document on this machine."""
    if _is_saved(config):
        return row_pieces(saved_rows(place_of(config), config, report), config, report, render_chat)
    found = source_files(config)
    for name in found.links_out:
        report.skip("link_out", name)
    return _file_pieces(found.files, config, report, render_chat)


def split_rule(config: CorpusConfig) -> SplitRule:
    """By which rule the corpus is split. Reads the beginning of the files; a data set of the hub, which may not be
    within reach, is always split by hash."""
    if config.source.startswith("hf:"):
        return "hash"
    return split_rule_of(_local_pieces(config, CorpusReport(), str), config)


def check_sources(config: CorpusConfig) -> None:
    """Raise the InputErrors of a corpus that show without reading it. It opens every file."""
    if config.source.startswith("hf:"):
        return
    if _is_saved(config):
        saved_rows(place_of(config), config, CorpusReport())
    else:
        check_files(config)


def _is_saved(config: CorpusConfig) -> bool:
    return config.source not in ("", "stdlib") and is_saved_dataset(place_of(config))


def _checked(documents: Iterator[Document], config: CorpusConfig, report: CorpusReport) -> Iterator[Document]:
    yield from documents
    report.check(config.max_skipped_share, config.chat_field or config.text_field, final=True)
    if not report.n_documents:
        skipped = report.skipped_summary() or "no records"
        raise InputError(f"the corpus {config.source!r} holds no usable text: {skipped}")


def _file_pieces(
    files: list[SourceFile], config: CorpusConfig, report: CorpusReport, render_chat: ChatRenderer | None
) -> Iterator[Piece]:
    for file in files:
        try:
            format, other, _ = content_of(file, config)
        except UNREADABLE as error:
            report.n_records += 1
            report.skip("unreadable", f"{file.name}: {error}")
            report.check(config.max_skipped_share, config.text_field, final=False)
            continue
        if format is None:
            _refuse(file, f"is {other}", len(files), report)
            continue
        if format == "text":
            yield from text_pieces(file.path, file.name, config, report)
            continue
        try:
            yield from row_pieces(_rows(file, format, config, report), config, report, render_chat)
        except NotRecordsError:
            _refuse(file, "is one JSON object, not a list of records", len(files), report)


def _rows(file: SourceFile, format: Format, config: CorpusConfig, report: CorpusReport) -> Iterator[Row]:
    if format == "csv":
        return csv_rows(file.path, file.name, config, report)
    if format == "parquet":
        return parquet_rows(file.path, file.name, config, report)
    return json_rows(file.path, file.name, config, report, is_jsonl=format == "jsonl")


def _refuse(file: SourceFile, why: str, n_files: int, report: CorpusReport) -> None:
    """A picture in a folder of texts is skipped. As the only file it is an error, and as a file of records it counts as
    unreadable."""
    if n_files == 1:
        hint = ", or set corpus.format = 'text' to read it as text" if why.endswith("records") else ""
        raise InputError(f"the corpus {file.path} {why}; name a file or folder of {READ}{hint}")
    if file.format == "text" or why.endswith("records"):
        report.skip("not_text", f"{file.name} {why}")
    else:
        report.n_records += 1
        report.skip("unreadable", f"{file.name} {why}")
