"""Where clauses hold in many texts, in time linear in the texts whatever the clauses are.

The rarest positive condition of a clause gives the places that are looked at; the other conditions are asked there
only. What a condition asks of a token by itself is asked once of each different string (column.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.rules.language.classes import BEGINS_WORD, CONTINUES_WORD
from autointerp.rules.language.column import Codes, Column, Places, distinct
from autointerp.rules.language.conditions import (
    Classes,
    Clause,
    Combine,
    Condition,
    Inside,
    Left,
    Near,
    Not,
    Regex,
    Starts,
    StringKey,
    Strings,
    Test,
    Topic,
)
from autointerp.rules.language.inflections import forms_of
from autointerp.rules.language.token_texts import Texts

Flags = NDArray[np.bool_]


def holds(clause: Clause, texts: Texts) -> Flags:
    """[tokens]: where the clause holds."""
    found = np.zeros(texts.n_tokens, dtype=np.bool_)
    found[places_of(clause, texts)] = True
    return found


def places_of(clause: Clause, texts: Texts) -> Places:
    """The tokens on which the clause holds, each once, in no order."""
    if not texts.n_tokens:
        return np.zeros(0, dtype=np.intp)
    finders = [_finder(condition, texts) for condition in clause.conditions]
    rarest = min(finders, key=lambda one: one.size)
    places = rarest.places()
    for finder in sorted(finders, key=lambda one: one.cost):
        if finder is not rarest and len(places):
            places = places[finder.at(places)]
    return places


def predicted_of(clauses: Sequence[Clause], combine: Combine, texts: Texts) -> tuple[Places, NDArray[np.float64]]:
    """(the tokens on which any clause holds, ascending; what the clauses predict there together)."""
    is_held = np.zeros(texts.n_tokens, dtype=np.bool_)
    predicted = np.zeros(texts.n_tokens)
    # The strongest clause comes last where the strongest counts.
    for clause in sorted(clauses, key=lambda clause: clause.strength) if combine == "max" else clauses:
        places = places_of(clause, texts)
        is_held[places] = True
        if combine == "max":
            predicted[places] = clause.strength
        else:
            predicted[places] += clause.strength
    held = np.flatnonzero(is_held)
    return held, predicted[held]


class _Finder(NamedTuple):
    """One condition, ready to be asked about."""

    size: int
    """On how many tokens it holds, or a larger number where that is not known."""
    places: Callable[[], Places]
    at: Callable[[Places], Flags]
    """Whether it holds on each of some tokens."""
    cost: int
    """Conditions that cost less are asked first."""


def _finder(condition: Condition, texts: Texts) -> _Finder:
    match condition:
        case Not(inner):
            positive = _finder(inner, texts)
            return _Finder(texts.n_tokens + 1, _nowhere, lambda places: ~positive.at(places), positive.cost)
        case Left(test, within):
            return _left(test, within, texts)
        case Starts(of):
            is_start = np.any([texts.is_start_of(what) for what in of], axis=0)
            return _Finder(
                int(np.count_nonzero(is_start)), lambda: np.flatnonzero(is_start), lambda places: is_start[places], 1
            )
        case Inside(of):
            return _dense(lambda places: np.any([texts.inside(what)[places] for what in of], axis=0), texts, 1)
        case Topic(test, least):
            is_about = _topic(test, least, texts)
            size = int(np.diff(texts.starts)[is_about].sum())
            return _Finder(
                size,
                lambda: np.flatnonzero(np.repeat(is_about, np.diff(texts.starts))),
                lambda places: is_about[texts.text_of[places]],
                0,
            )
        case Near():
            return _test(Strings("word", condition.words), texts)
        case _:
            return _test(condition, texts)


def _dense(at: Callable[[Places], Flags], texts: Texts, cost: int) -> _Finder:
    return _Finder(texts.n_tokens, lambda: np.flatnonzero(at(_all(texts))), at, cost)


def _nowhere() -> Places:
    raise ValueError("a clause needs a condition that is no negation")


def _all(texts: Texts) -> Places:
    return np.arange(texts.n_tokens)


# --- what is asked of single tokens -----------------------------------------------------------------------------------


def _test(test: Test, texts: Texts) -> _Finder:
    if isinstance(test, Regex):
        return _dense(lambda places: _regex_at(test.pattern, texts, places), texts, 4)
    if isinstance(test, Classes) and {BEGINS_WORD, CONTINUES_WORD} & set(test.of):
        return _dense(_words_or_pieces(test.of, texts), texts, 2)
    if isinstance(test, Classes):
        chosen = [(texts.tokens, np.flatnonzero(np.any([texts.of_class(name) for name in test.of], axis=0)))]
    else:
        chosen = _columns(test.key, test.of, texts)
    size = sum(column.count(codes) for column, codes in chosen)
    return _Finder(size, lambda: _union([column.places(codes) for column, codes in chosen]), _in_columns(chosen), 1)


def _columns(key: StringKey, of: Sequence[str], texts: Texts) -> list[tuple[Column, Codes]]:
    """The strings that are looked for, in each of the columns in which they are."""
    match key:
        case "token":
            return [(texts.tokens, texts.tokens.folded(of))]
        case "exact":
            return [(texts.tokens, texts.tokens.exactly(of))]
        case "prefix":
            return [(texts.words, texts.words.with_prefix(of))]
        case "suffix":
            return [(texts.words, texts.words.with_suffix(of))]
    words = list(dict.fromkeys(form for word in of for form in forms_of(word))) if key == "lemma" else of
    found = [(texts.words, texts.words.folded(words))]
    signs = texts.tokens.folded(words)
    signs = signs[texts.has_signs[signs]]  # `'s` is a token and no word
    return [*found, (texts.tokens, signs)] if len(signs) else found


def _union(found: list[Places]) -> Places:
    return found[0] if len(found) == 1 else distinct(np.concatenate(found))


def _in_columns(chosen: list[tuple[Column, Codes]]) -> Callable[[Places], Flags]:
    masks = []
    for column, codes in chosen:
        mask = np.zeros(len(column.strings), dtype=np.bool_)
        mask[codes] = True
        masks.append((column.codes, mask))

    def at(places: Places) -> Flags:
        codes, mask = masks[0]
        found = mask[codes[places]]
        for codes, mask in masks[1:]:
            found |= mask[codes[places]]
        return found

    return at


def _words_or_pieces(of: Sequence[str], texts: Texts) -> Callable[[Places], Flags]:
    def mask(without: str) -> Flags:
        """[strings]: those of any of the classes, one of the two left out."""
        some = [texts.of_class(name) for name in of if name != without]
        return np.any([np.zeros(len(texts.tokens.strings), dtype=np.bool_), *some], axis=0)

    if_begins, if_continues = mask(CONTINUES_WORD), mask(BEGINS_WORD)

    def at(places: Places) -> Flags:
        codes = texts.tokens.codes[places]
        return np.where(texts.continues[places], if_continues[codes], if_begins[codes])

    return at


def _regex_at(pattern: str, texts: Texts, places: Places) -> Flags:
    found = texts.tokens.matching(pattern, texts.tokens.codes[places])
    left = np.flatnonzero(~found)
    left = left[texts.word_differs[places[left]]]
    found[left] = texts.words.matching(pattern, texts.words.codes[places[left]])
    return found


# --- what stands around a token ---------------------------------------------------------------------------------------


def _left(test: Test, within: int, texts: Texts) -> _Finder:
    tested = _test(test, texts)
    at = tested.at

    def is_right_of() -> Flags:
        """[tokens]: from the places where the test holds to those at their right."""
        found = tested.places()
        room = texts.starts[1:][texts.text_of[found]] - found
        is_right = np.zeros(texts.n_tokens, dtype=np.bool_)
        for distance in range(1, within + 1):
            is_right[found[room > distance] + distance] = True
        return is_right

    def left(places: Places) -> Flags:
        if tested.size < len(places):
            return is_right_of()[places]
        if len(places) * within > 2 * texts.n_tokens:
            running = np.concatenate([[0], np.cumsum(at(_all(texts)))])
            from_ = np.maximum(places - within, texts.starts[texts.text_of[places]])
            return running[places] > running[from_]
        found = np.zeros(len(places), dtype=np.bool_)
        room = texts.place[places]
        for distance in range(1, within + 1):
            asked = np.flatnonzero(~found & (room >= distance))
            if not len(asked):
                break
            found[asked] = at(places[asked] - distance)
        return found

    if tested.size * within < texts.n_tokens:
        return _Finder(tested.size * within, lambda: np.flatnonzero(is_right_of()), left, 3)
    return _dense(left, texts, 3)


def _topic(test: Test, least: int, texts: Texts) -> Flags:
    """[texts]: in which of them enough different matches stand."""
    if isinstance(test, Strings):
        places, matches = _matches_of_words(test, texts)
    else:
        places = np.flatnonzero(_test(test, texts).at(_all(texts)))
        matches = texts.tokens.fold_numbers[texts.tokens.codes[places]]
    n_matches = int(matches.max(initial=0)) + 1
    different = distinct(texts.text_of[places].astype(np.int64) * n_matches + matches)
    found: Flags = np.bincount(different // n_matches, minlength=len(texts)) >= least
    return found


def _matches_of_words(test: Strings, texts: Texts) -> tuple[Places, NDArray[np.int64]]:
    """Where the whole words stand, and which of the words of the list each is."""
    places, matches = [], []
    for number, word in enumerate(test.of):
        for column, codes in _columns(test.key, [word], texts):
            found = column.places(codes)
            if column is texts.words:
                found = found[texts.ends_word[found]]
            places.append(found)
            matches.append(np.full(len(found), number, dtype=np.int64))
    return np.concatenate(places), np.concatenate(matches)
