"""Assigns documents to splits and cuts large documents into blocks. Both depend on the corpus alone.

The split is a hash of the document's content with its white space normalised, so copies of a document are on the same
side under any name. A document larger than a block is cut into blocks with a gap between them. Each block is a document
of its own (`name#0`, `name#1`, ...) with its own split.

A corpus of few documents is cut into smaller blocks, so that even a single file feeds all three splits. What stands in
one block of a file is talked about in the next, so there the blocks of a file are not split one by one. They are split
by runs, which go from explain over select to report and back: a report block never lies beside an explain block, and
there are few borders. Which end the runs begin at is a hash of the file's content. Copies of a block take the split of
the first, and a file of one or two blocks goes to one split as a whole, by its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal, NamedTuple

from autointerp.config import CorpusConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.errors import InputError
from autointerp.records import SPLITS, Document, Split, source_of

FEW_DOCUMENTS = 64
"""A corpus of fewer documents is cut into about this many blocks."""
SMALLEST_BLOCK = 2000
"""Characters. A smaller block would hold too few windows to be a document."""
LONGEST_GAP = 1000
"""Characters left out between two blocks, or a twentieth of a block where that is less."""
BOUNDARY_SEARCH = 200
"""Characters after the gap in which the next block's start is moved to the start of a line or word."""
LEG_BLOCKS = 16
"""Blocks in which the runs go once from explain to report, or back."""
SplitRule = Literal["hash", "runs"]
"""hash: every document and block by the hash of its content. runs: the blocks of one file by runs."""


class Piece(NamedTuple):
    """A stretch of one raw document. `more` says that the next piece continues the same document."""

    name: str
    text: str
    more: bool


class _Block(NamedTuple):
    name: str
    text: str
    number: int | None
    """Its place in the document that it was cut from; None for a whole document."""


def split_of(text: str, heldout_fraction: float) -> Split:
    """The split of a document: explain with probability 1 - heldout_fraction, else select or report, equally often."""
    share = int.from_bytes(_content_hash(text)[:8], "big") / 2**64
    if share < 1.0 - heldout_fraction:
        return "explain"
    return "select" if share < 1.0 - heldout_fraction / 2 else "report"


def _content_hash(text: str) -> bytes:
    return hashlib.sha256(" ".join(text.split()).encode()).digest()


