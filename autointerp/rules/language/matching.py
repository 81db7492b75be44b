"""Where clauses hold in many texts, in time linear in the texts whatever the clauses are.

What a clause asks of a token by itself it asks of the different forms of tokens (form_tests.py), which is one question
to the text. The rarest of its questions gives the places that are looked at; the others are asked there only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autointerp.rules.language.conditions import (
    MAX_CLAUSES,
    Classes,
    Clause,
    Combine,
    Inside,
    Left,
    Near,
    Not,
    Regex,
    Starts,
    Strings,
    Test,
    Topic,
)
from autointerp.rules.language.form_tests import FormTest, forms_with, words_of
from autointerp.rules.language.groups import Codes, Flags, Places, distinct, flagged, ranges
from autointerp.rules.language.token_texts import Texts

_FEW = 8
"""Places are put in order one by one where they are less than one in so many tokens."""
_CLAUSES = MAX_CLAUSES.bit_length()
"""Bits of the number of a clause, where a place and a clause are one number."""
_NONE: Places = np.zeros(0, dtype=np.intp)


def holds(clause: Clause, texts: Texts) -> Flags:
    """[tokens]: where the clause holds."""
    found = np.zeros(texts.n_tokens, dtype=np.bool_)
    found[places_of(clause, texts)] = True
    return found


def places_of(clause: Clause, texts: Texts) -> Places:
    """The tokens on which the clause holds, each once, in no order."""
    if not texts.n_tokens:
        return _NONE
    of_forms: list[FormTest | Not] = []
    finders: list[_Finder] = []
    for condition in clause.conditions:
        match condition:
            case Strings() | Classes() | Regex() | Near() | Not(Strings() | Classes() | Regex() | Near()):
                of_forms.append(condition)
            case Not(inner):
                finders.append(_without(_finder(inner, texts), texts))
            case _:
                finders.append(_finder(condition, texts))
    if of_forms:
        finders.append(_of_forms(of_forms, texts))
    rarest = min(finders, key=lambda one: one.size)
    places = rarest.places()
    for finder in sorted(finders, key=lambda one: one.cost):
        if finder is not rarest and len(places):
            places = places[finder.at(places)]
    return places


def predicted_of(clauses: Sequence[Clause], combine: Combine, texts: Texts) -> tuple[Places, NDArray[np.float64]]:
    """(the tokens on which any clause holds, ascending; what the clauses predict there together)."""
    if combine == "max":  # the strongest clause comes last, and so counts
        clauses = sorted(clauses, key=lambda clause: clause.strength)
    found: list[Places] = []
    for clause in clauses:
        found.append(places_of(clause, texts))
        if sum(map(len, found)) * _FEW > texts.n_tokens:
            others = (places_of(clause, texts) for clause in clauses[len(found) :])
            return _predicted_on_many(chain(found, others), clauses, combine, texts.n_tokens)
    return _predicted_on_few(found, clauses, combine)


def _predicted_on_few(
    found: Sequence[Places], clauses: Sequence[Clause], combine: Combine
) -> tuple[Places, NDArray[np.float64]]:
    """`predicted_of`, where the clauses hold on the places that were `found`."""
    strengths = np.array([clause.strength for clause in clauses])
    joint = np.sort(np.concatenate([places << _CLAUSES | i for i, places in enumerate([_NONE, *found], -1)]))
    places, numbers = joint >> _CLAUSES, joint & ((1 << _CLAUSES) - 1)
    first = np.flatnonzero(np.diff(places, prepend=-1))
    sizes = np.diff(first, append=len(places))
    if combine == "max":
        return places[first], strengths[numbers[first + sizes - 1]]
    predicted = strengths[numbers[first]]
    for i in range(1, int(sizes.max(initial=0))):  # in the order of the clauses, as everywhere
        more = np.flatnonzero(sizes > i)
        predicted[more] += strengths[numbers[first[more] + i]]
    return places[first], predicted


def _predicted_on_many(
    found: Iterable[Places], clauses: Sequence[Clause], combine: Combine, n: int
) -> tuple[Places, NDArray[np.float64]]:
    last = np.zeros(n, dtype=np.uint8)
    """[tokens]: the number of the last clause that holds on each, from 1."""
    predicted = np.zeros(n if combine == "sum" else 0)
    for number, (clause, places) in enumerate(zip(clauses, found, strict=True), 1):
        last[places] = number
        if combine == "sum":
            predicted[places] += clause.strength
    held = flagged(last != 0)
    if combine == "sum":
        return held, predicted[held]
    return held, np.array([0.0, *(clause.strength for clause in clauses)])[last[held]]


def patterns_of(clauses: Iterable[Clause]) -> Iterator[str]:
    """The regular expressions that the clauses ask about."""
    for condition in (one for clause in clauses for one in clause.conditions):
        positive = condition.condition if isinstance(condition, Not) else condition
        test = positive.test if isinstance(positive, Left | Topic) else positive
        if isinstance(test, Regex):
            yield test.pattern


class _Finder(NamedTuple):
    """One question to the texts, ready to be asked."""

    size: int
    """On how many tokens the answer is yes, or a larger number where that is not known."""
    places: Callable[[], Places]
    at: Callable[[Places], Flags]
    """Whether it is on each of some tokens."""
    cost: int
    """Questions that cost less are asked first."""


def _finder(condition: Left | Starts | Inside | Topic | FormTest, texts: Texts) -> _Finder:
    match condition:
        case Left(test, within):
            return _left(test, within, texts)
        case Starts(of):
            return _starts(of, texts)
        case Inside(of):
            flags = [texts.inside(what) for what in of]
            return _dense(flags[0] if len(flags) == 1 else np.any(flags, axis=0), texts.n_tokens)
        case Topic(test, least):
            return _topic(test, least, texts)
        case _:
            return _of_forms([condition], texts)


def _without(positive: _Finder, texts: Texts) -> _Finder:
    return _Finder(texts.n_tokens + 1, _nowhere, lambda places: ~positive.at(places), positive.cost)


def _nowhere() -> Places:
    raise ValueError("a clause needs a condition that is no negation")


def _dense(flags: Flags, size: int) -> _Finder:
    return _Finder(size, lambda: flagged(flags), flags.__getitem__, 1)


def _of_forms(conditions: Sequence[FormTest | Not], texts: Texts) -> _Finder:
    form_of, forms = texts.form_of, forms_with(conditions, texts.forms)

    def at(places: Places) -> Flags:
        is_one = np.zeros(len(texts.forms), dtype=np.bool_)
        is_one[forms] = True
        return is_one[form_of[places]]

    return _Finder(int(texts.by_form.counts(forms).sum()), lambda: texts.by_form.places(forms), at, 1)


# --- what stands around a token ---------------------------------------------------------------------------------------


def _starts(of: Sequence[str], texts: Texts) -> _Finder:
    if len(of) == 1:
        places = texts.starts_of(of[0])
        return _Finder(len(places), lambda: places, texts.is_start_of(of[0]).__getitem__, 1)
    flags = np.any([texts.is_start_of(what) for what in of], axis=0)
    return _dense(flags, int(np.count_nonzero(flags)))


def _left(test: Test, within: int, texts: Texts) -> _Finder:
    """Where the test holds on one of the `within` tokens before."""
    forms = forms_with([test], texts.forms)
    size, n = int(texts.by_form.counts(forms).sum()), texts.n_tokens
    # Rules share few words, but they share classes, and those are on many tokens.
    where = lambda: texts.where(forms, test if isinstance(test, Classes | Regex) else None)  # noqa: E731
    is_few = size * within * 3 < n * 2
    known: list[Flags] = []

    def places() -> Places:
        if size * within * 16 > n:
            return flagged(everywhere())
        found = texts.by_form.places(forms)
        return distinct(ranges(found + 1, _room(found, within, texts)))

    def everywhere() -> Flags:
        if not known:
            found = texts.by_form.places(forms) if is_few else _NONE
            known.append(_right_of_few(found, within, texts) if is_few else _is_right_of(where(), within, texts))
        return known[0]

    def at(places: Places) -> Flags:
        if known or size < len(places) or len(places) * within * 3 > n:
            return everywhere()[places]
        is_tested = where()
        found = np.zeros(len(places), dtype=np.bool_)
        for distance in range(1, within + 1):
            found |= is_tested[places - distance]
        near = np.flatnonzero(texts.reach[places] < within)  # these looked into the text before
        reach, found[near] = texts.reach[places[near]], False
        for distance in range(1, within):
            found[near] |= is_tested[places[near] - distance] & (reach >= distance)
        return found

    return _Finder(size * within if is_few else n, places, at, 3)


def _room(places: Places, within: int, texts: Texts) -> Codes:
    """How many tokens follow in the text, up to `within`."""
    return np.minimum(texts.starts[1:][texts.text_of[places]] - places - 1, within)


def _right_of_few(found: Places, within: int, texts: Texts) -> Flags:
    """[tokens]: whether one of the places is at most `within` before."""
    right = np.zeros(texts.n_tokens, dtype=np.bool_)
    room = _room(found, within, texts)
    whole, cut = found[room == within], room < within
    for distance in range(1, within + 1):
        right[whole + distance] = True
    right[ranges(found[cut] + 1, room[cut])] = True
    return right


def _is_right_of(is_found: Flags, within: int, texts: Texts) -> Flags:
    """[tokens]: whether something was found on one of the `within` tokens before. Twice as many tokens are looked at
    in each step."""
    right = np.zeros(len(is_found), dtype=np.bool_)
    right[1:] = is_found[:-1] & (texts.reach[1:] >= 1)
    seen = 1
    while seen < within:
        step = min(seen, within - seen)
        right[step:] |= right[:-step] & (texts.reach[step:] >= step)
        seen += step
    return right


def _topic(test: Test, least: int, texts: Texts) -> _Finder:
    """Where enough different matches stand in the text."""
    if isinstance(test, Strings):
        places, matches = _matches_of_words(test, texts)
    else:
        places = texts.by_form.places(forms_with([test], texts.forms))
        matches = texts.forms.tokens.fold_numbers[texts.token_of[places]]
    of = texts.text_of[places]
    if least > 1:
        n_matches = int(matches.max(initial=0)) + 1
        of = distinct(of * n_matches + matches) // n_matches
    is_about: Flags = np.bincount(of, minlength=len(texts)) >= least
    about = np.flatnonzero(is_about)
    first, sizes = texts.starts[about], texts.starts[about + 1] - texts.starts[about]
    return _Finder(int(sizes.sum()), lambda: ranges(first, sizes), lambda places: is_about[texts.text_of[places]], 0)


def _matches_of_words(test: Strings, texts: Texts) -> tuple[Places, Codes]:
    """Where the whole words stand, and which of the words of the list each is."""
    forms = texts.forms
    meant = [(word, number) for number, one in enumerate(test.of) for word in words_of(test.key, one)]
    found, numbers = [], []
    for by, index, is_word in (
        (forms.by_word, forms.words.by_folded, True), (forms.by_token, forms.signs, False),
    ):  # fmt: skip
        pairs = [(code, number) for word, number in meant for code in index.get(word, ())]
        if not pairs and not is_word:
            continue
        codes, of = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
        of_list = by.places(codes)
        number = np.repeat(np.repeat(of, by.counts(codes)), texts.by_form.counts(of_list))
        places = texts.by_form.places(of_list)
        if is_word:
            is_whole = texts.ends_word[places]
            places, number = places[is_whole], number[is_whole]
        found.append(places)
        numbers.append(number)
    return np.concatenate(found), np.concatenate(numbers)
