"""What was opened to the left of a token and is not closed yet: brackets, quotes, comments, as far as the text shows.

Brackets of each kind are counted by themselves; a closing one that closes nothing counts for nothing. A `'` opens a
quote only where no word stands before it, and an apostrophe inside a word closes none. Comments are those of `#` and
`//`, up to the end of the line; a mark in a comment opens no quote, and one in a quote no comment.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.rules.language.column import Column

BRACKETS = {"(": ")", "[": "]", "{": "}"}
_MARKS = re.compile(r"[\"'“”«»#\n]|//")
_CLOSES = {'"': '"', "'": "'", "“": "”", "«": "»"}


def inside_bracket(tokens: Column, starts: NDArray[np.int64], opening: str) -> NDArray[np.bool_]:
    """[tokens]: whether a bracket of this kind is open before the token, and the token does not close it."""
    closing = BRACKETS[opening]
    steps = [[(c == opening) - (c == closing) for c in one] for one in tokens.strings]
    net = np.array([sum(of) for of in steps], dtype=np.int64)[tokens.codes]
    lowest = np.array([_lowest(of) for of in steps], dtype=np.int64)[tokens.codes]
    before = np.cumsum(net) - net
    sizes = np.diff(starts)
    before -= np.repeat(before[np.minimum(starts[:-1], max(0, len(net) - 1))] if len(net) else starts[:-1], sizes)
    # The smallest count so far, in each text: every text lies below all before it, so that none is carried over.
    below = np.repeat(np.arange(len(sizes)), sizes) * (2 * int(np.abs(net).sum() + np.abs(lowest).sum()) + 1)
    smallest = np.minimum.accumulate(np.minimum(0, before + lowest) - below) + below
    unclosed = before - np.minimum(0, np.concatenate([[0], smallest[:-1]])[: len(net)])
    first = starts[:-1][sizes > 0]
    unclosed[first] = 0
    found: NDArray[np.bool_] = unclosed + lowest > 0
    return found


def _lowest(steps: list[int]) -> int:
    """The smallest sum of the first few steps, 0 of none."""
    total = lowest = 0
    for step in steps:
        total += step
        lowest = min(lowest, total)
    return lowest


class _Mark(NamedTuple):
    text: str
    after_word: bool | None
    """Whether a word character stands before it; None where that is in the token before."""
    before_word: bool
    """Whether a word character stands behind it, in the same token."""
    after_colon: bool


def quotes_and_comments(tokens: Column, starts: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each token, whether it is inside a quote, and whether inside a comment."""
    marks = [_marks(one) for one in tokens.strings]
    ends_in_word = [bool(one) and _is_word(one[-1]) for one in tokens.strings]
    places = np.flatnonzero(np.array([bool(of) for of in marks], dtype=np.bool_)[tokens.codes])
    text_of = np.searchsorted(starts, places, side="right")
    before = tokens.codes[places - 1]
    reader, text, rows = _Reader(), -1, []
    codes = tokens.codes[places].tolist()
    first = np.isin(places, starts)
    for code, last, own, is_first in zip(codes, before.tolist(), text_of.tolist(), first.tolist(), strict=True):
        if own != text:
            reader, text = _Reader(), own
        was = reader.state
        stays = reader.read(marks[code], not is_first and ends_in_word[last])
        rows.append((was if stays else "", reader.state))
    found = [np.zeros(len(tokens.codes), dtype=np.bool_) for _ in range(2)]
    ends = np.append(places[1:], len(tokens.codes))
    ends = np.minimum(ends, starts[text_of]) if len(places) else ends
    for place, end, (inside, after) in zip(places.tolist(), ends.tolist(), rows, strict=True):
        if inside:
            found[inside == "#"][place] = True
        if after:
            found[after == "#"][place + 1 : end] = True
    return found[0], found[1]


class _Reader:
    """Reads the marks of one text in order."""

    def __init__(self) -> None:
        self.state = ""
        """The mark that closes the open quote, '#' in a comment, '' elsewhere."""

    def read(self, marks: list[_Mark], after_word: bool) -> bool:
        """Reads a token's marks; whether what was open stayed open all along."""
        stays = True
        for mark in marks:
            before = self.state
            self.state = self._next(mark, after_word if mark.after_word is None else mark.after_word)
            stays &= self.state == before
        return stays

    def _next(self, mark: _Mark, after_word: bool) -> str:
        if mark.text == "\n":
            return "" if self.state in ("#", "'") else self.state
        if self.state == "#":
            return "#"
        if self.state:
            closes = mark.text == self.state and not (mark.text == "'" and after_word and mark.before_word)
            return "" if closes else self.state
        if mark.text in ("#", "//"):
            return "" if after_word or mark.after_colon else "#"
        return "" if mark.text == "'" and after_word else _CLOSES.get(mark.text, "")


def _marks(token: str) -> list[_Mark]:
    found = []
    for match in _MARKS.finditer(token):
        start, end = match.span()
        found.append(
            _Mark(
                match.group(),
                _is_word(token[start - 1]) if start else None,
                end < len(token) and _is_word(token[end]),
                start > 0 and token[start - 1] == ":",
            )
        )
    return found


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
