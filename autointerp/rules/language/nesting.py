"""What was opened to the left of a token and is not closed yet: brackets, quotes, comments, as far as the text shows.

Brackets of each kind are counted by themselves; a closing one that closes nothing counts for nothing. A `'` opens a
quote only where no word stands before it, and an apostrophe inside a word closes none. Comments are those of `#` and
`//`, up to the end of the line; a mark in a comment opens no quote, and one in a quote no comment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.rules.language.groups import Codes, Places, flagged

BRACKETS = {"(": ")", "[": "]", "{": "}"}
_MARKS = re.compile(r"[\"'“”«»#\n]|//")
_NUMBER = {"": 0, "#": 2}
"""Of the states while reading; any other is a quote, 1."""
_STATES = ("", '"', "'", "”", "»", "#")
"""While reading: the mark that closes the open quote, '#' in a comment, '' elsewhere."""
_N = len(_STATES)
_QUOTES, _COMMENTS = (1, 2, 3, 4), (5,)
"""Numbers of states."""
_STRETCH = 64
_CLOSES = {'"': '"', "'": "'", "“": "”", "«": "»"}


def inside_bracket(strings: Sequence[str], tokens: Codes, starts: NDArray[np.int64], opening: str) -> NDArray[np.bool_]:
    """[tokens]: whether a bracket of this kind is open before the token, and the token does not close it. `tokens`: the
    number of each token's string; `starts` [texts + 1]: where the texts begin."""
    closing = BRACKETS[opening]
    steps = [
        [(c == opening) - (c == closing) for c in one] if opening in one or closing in one else [] for one in strings
    ]
    places = flagged(np.array([bool(of) for of in steps], dtype=np.bool_)[tokens])
    net = np.array([sum(of) for of in steps], dtype=np.int64)[tokens[places]]
    lowest = np.array([_lowest(of) for of in steps], dtype=np.int64)[tokens[places]]
    text_of = np.searchsorted(starts, places, side="right") - 1
    is_first = np.diff(text_of, prepend=-1) != 0
    before = np.cumsum(net) - net
    before -= before[np.maximum.accumulate(np.where(is_first, np.arange(len(places)), 0))]
    # The smallest count so far, in each text: every text lies below all before it, so that none is carried over.
    below = text_of * (2 * int(np.abs(net).sum() + np.abs(lowest).sum()) + 1)
    smallest = np.minimum.accumulate(np.minimum(0, before + lowest) - below) + below
    opened = before + net - smallest  # behind each of the places
    unclosed = np.where(is_first, 0, np.concatenate([[0], opened[:-1]])[: len(places)])
    found = _up_to_the_next(places, opened > 0, starts[text_of + 1], len(tokens))
    found[places] = unclosed + lowest > 0
    return found


def _up_to_the_next(places: Places, is_open: NDArray[np.bool_], ends: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """[n]: what is open behind each of the places, up to the next one or the end of its text."""
    until = np.minimum(ends, np.append(places[1:], n)) if len(places) else ends
    changes = np.zeros(n + 1, dtype=np.int8)
    changes[places[is_open] + 1] += 1
    changes[until[is_open]] -= 1
    return np.cumsum(changes[:-1], dtype=np.int8).view(np.bool_)


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


def quotes_and_comments(
    strings: Sequence[str], tokens: Codes, starts: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each token, whether it is inside a quote, and whether inside a comment."""
    # Many tokens have the same marks, such as one line break at their end.
    numbers, index = stats.numbered(marks_of(one) for one in strings)
    marks = list(index)
    ends_in_word = np.array([bool(one) and _is_word(one[-1]) for one in strings], dtype=np.bool_)
    places = flagged((numbers != index.get((), -1))[tokens])
    text_of = np.searchsorted(starts, places, side="right") - 1
    after_word = ends_in_word[tokens[places - 1]] & (places != starts[text_of])
    different, row_of = np.unique(numbers[tokens[places]] * 2 + after_word, return_inverse=True)
    read = [[read_marks(marks[one // 2], state, bool(one % 2)) for state in _STATES] for one in different.tolist()]
    behind = np.array([[_STATES.index(state) for _, state in row] for row in read], dtype=np.uint8).reshape(-1, _N)
    inside = np.array([[number for number, _ in row] for row in read], dtype=np.uint8).reshape(-1, _N)
    before = _before_each(behind[row_of], np.diff(text_of, prepend=-1) != 0)
    now, then = inside[row_of, before], behind[row_of, before]
    found = []
    for number, states in ((1, _QUOTES), (2, _COMMENTS)):
        flags = _up_to_the_next(places, np.isin(then, states), starts[text_of + 1], len(tokens))
        flags[places] = now == number
        found.append(flags)
    return found[0], found[1]


def _before_each(behind: NDArray[np.uint8], is_first: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The state before each of a row of steps. `behind` [steps, states]: the state behind each step, for every state
    before it. Before the first steps of texts nothing is open.

    Stretches of equal length are walked side by side, from every state at once; then it is known from which state on
    each of them is really walked.
    """
    n = len(behind)
    length = min(_STRETCH, math.isqrt(n) + 1)
    n_stretches = -(-n // length)
    walk = np.tile(np.arange(_N), (n_stretches * length, 1))
    walk[:n] = behind
    walk[:n][is_first] = behind[is_first, :1]
    walk += _N * np.arange(n_stretches).repeat(length)[:, None]  # a state is a number of its own in each stretch
    steps = np.ascontiguousarray(walk.reshape(n_stretches, length, _N).swapaxes(0, 1)).reshape(length, -1)
    ends = np.arange(n_stretches * _N)
    for step in steps:
        ends = step[ends]
    first = [0]
    for row in (ends % _N).reshape(n_stretches, _N).tolist():
        first.append(row[first[-1]])
    state = np.array(first[:-1], dtype=np.intp) + _N * np.arange(n_stretches)
    found = np.empty((length, n_stretches), dtype=np.intp)
    for k, step in enumerate(steps):
        found[k] = state
        state = step[state]
    before: NDArray[np.intp] = (found % _N).T.ravel()[:n]
    before[is_first] = 0
    return before


def read_marks(marks: list[_Mark], state: str, after_word: bool) -> tuple[int, str]:
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


def marks_of(token: str) -> tuple[_Mark, ...]:
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
    return tuple(found)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
