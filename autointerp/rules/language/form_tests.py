"""On which forms of tokens those conditions hold that ask of a token by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autointerp.rules.language.classes import BEGINS_WORD, CONTINUES_WORD
from autointerp.rules.language.conditions import Classes, Near, Not, Positive, Regex, Strings, Test
from autointerp.rules.language.forms import Forms
from autointerp.rules.language.groups import Codes, Flags, distinct
from autointerp.rules.language.inflections import forms_of

FormTest = Test | Near
"""What can be asked of a form."""


def forms_with(conditions: Sequence[FormTest | Not], forms: Forms) -> Codes:
    """The forms on which all of the conditions hold, each once. Conditions that cost less are asked first, and the
    others only of what is left."""
    if all(isinstance(_positive(one), Classes | Regex) for one in conditions):  # rules share these
        return forms.found(tuple(conditions), lambda: _found(conditions, forms))
    return _found(conditions, forms)


def _found(conditions: Sequence[FormTest | Not], forms: Forms) -> Codes:
    first, *others = sorted(conditions, key=_cost)
    if isinstance(first, Strings | Near):
        found = _of_strings(first, forms)
    else:
        found = np.flatnonzero(_at(first, slice(len(forms)), forms))
    for condition in others:
        found = found[_at(condition, found, forms)]
    return found


def _positive(condition: FormTest | Not) -> Positive:
    return condition.condition if isinstance(condition, Not) else condition


def _cost(condition: FormTest | Not) -> float:
    match condition:
        case Strings("prefix" | "suffix", of):
            return 1.0 / min(map(len, of))  # few words begin with many letters
        case Strings() | Near():
            return 0.0
        case Classes():
            return 2.0
        case Not(Regex()) | Regex():
            return 4.0
        case _:
            return 3.0


def _at(condition: FormTest | Not, codes: Codes | slice, forms: Forms) -> Flags:
    """Whether the condition holds on each of some forms."""
    match condition:
        case Not(Strings() | Classes() | Regex() | Near() as inner):
            return ~_at(inner, codes, forms)
        case Strings("prefix", of):
            return forms.words.with_prefix(of)[forms.word_of[codes]]
        case Strings("suffix", of):
            return forms.words.with_suffix(of)[forms.word_of[codes]]
        case Strings() | Near():
            is_one = np.zeros(len(forms), dtype=np.bool_)
            is_one[_of_strings(condition, forms)] = True
            return is_one[codes]
        case Classes(of):
            return forms.kept(condition, lambda codes: _of_classes(of, codes, forms))[codes]
        case Regex(pattern) if forms.expects(pattern):
            return forms.kept(condition, lambda codes: _matches(pattern, codes, forms))[codes]
        case Regex(pattern):
            return _matches(pattern, np.arange(len(forms))[codes], forms)
        case _:
            raise TypeError(f"{type(condition).__name__} cannot be asked of a token by itself")


def _of_strings(test: Strings | Near, forms: Forms) -> Codes:
    if isinstance(test, Near):
        return _of_words(test.words, forms)
    match test.key:
        case "token":
            return forms.by_token.places(_codes(test.of, forms.tokens.by_folded))
        case "exact":
            return forms.by_token.places(_codes(test.of, forms.tokens.by_exact))
        case "prefix":
            return forms.by_word.places(np.flatnonzero(forms.words.with_prefix(test.of)))
        case "suffix":
            return forms.by_word.places(np.flatnonzero(forms.words.with_suffix(test.of)))
        case "word":
            return _of_words(test.of, forms)
        case "lemma":
            return _of_words(list(dict.fromkeys(form for word in test.of for form in words_of("lemma", word))), forms)


def _of_words(words: Sequence[str], forms: Forms) -> Codes:
    found = forms.by_word.places(_codes(words, forms.words.by_folded))
    signs = _codes(words, forms.signs)
    return distinct(np.concatenate([found, forms.by_token.places(signs)])) if len(signs) else found


def words_of(key: str, word: str) -> Sequence[str]:
    """The words that a word of a list stands for."""
    return sorted(forms_of(word)) if key == "lemma" else (word,)


def _of_classes(of: Sequence[str], codes: Codes, forms: Forms) -> Flags:
    tokens, continues = forms.token_of[codes], forms.continues[codes]
    found = np.zeros(len(codes), dtype=np.bool_)
    for name in of:
        is_one = forms.of_class(name)[tokens]
        if name == BEGINS_WORD:
            is_one &= ~continues
        elif name == CONTINUES_WORD:
            is_one &= continues
        found |= is_one
    return found


def _matches(pattern: str, codes: Codes, forms: Forms) -> Flags:
    found = forms.tokens.matches.of(pattern, forms.token_of[codes])
    left = np.flatnonzero(~found & forms.word_differs(codes))
    found[left] = forms.words.matches.of(pattern, forms.word_of[codes[left]])
    return found


def _codes(strings: Sequence[str], index: Mapping[str, Sequence[int]]) -> Codes:
    return np.array([code for one in strings for code in index.get(one, ())], dtype=np.intp)
