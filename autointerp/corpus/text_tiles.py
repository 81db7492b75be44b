"""The tiles of a text without a model: the stretches of a window in which a harvest counts, as lists of token strings.

A window's tiles begin at its first token after the prefix, and the last one may be shorter (harvest/tiles.py cuts them
as tensors). Token strings are decoded for the whole window, so a character that is split between two tiles belongs to
the one that holds its last token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from autointerp.corpus.token_text import TokenText
from autointerp.records import Window

_LATER_BLOCK = re.compile(r"#[1-9][0-9]*\Z")
"""The name of a block of a large document, but not of its first, just as SQL tells it (store/first_tokens.py)."""


class TextTile(NamedTuple):
    document: str
    start: int
    """The place of its first token in the document's tokens."""
    tokens: list[str]
    begins_document: bool
    begins_window: bool


def tiles_of(window: Window, text: TokenText, tile_tokens: int) -> Iterator[TextTile]:
    """The tiles of one window, in order."""
    tokens, prefix = text.tokens(window.token_ids), window.n_prefix
    begins_document = window.start == 0 and _LATER_BLOCK.search(window.document) is None
    for at in range(prefix, len(tokens), tile_tokens):
        is_first = at == prefix
        start = window.start + at - prefix
        yield TextTile(window.document, start, tokens[at : at + tile_tokens], is_first and begins_document, is_first)
