"""CSV and its kin: records with a header, parted by commas, tabs, semicolons or bars."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.formats.decoded_text import LINE_BYTES, NotUtf8Error, decoded
from autointerp.corpus.formats.row_pieces import Row
from autointerp.corpus.formats.unpack import UNREADABLE, opened
from autointerp.errors import InputError, nearest

DELIMITERS = (",", "\t", ";", "|")


def csv_rows(path: Path, name: str, config: CorpusConfig, report: CorpusReport) -> Iterator[Row]:
    """The rows below the header. Raises InputError if no delimiter makes the wanted columns of the first line. A row
    with more or fewer fields than the header is counted as bad_csv; a file that is no CSV from some row on is counted
    as unreadable from there."""
    wanted = config.chat_field or config.text_field
    index = 0

    def skip(reason: str, where: str) -> None:
        report.n_records += 1
        report.skip(reason, where)
        report.check(config.max_skipped_share, wanted, final=False)

    csv.field_size_limit(LINE_BYTES)
    try:
        with opened(path) as handle:
            lines = _lines(decoded(handle, report))
            first = next((line for line in lines if line.strip()), None)
            if first is None:
                return
            delimiter, columns = _header(first, path, config)
            for fields in csv.reader(lines, delimiter=delimiter, strict=True):
                where = f"{name}:{index}"
                if not fields:
                    continue
                index += 1
                if len(fields) != len(columns):
                    skip("bad_csv", where)
                    continue
                report.n_records += 1
                yield where, dict(zip(columns, fields, strict=True))
    except (*UNREADABLE, csv.Error, NotUtf8Error) as error:
        skip("not_utf8" if isinstance(error, NotUtf8Error) else "unreadable", f"{name}:{index}: {error}")


def check_header(path: Path, config: CorpusConfig) -> None:
    """Raise InputError if the file has a first line, and that does not have the wanted columns. Raises UNREADABLE."""
    with opened(path) as handle:
        line = handle.readline(LINE_BYTES)
    if line.strip():
        _header(line.decode("utf-8-sig", "replace"), path, config)


def _header(line: str, path: Path, config: CorpusConfig) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns."""
    needed = [config.chat_field or config.text_field, *([config.id_field] if config.id_field else [])]
    found: list[str] = []
    for delimiter in DELIMITERS:
        try:
            columns = [column.strip() for column in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
        except csv.Error:
            continue
        if all(columns.count(column) == 1 for column in needed):
            return delimiter, columns
        found = max(found, columns, key=len)
    shown = ", ".join(column[:80] for column in found[:30])
    missing = next((column for column in needed if found.count(column) != 1), needed[0])
    raise InputError(
        f"{path} has no column {missing!r} in its first line, or has it twice; it has {shown}."
        f"{nearest(missing, found)} Set corpus.text_field to the column that holds the text, or corpus.format = 'text' "
        "to read the file as it is"
    )


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    """The lines, each with its line feed. Raises csv.Error for a line above LINE_BYTES characters."""
    rest = ""
    for chunk in chain(chunks, [""]):
        *whole, rest = (rest + chunk).split("\n")
        yield from (line + "\n" for line in whole)
        if len(rest) > LINE_BYTES:
            raise csv.Error(f"a line is longer than {LINE_BYTES:,} characters")
    if rest:
        yield rest
