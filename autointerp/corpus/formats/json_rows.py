"""JSON records: one object a line, or one array of objects. Of both, one record is in memory at a time."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.formats.decoded_text import LINE_BYTES, NotUtf8Error, decoded, decoded_line
from autointerp.corpus.formats.row_pieces import Row
from autointerp.corpus.formats.unpack import UNREADABLE, opened

LONGEST_ITEM = 8 * LINE_BYTES
"""Characters of one item of an array."""
_SPACE = " \t\n\r"


class NotRecordsError(Exception):
    """The file is JSON, but no list of objects."""


def json_rows(path: Path, name: str, config: CorpusConfig, report: CorpusReport, is_jsonl: bool) -> Iterator[Row]:
    """The records of a file with an object a line or with one array, whichever it holds. Raises NotRecordsError if it
    is one object that is no record, unless it is said to be jsonl."""
    try:
        is_array = _is_array(path, config.chat_field or config.text_field)
    except NotRecordsError:
        if not is_jsonl:
            raise
        is_array = False
    except UNREADABLE as error:
        report.n_records += 1
        _skip("unreadable", f"{name}: {error}", config, report)
        return
    yield from (_array_rows if is_array else _line_rows)(path, name, config, report)


def _skip(reason: str, where: str, config: CorpusConfig, report: CorpusReport) -> None:
    report.skip(reason, where)
    report.check(config.max_skipped_share, config.chat_field or config.text_field, final=False)


def _is_array(path: Path, wanted: str) -> bool:
    """Whether the file is one array, judged by its first line with content."""
    with opened(path) as handle:
        line = b"\n"
        while line and not line.strip(b" \t\r\n" + codecs.BOM_UTF8):
            line = handle.readline(LINE_BYTES)
        line = line.removeprefix(codecs.BOM_UTF8).strip()
        goes_on = bool(handle.read(1))
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        if line.startswith(b"{") and goes_on and error.pos >= len(error.doc.rstrip()):
            raise NotRecordsError from None  # the first line of an object that goes on in the next lines
        return line.startswith(b"[")
    except (ValueError, RecursionError):
        return line.startswith(b"[")
    if isinstance(value, dict) and not goes_on and wanted not in value:
        raise NotRecordsError
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _line_rows(path: Path, name: str, config: CorpusConfig, report: CorpusReport) -> Iterator[Row]:
    """The records of a file with an object a line."""
    index = -1
    try:
        with opened(path) as handle:
            while line := handle.readline(LINE_BYTES):
                index += 1
                where = f"{name}:{index}"
                if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                    rest = b"-"
                    while rest and not rest.endswith(b"\n"):
                        rest = handle.readline(LINE_BYTES)
                    report.n_records += 1
                    _skip("line_too_long", where, config, report)
                    continue
                if not line.strip():
                    continue
                report.n_records += 1
                row = _parsed(line.removeprefix(codecs.BOM_UTF8), report)
                if isinstance(row, str):
                    _skip(row, where, config, report)
                else:
                    yield where, row
    except UNREADABLE as error:
        report.n_records += 1
        _skip("unreadable", f"{name}: {error}", config, report)


def _parsed(line: bytes, report: CorpusReport) -> dict[str, Any] | str:
    """The JSON object in the line, or the reason why the line is skipped."""
    try:
        row = json.loads(decoded_line(line, report))
    except (ValueError, RecursionError):
        return "bad_json"
    return row if isinstance(row, dict) else "not_an_object"


def _array_rows(path: Path, name: str, config: CorpusConfig, report: CorpusReport) -> Iterator[Row]:
    """The objects of one array. An array that is no JSON from some record on is counted as unreadable from there."""
    index = 0
    try:
        with opened(path) as handle:
            for item in _items(decoded(handle, report)):
                report.n_records += 1
                where = f"{name}:{index}"
                index += 1
                if isinstance(item, dict):
                    yield where, item
                else:
                    _skip("not_an_object", where, config, report)
    except (*UNREADABLE, NotUtf8Error, ValueError, RecursionError) as error:
        report.n_records += 1
        reason = "not_utf8" if isinstance(error, NotUtf8Error) else "unreadable"
        _skip(reason, f"{name}:{index}: {error}", config, report)


def _items(chunks: Iterator[str]) -> Iterator[Any]:
    """The items of the array that the chunks make up. Raises ValueError or RecursionError where they are no JSON, and
    where an item is longer than LONGEST_ITEM."""
    decoder = json.JSONDecoder()
    text, at = "", 0

    def more() -> bool:
        """Append the next chunk, and drop what is done with."""
        nonlocal text, at
        chunk = next(chunks, "")
        text, at = text[at:] + chunk, 0
        return bool(chunk)

    def next_sign() -> str:
        """The next character that is not white space; "" at the end."""
        nonlocal at
        while True:
            while at < len(text) and text[at] in _SPACE:
                at += 1
            if at < len(text):
                return text[at]
            if not more():
                return ""

    if next_sign() != "[":
        raise ValueError("it does not begin as an array")
    at += 1
    if next_sign() == "]":
        at += 1
    else:
        sign = ","
        while sign == ",":
            if not next_sign():
                raise ValueError("the array has no end")
            is_over = False
            while True:
                try:
                    item, end = decoder.raw_decode(text, at)
                    if end < len(text) or is_over:  # a number at the end of a chunk may go on
                        break
                except json.JSONDecodeError:
                    if is_over or len(text) - at > LONGEST_ITEM:
                        raise
                is_over = not more()
            at = end
            yield item
            sign = next_sign()
            at += 1
        if sign != "]":
            raise ValueError(f"expected a comma or the end of the array, found {sign!r}")
    if next_sign():
        raise ValueError("there is more text behind the array")
