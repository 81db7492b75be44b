"""Compares the token text of a corpus's first windows with what the tokenizer itself decodes for them.

A decoder may write one token differently in different places: those that undo Moses's or Penn's spacing of punctuation
do, for example. Looked up by id, their tokens do not join to the decoded text, and a person should know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from autointerp.corpus.token_bytes import REPLACEMENT
from autointerp.corpus.token_text import TokenText
from autointerp.records import Window

SHOWN = 60
"""Characters of an example."""


def text_misfit(text: TokenText, windows: Iterable[Window]) -> str | None:
    """In words, how many of the windows have tokens that do not join to what the tokenizer decodes, with the first
    place; None where all do."""
    n_windows, misfits = 0, []
    for window in windows:
        n_windows += 1
        if not joins(text, window.token_ids):
            misfits.append(window)
    if not misfits:
        return None
    first = misfits[0]
    shown, said = _apart("".join(text.tokens(first.token_ids)), text.decoded(first.token_ids)[-1])
    return (
        f"the text of {len(misfits)} of {n_windows} windows is not what the tokenizer decodes (first: "
        f"{first.document}, shown as {shown!r}, decoded as {said!r}): its decoder writes a token differently in "
        "different places. Contexts and labels show every token in one way"
    )


def joins(text: TokenText, ids: Sequence[int]) -> bool:
    """Whether the tokens join to what the tokenizer decodes, alone or amid a text. Bytes that form no character do not
    count, since decoders write U+FFFD for them, or nothing; nor do tokens that the decoder is known to misread."""
    parts = groupby(ids, key=text.misread_ids.__contains__)
    return all(_part_joins(text, list(part)) for misread, part in parts if not misread)


def _part_joins(text: TokenText, ids: Sequence[int]) -> bool:
    decoded = set(text.decoded(ids))
    return "".join(text.tokens(ids)) in decoded or any(
        _collapsed(form) == _collapsed(said) for form in _lossy(text, ids) for said in decoded
    )


def _lossy(text: TokenText, ids: Sequence[int]) -> Iterator[str]:
    """The text of these ids as decoders write it that meet bytes which form no character."""
    raw = [text.token_bytes[i] for i in ids]
    yield b"".join(raw).decode("utf-8", "replace")
    yield b"".join(raw).decode("utf-8", "ignore")
    # Byte fallback: if a run of byte tokens is not whole, none of it is.
    parts = []
    for is_byte, run in groupby(ids, key=text.spelled_ids.__contains__):
        joined = b"".join(text.token_bytes[i] for i in run)
        try:
            parts.append(joined.decode())
        except UnicodeDecodeError:
            parts.append(REPLACEMENT if is_byte else joined.decode("utf-8", "replace"))
    yield "".join(parts)


def _collapsed(string: str) -> str:
    return re.sub(f"{REPLACEMENT}+", REPLACEMENT, string)


def _apart(one: str, other: str) -> tuple[str, str]:
    """Both strings from a little before the place where they part."""
    n_common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, n_common - SHOWN // 2)
    return one[start : start + SHOWN], other[start : start + SHOWN]
