"""Assigns documents to splits and cuts large documents into blocks. Both depend on the corpus alone.

The split is a hash of the document's content with its white space normalised, so copies of a document are on the same
side under any name. A document larger than a block is cut into blocks with a gap between them. Each block is a document
of its own (`name#0`, `name#1`, ...) with its own split. A corpus of few documents is cut into smaller blocks, so that
even a single file feeds all three splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.errors import InputError
from autointerp.records import SPLITS, Document, Split

FEW_DOCUMENTS = 64
"""A corpus of fewer documents is cut into about this many blocks."""
SMALLEST_BLOCK = 2000
"""Characters. A smaller block would hold too few windows to be a document."""
LONGEST_GAP = 1000
"""Characters left out between two blocks, or a twentieth of a block where that is less."""
BOUNDARY_SEARCH = 200
"""Characters after the gap in which the next block's start is moved to the start of a line or word."""


class Piece(NamedTuple):
    """A stretch of one raw document. `more` says that the next piece continues the same document."""

    name: str
    text: str
    more: bool


def split_of(text: str, heldout_fraction: float) -> Split:
    """The split of a document: explain with probability 1 - heldout_fraction, else select or report, equally often."""
    digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < 1.0 - heldout_fraction:
        return "explain"
    return "select" if share < 1.0 - heldout_fraction / 2 else "report"


def gap_characters(block: int) -> int:
    return min(LONGEST_GAP, block // 20)


def _cut(text: str, block: int) -> tuple[str, str]:
    """The first block of `text`, and the rest after the gap. Both are cut at a line or word boundary if there is one.

    The cut depends only on the first `block + gap + BOUNDARY_SEARCH` characters, in whatever pieces the text arrives.
    """
    end = text.rfind("\n", block // 2, block) + 1
    if not end:
        end = text.rfind(" ", block // 2, block) + 1 or block
    start = end + gap_characters(block)
    for boundary in ("\n", " "):
        found = text.find(boundary, start, start + BOUNDARY_SEARCH)
        if found >= 0:
            start = found + 1
            break
    return text[:end], text[start:]


def _blocks(pieces: Iterable[Piece], block: int) -> Iterator[tuple[str, str]]:
    """(name, text) of every document that fits into a block, and of every block of a larger document."""
    enough = block + gap_characters(block) + BOUNDARY_SEARCH
    text, n_cut = "", 0
    for piece in pieces:
        text = text + piece.text if text else piece.text
        while len(text) > (enough if piece.more else block):
            head, text = _cut(text, block)
            yield f"{piece.name}#{n_cut}", head
            n_cut += 1
        if not piece.more:
            # A blank rest after the last gap is not a document.
            if not n_cut or text.strip():
                yield (f"{piece.name}#{n_cut}" if n_cut else piece.name), text
            text, n_cut = "", 0


def _peek(pieces: Iterator[Piece], config: CorpusConfig) -> tuple[list[Piece], int]:
    """The first pieces, and the block size in characters that suits the corpus.

    Reads at most FEW_DOCUMENTS documents or FEW_DOCUMENTS full blocks of text, whichever comes first.
    """
    peeked: list[Piece] = []
    n_documents, n_characters, has_text = 0, 0, False
    for piece in pieces:
        peeked.append(piece)
        n_characters += len(piece.text)
        has_text = has_text or bool(piece.text.strip())
        if not piece.more:
            n_documents, has_text = n_documents + has_text, False
        if n_documents >= FEW_DOCUMENTS or n_characters >= FEW_DOCUMENTS * config.block_characters:
            return peeked, config.block_characters
    finer = max(SMALLEST_BLOCK, n_characters // FEW_DOCUMENTS)
    return peeked, min(config.block_characters, finer)


def split_documents(pieces: Iterator[Piece], config: CorpusConfig, report: CorpusReport) -> Iterator[Document]:
    """Documents with their splits, counted in `report`. Blank documents are skipped."""
    peeked, block = _peek(pieces, config)
    for name, text in _blocks(chain(peeked, pieces), block):
        if not text or text.isspace():
            report.skip("empty", name)
            continue
        split = split_of(text, config.heldout_fraction)
        report.n_documents += 1
        report.n_characters += len(text)
        report.split_documents[split] += 1
        yield Document(name, text, split)


def require_all_splits(report: CorpusReport) -> None:
    """Raise InputError unless each of the three splits has a document. Call it once the corpus has been read."""
    empty = [split for split in SPLITS if not report.split_documents[split]]
    if empty:
        got = ", ".join(f"{split} {report.split_documents[split]}" for split in SPLITS)
        raise InputError(
            f"the corpus has no document for {' and '.join(empty)} (documents: {got}; {report.n_characters} "
            "characters). Labels are made from one part of the text and scored on another. Add text, "
            "raise corpus.max_tokens, or set corpus.heldout_fraction nearer to 0.5"
        )
