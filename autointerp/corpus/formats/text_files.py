"""Plain text files: one document each, or several with a separator between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.corpus.formats.decoded_text import LINE_BYTES, NotUtf8Error, decoded
from autointerp.corpus.formats.unpack import UNREADABLE, opened
from autointerp.corpus.splits import Piece


def text_pieces(path: Path, name: str, config: CorpusConfig, report: CorpusReport) -> Iterator[Piece]:
    """The documents of a text file, in pieces of about 1 MB. What cannot be read is counted; what came before it
    stays."""
    separator = config.document_separator
    report.n_records += 1
    index, rest, is_open = 0, "", False

    def named() -> str:
        return f"{name}:{index}" if separator else name

    try:
        with opened(path) as handle:
            for text in decoded(handle, report):
                if not separator:
                    yield Piece(name, text, True)
                    is_open = True
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
    except (*UNREADABLE, NotUtf8Error) as error:
        report.skip("not_utf8" if isinstance(error, NotUtf8Error) else "unreadable", f"{name}: {error}")
        report.check(config.max_skipped_share, config.text_field, final=False)
        if not (is_open or rest.strip()):
            return
    if index and not is_open and not rest.strip():
        report.n_records -= 1  # the file ended with a separator
        return
    yield Piece(named(), rest, False)
