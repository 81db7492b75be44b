"""Bytes to text: UTF-8, with every byte that is none replaced by U+FFFD and counted."""

from __future__ import annotations

import codecs
import threading
from collections.abc import Iterator
from typing import IO

from autointerp.corpus.corpus_report import MOST_REPLACED, CorpusReport

LINE_BYTES = 1_000_000
"""A longer line is skipped without being held in memory. Text is read in chunks of this size."""
FEW_REPLACED = 20
"""So few characters that are not UTF-8 speak against no file."""
_HANDLER = "autointerp-replace-and-count"
_counted = threading.local()


class NotUtf8Error(Exception):
    """Too much of a file is not UTF-8."""


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    _counted.n += 1
    return "\ufffd", error.end


codecs.register_error(_HANDLER, _replace)


def decoded_line(line: bytes, report: CorpusReport) -> str:
    """A record's text. What was replaced is counted."""
    _counted.n = 0
    text = line.decode("utf-8", _HANDLER)
    report.decoded(len(text), _counted.n)
    report.n_replaced += _counted.n > 0
    return text


def decoded(handle: IO[bytes], report: CorpusReport) -> Iterator[str]:
    """The file's text in chunks, without byte order mark and NULs. Raises NotUtf8Error once more than MOST_REPLACED of
    its characters are not UTF-8; the chunk in question is not yielded."""
    decoder = codecs.getincrementaldecoder("utf-8")(_HANDLER)
    n_characters = n_replaced = 0
    stripped = False
    first = True
    while True:
        chunk = handle.read(LINE_BYTES)
        _counted.n = 0
        text = decoder.decode(chunk, not chunk)
        replaced = _counted.n
        n_characters, n_replaced = n_characters + len(text), n_replaced + replaced
        if n_replaced > max(FEW_REPLACED, MOST_REPLACED * n_characters):
            raise NotUtf8Error(f"{n_replaced:,} of its first {n_characters:,} characters are not UTF-8")
        report.decoded(len(text), replaced)
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if "\0" in text:
            stripped, text = True, text.replace("\0", "")
        if text:
            yield text
        if not chunk:
            break
    report.n_replaced += n_replaced > 0
    report.n_stripped += stripped
