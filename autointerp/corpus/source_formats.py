"""How each file of a corpus is read, by its content; and a look at all of them before hours are spent."""

from __future__ import annotations

from typing import NamedTuple

from autointerp.config import CorpusConfig
from autointerp.corpus.formats.csv_rows import check_header
from autointerp.corpus.formats.file_kinds import look_at
from autointerp.corpus.formats.parquet_rows import check_columns
from autointerp.corpus.formats.unpack import UNREADABLE
from autointerp.corpus.source_files import Format, SourceFile, source_files, suffix_of
from autointerp.errors import InputError

PLAIN_SUFFIXES = ("", ".txt", ".text")
"""Names that promise nothing: under one of these, records in JSON are read as records."""
READ = "plain text, jsonl, JSON (an array of objects), CSV or Parquet"


class Content(NamedTuple):
    format: Format | None
    """None for a file that cannot be read as any."""
    other: str
    """What the file is instead, as 'a PDF'."""
    may_hold_text: bool
    """Whether such a file may hold the corpus' text, as a PDF does and a picture does not."""


def content_of(file: SourceFile, config: CorpusConfig) -> Content:
    """How the file is read. corpus.format and the suffix decide what text is; the first bytes, whether it is text.
    Raises UNREADABLE, and InputError for zstd that nothing here can unpack."""
    if file.format == "parquet":
        return Content("parquet", "", True)
    look = look_at(file.path)
    if look.is_parquet and config.format == "auto":
        return Content("parquet", "", True)
    if look.other is not None:
        return Content(None, look.other, look.may_hold_text)
    plain = config.format == "auto" and config.document_separator is None and suffix_of(file.path) in PLAIN_SUFFIXES
    return Content("json" if plain and look.looks_like_json else file.format, "", True)


def check_files(config: CorpusConfig) -> None:
    """Look at every file of the corpus. Raises InputError if one lacks the wanted columns, if one is zstd that nothing
    here can unpack, and if most of the files that may hold text cannot be read: the rest is not the corpus then."""
    readable, others = 0, []
    for file in source_files(config).files:
        try:
            content = content_of(file, config)
            if content.format == "parquet":
                check_columns(file.path, config)
            elif content.format == "csv":
                check_header(file.path, config)
        except UNREADABLE:
            continue  # counted when it is read
        readable += content.format is not None
        if content.format is None and content.may_hold_text:
            others.append(f"{file.name} is {content.other}")
    if len(others) > readable:
        raise InputError(
            f"{len(others)} of the {len(others) + readable} files of the corpus {config.source!r} that may hold its "
            f"text are not read ({others[0]}); name files or a glob of {READ}"
        )