def run_splits(n: int, heldout_fraction: float, is_backwards: bool) -> list[Split]:
    """The splits of the `n` blocks of a file (n >= 3), in order: legs of about LEG_BLOCKS that go from explain over
    select to report, and back. No report block is beside an explain block."""
    n_legs = max(1, n // LEG_BLOCKS)
    splits: list[Split] = []
    for leg in range(n_legs):
        size = n * (leg + 1) // n_legs - n * leg // n_legs
        held = min(max(1, round(size * heldout_fraction / 2)), (size - 1) // 2)
        runs: list[tuple[Split, int]] = [("explain", size - 2 * held), ("select", held), ("report", held)]
        forwards = [split for split, length in runs for _ in range(length)]
        splits += forwards[::-1] if (leg % 2 == 1) != is_backwards else forwards
    return splits


def gap_characters(block: int) -> int:
    return min(LONGEST_GAP, block // 20)


def _cut(text: str, block: int, gap: int) -> tuple[str, str]:
    """The first block of `text`, and the rest after the gap. Both are cut at a line or word boundary if there is one.

    The cut depends only on the first `block + gap + BOUNDARY_SEARCH` characters, in whatever pieces the text arrives.
    """
    end = text.rfind("\n", block // 2, block) + 1
    if not end:
        end = text.rfind(" ", block // 2, block) + 1 or block
    if not gap:
        return text[:end], text[end:]
    start = end + gap
    for boundary in ("\n", " "):
        found = text.find(boundary, start, start + BOUNDARY_SEARCH)
        if found >= 0:
            start = found + 1
            break
    return text[:end], text[start:]


def _blocks(pieces: Iterable[Piece], block: int, gap: int) -> Iterator[_Block]:
    """Every document that fits into a block, and every block of a larger document."""
    enough = block + gap + BOUNDARY_SEARCH
    text, n_cut = "", 0
    for piece in pieces:
        text = text + piece.text if text else piece.text
        while len(text) > (enough if piece.more else block):
            head, text = _cut(text, block, gap)
            yield _Block(f"{piece.name}#{n_cut}", head, n_cut)
            n_cut += 1
        if not piece.more:
            # A blank rest after the last gap is not a document.
            if not n_cut or text.strip():
                looks_cut = source_of(piece.name) != piece.name  # an id that ends in #3 is not to pass for a block
                name = f"{piece.name}#{n_cut}" if n_cut or looks_cut else piece.name
                yield _Block(name, text, n_cut if n_cut else None)
            text, n_cut = "", 0


def _peek(pieces: Iterator[Piece], config: CorpusConfig) -> tuple[list[Piece], int | None]:
    """The first pieces; and, where they are the whole corpus and it is small, the block size in characters that suits
    it, else None.

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
            return peeked, None
    finer = max(SMALLEST_BLOCK, n_characters // FEW_DOCUMENTS)
    return peeked, min(config.block_characters, finer)


def split_rule_of(pieces: Iterator[Piece], config: CorpusConfig) -> SplitRule:
    """By which rule the corpus is split; reads no more than its beginning."""
    return "hash" if _peek(pieces, config)[1] is None else "runs"


def split_documents(
    pieces: Iterator[Piece], config: CorpusConfig, report: CorpusReport, by_runs: bool = True
) -> Iterator[Document]:
    """Documents with their splits, counted in `report`. Blank documents are skipped. `by_runs` False: a small corpus,
    too, is split block by block."""
    peeked, finer = _peek(pieces, config)
    block = config.block_characters if finer is None else finer
    blocks = _blocks(chain(peeked, pieces), block, gap_characters(block))
    if finer is not None and by_runs:
        split_blocks = _by_runs(blocks, config.heldout_fraction)
    else:
        split_blocks = ((one, split_of(one.text, config.heldout_fraction)) for one in blocks)
    yield from _counted(split_blocks, report)


def whole_documents(pieces: Iterator[Piece], config: CorpusConfig, report: CorpusReport) -> Iterator[Document]:
    """Documents for a use that has no splits, all of which are said to be in one: nothing is left out between the
    blocks of a large document, and a small corpus is not cut finer. Blank documents are skipped."""
    return _counted(((block, SPLITS[0]) for block in _blocks(pieces, config.block_characters, 0)), report)


def _counted(blocks: Iterable[tuple[_Block, Split]], report: CorpusReport) -> Iterator[Document]:
    for block, split in blocks:
        if not block.text or block.text.isspace():
            report.skip("empty", block.name)
            continue
        report.n_documents += 1
        report.n_characters += len(block.text)
        report.split_documents[split] += 1
        yield Document(block.name, block.text, split)


def _by_runs(blocks: Iterable[_Block], heldout_fraction: float) -> Iterator[tuple[_Block, Split]]:
    """The blocks of a small corpus with their splits, in order."""
    known: dict[bytes, Split] = {}
    of_file: list[_Block] = []
    for block in chain(blocks, [None]):
        if of_file and (block is None or not block.number):
            n = len(of_file)
            if n >= 3:
                whole = _content_hash("".join(one.text for one in of_file))
                splits = run_splits(n, heldout_fraction, is_backwards=bool(whole[-1] & 1))
            else:
                splits = [split_of(of_file[0].text, heldout_fraction)] * n
            for one, split in zip(of_file, splits, strict=True):
                yield one, known.setdefault(_content_hash(one.text), split)
            of_file = []
        if block is not None:
            of_file.append(block)


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
