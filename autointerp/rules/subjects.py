"""The subjects of a label, each with the place that is said of it.

A place stands at the end of a list and is read of all of it, so it is said there only if it holds for each one. Where
it holds for one alone, that one comes last, after a comma: 'the word `health`, and `h` after `</`'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autointerp.rules.occurrences import Occurrences
from autointerp.rules.places import place_of
from autointerp.rules.token_facts import Facts
from autointerp.rules.token_names import listed

Test = Callable[[Facts], bool]
OWN_DOCUMENTS = 3
"""One of several subjects has a place of its own only if it is active in this many documents."""
MOST_PARTS = 2
"""A list that places would cut into more parts than this is hard to read: then no place is said."""


@dataclass(frozen=True)
class Subject:
    """A word, a token, or a group of tokens that a label names."""

    text: str
    members: Test
    """Whether a token with these facts is one of it."""
    is_word: bool = False
    """Whether it is a plain word, and neither part of one, a sign, a pair nor a group."""
    is_pair: bool = False
    """Whether the text says what stands before it."""
    examples: tuple[Test, ...] = ()
    """Which tokens its examples are, where the text gives examples."""


def with_places(subjects: Sequence[Subject], active: Occurrences, silent: Occurrences) -> str:
    """The subjects in words, with the place of them all. Where their place does not hold for each one, it is said of
    those that have it."""
    here = [_of(active, subject.members) for subject in subjects]
    examples = [_of(active, test) for subject in subjects for test in subject.examples]
    every = _any([subject.members for subject in subjects])
    tokens, there = _of(active, every), _of(silent, every)
    says_before = any(subject.is_pair for subject in subjects)
    none = [""] * len(subjects)
    if not place_of(tokens, there, silent, says_before=says_before):
        return _joined(subjects, none)
    place = place_of(tokens, there, silent, each=here, examples=examples, says_before=says_before)
    if place or len(subjects) == 1:
        return _joined(subjects, none, "" if _names_again(subjects[-1].text, place) else place)
    own = [_own_place(subject, active, silent) for subject in subjects]
    return _joined(subjects, own if len(_parts(subjects, own)) <= MOST_PARTS else none)


def _names_again(text: str, place: str) -> bool:
    """Whether a place only names once more what the text ends with: '`:` after `try`' stands on lines that begin with
    `try`."""
    return "`" in place and text.endswith(f" `{place.partition('`')[2]}")


def _own_place(subject: Subject, active: Occurrences, silent: Occurrences) -> str:
    """The place of one of several subjects. A pair has said what stands before it, and that is enough."""
    here = _of(active, subject.members)
    if subject.is_pair or here.n_documents < OWN_DOCUMENTS:
        return ""
    examples = [_of(active, test) for test in subject.examples]
    return place_of(here, _of(silent, subject.members), silent, examples=examples, most=1)


def _of(tokens: Occurrences, test: Test) -> Occurrences:
    return tokens.where(lambda i: test(tokens.fact(i)))


def _any(tests: Sequence[Test]) -> Test:
    return lambda fact: any(test(fact) for test in tests)


def _parts(subjects: Sequence[Subject], places: Sequence[str]) -> list[tuple[list[Subject], str]]:
    """The subjects that share a place, those without one first. A pair is a part of its own, since what it says of the
    token before it would be read of others."""
    parts: list[tuple[list[Subject], str]] = []
    for subject, place in sorted(zip(subjects, places, strict=True), key=lambda item: (item[0].is_pair, item[1] != "")):
        same = next((some for some, of in parts if of == place and not some[0].is_pair), None)
        if same is None or subject.is_pair:
            parts.append(([subject], place))
        else:
            same.append(subject)
    return parts


def _joined(subjects: Sequence[Subject], places: Sequence[str], place_of_all: str = "") -> str:
    parts = _parts(subjects, places)
    texts = [f"{listed([subject.text for subject in some])}{place}" for some, place in parts]
    first = parts[0][0]
    if all(subject.is_word for subject in first):
        texts[0] = f"the {'word' if len(first) == 1 else 'words'} {texts[0]}"
    if len(texts) == 1:
        return f"{texts[0]}{place_of_all}"
    whole = f"{', '.join(texts[:-1])}, and {texts[-1]}"
    return f"{whole}, {'both' if len(subjects) == 2 else 'all'}{place_of_all}" if place_of_all else whole
