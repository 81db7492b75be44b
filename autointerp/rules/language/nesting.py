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
_NUMBER = {"": 0, "#": 2}
"""Of the states while reading; any other is a quote, 1."""
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
    first = places == starts[text_of - 1]
    read: dict[tuple[str, int, bool], tuple[int, str]] = {}
    """(what is open, the token, whether a word stands before it): (what it is inside of, what is open behind it)."""
    state, text, inside, after = "", -1, [], []
    rows = zip(tokens.codes[places].tolist(), before.tolist(), text_of.tolist(), first.tolist(), strict=True)
    for code, last, own, is_first in rows:
        if own != text:
            state, text = "", own
        key = state, code, not is_first and ends_in_word[last]
        found = read.get(key)
        if found is None:
            found = read[key] = _read(marks[code], state, key[2])
        state = found[1]
        inside.append(found[0])
        after.append(_NUMBER.get(state, 1))
    states = np.zeros(len(tokens.codes), dtype=np.int8)
    if len(places):  # what is open behind a token with marks is open up to the next such token, or the text's end
        ends = np.append(places[1:], len(states))
        until = np.repeat(starts[text_of], ends - places)
        open_behind = np.repeat(np.array(after, dtype=np.int8), ends - places)
        states[places[0] :] = np.where(np.arange(places[0], len(states)) < until, open_behind, 0)
        states[places] = inside
    return states == 1, states == 2


def _read(marks: list[_Mark], state: str, after_word: bool) -> tuple[int, str]:
    """(the number of the state if it stayed the same through all marks of a token, else 0; the state behind them). A
    state is the mark that closes the open quote, '#' in a comment, '' elsewhere."""
    was, stays = state, True
    for mark in marks:
        state = _next(mark, state, after_word if mark.after_word is None else mark.after_word)
        stays &= state == was
    return _NUMBER.get(was, 1) if stays else 0, state


def _next(mark: _Mark, state: str, after_word: bool) -> str:
    if mark.text == "\n":
        return "" if state in ("#", "'") else state
    if state == "#":
        return "#"
    if state:
        closes = mark.text == state and not (mark.text == "'" and after_word and mark.before_word)
        return "" if closes else state
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
