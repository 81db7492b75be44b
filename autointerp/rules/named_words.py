"""The words that a feature fires on, as its label names them.

A word tells when the feature fires only if it does fire where the word stands: `of` may be active in a tenth of all
contexts of a feature and still say nothing. So what is named is words with a high mean activation in ordinary text; a
common word is named with what stands before it (`of` after `out` or `because`) where the pair has such a mean. Parts
of words are shown as their words, and forms of one word together. Words that hold little of what the feature fires on
are left out, unless their meaning is near to that of the main ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import compress

from autointerp.rules.near import NearWords
from autointerp.rules.occurrences import Occurrences
from autointerp.rules.patterns import Key, Rule
from autointerp.rules.subjects import Subject
from autointerp.rules.token_facts import Facts
from autointerp.rules.token_names import quoted
from autointerp.rules.word_forms import are_forms
from autointerp.rules.word_units import (
    Unit,
    families_of,
    is_one,
    is_plain,
    keys_of,
    namer,
    share_of_all,
    telling_words,
    units_of,
)  # fmt: skip

WORDS_SHOWN = 6
"""Words of a label, forms of one word counted once."""
MAIN_SHARE = 0.12
"""Forms of one word that hold this share of the named weight are a subject of the label."""
LESSER_SHARE = 0.08
NEAR_SHARE = 0.03
"""The least share of the named weight that is named beside the main ones, and that of words near to a named one: these
tell what it is about."""
LEAST_DOCUMENTS = 2
"""What stands in fewer is an accident of one text."""
EXAMPLES = 5
EXAMPLE_SHARE = 0.03
"""Words that are named as examples, and the least share of the named weight of each."""
FORMS_SHOWN = 4
RELATED_SHOWN = 3
RELATED_WEIGHT = 0.35
"""A word near to the named ones is a related word if the rule gives it this share of the largest weight."""


@dataclass(frozen=True)
class Named:
    """What the words of a feature are called."""

    main: list[Subject]
    """The main ones."""
    others: str
    """The lesser ones and related words; '' where there are none."""
    examples: list[Subject]
    """The heaviest ones that are plain words, each with its forms."""
    related: str
    """The related words; '' where there are none."""
    share: float
    """The share of the active weight that all words hold that tell, named or not."""
    shown: float
    """The share of the active weight that the named words hold."""
    largest: float
    """The largest share that forms of one word hold."""
    are_words: bool
    """Whether the main ones are plain words, and neither parts of words nor signs."""
    tells: Callable[[Facts], bool]
    """Whether a token with these facts tells when the feature fires."""
    words: list[str]
    """The names of all words that tell."""

    @property
    def says_before(self) -> bool:
        """Whether what stands before a main one is said."""
        return any(subject.is_pair for subject in self.main)


def named_words(active: Occurrences, rule: Rule, near: NearWords) -> Named | None:
    """None where no word tells when the feature fires."""
    singles, pairs = telling_words(active)
    if not singles and not pairs:
        return None
    here = active.where(lambda i: is_one(active.fact(i), singles, pairs))
    whole = sum(active.weights) or 1.0
    units = units_of(here, singles)
    covered = sum(here.weights) / whole
    groups = families_of(units)
    wide = _wide(groups)
    main, lesser = _main(wide, near)
    subject = _subjects(here, singles)
    names = [unit.name for unit in units]
    related = _related(rule, near, [*singles, *names])
    return Named(
        main=[subject(family) for family in main],
        others=_others(lesser, related),
        examples=[subject(f) for f in wide if is_plain(f[0]) and (f in main or _is_example(f))][:EXAMPLES],
        related=_others([], related),
        share=covered,
        shown=covered * sum(map(share_of_all, [*main, *lesser])),
        largest=covered * max(map(share_of_all, groups)),
        are_words=all(is_plain(family[0]) for family in main),
        tells=lambda fact: is_one(fact, singles, pairs),
        words=names,
    )


def _subjects(here: Occurrences, singles: Collection[str]) -> Callable[[Sequence[Unit]], Subject]:
    """What makes a subject of forms of one word."""
    name = namer(here, singles)
    keys: dict[str, set[Key]] = defaultdict(set)
    for i in here.at:
        keys[name(i).lower()].update(keys_of(here.fact(i), singles))

    def subject(family: Sequence[Unit]) -> Subject:
        own = frozenset[Key]().union(*(keys[unit.name.lower()] for unit in family))
        ends = {key[-1] for key in own}
        return Subject(
            _family(family),
            lambda fact: fact.folded in ends and not own.isdisjoint(keys_of(fact, singles)),
            is_word=is_plain(family[0]),
            is_pair=family[0].is_pair,
        )

    return subject


def _is_example(family: Sequence[Unit]) -> bool:
    return share_of_all(family) >= EXAMPLE_SHARE


def _wide(groups: list[list[Unit]]) -> list[list[Unit]]:
    """The groups that more than one document holds, where any does."""
    wide = [g for g in groups if _is_wide(g)]
    return wide or groups


def _is_wide(family: Sequence[Unit]) -> bool:
    return len(frozenset[int]().union(*(unit.documents for unit in family))) >= LEAST_DOCUMENTS


def _as_extra(family: Sequence[Unit]) -> list[Unit]:
    return [replace(unit, shown=unit.as_extra) for unit in family]


def _main(groups: list[list[Unit]], near: NearWords) -> tuple[list[list[Unit]], list[list[Unit]]]:
    """The heaviest groups, which are the subject of the label, and the lesser ones that are shown: those with a real
    share, and those that are near to one that is shown."""
    n = sum(share_of_all(family) >= MAIN_SHARE for family in groups[:WORDS_SHOWN]) or min(3, len(groups))
    kept = [share_of_all(family) >= LESSER_SHARE or at < n for at, family in enumerate(groups)]
    while True:
        close = {
            other for family in compress(groups, kept) for unit in family for other, _ in near.of(unit.name.lower())
        }
        grown = [
            held or (share_of_all(family) >= NEAR_SHARE and any(unit.name.lower() in close for unit in family))
            for held, family in zip(kept, groups, strict=True)
        ]
        if grown == kept:
            lesser = list(compress(groups, kept))[n:]
            return groups[:n], [_as_extra(f) for f in lesser if _is_wide(f)][: max(0, WORDS_SHOWN - n)]
        kept = grown


def _others(lesser: Sequence[list[Unit]], related: Sequence[str]) -> str:
    parts = [", ".join(_family(family) for family in lesser)] if lesser else []
    if related:
        parts.append(f"related words ({', '.join(quoted(word) for word in related)})")
    return f"also {' and '.join(parts)}" if parts else ""


def _family(family: Sequence[Unit]) -> str:
    if len(family) == 1:
        return family[0].shown
    first = family[0]
    names = [
        first.shown if first.is_pair else quoted(first.name),
        *(quoted(unit.name) for unit in family[1:FORMS_SHOWN]),
    ]
    return f"{names[0]} ({', '.join(names[1:])})"


def _related(rule: Rule, near: NearWords, named: list[str]) -> list[str]:
    """Words to which the rule gives a high weight and that are near to a named one, but neither named nor a form of
    one."""
    tables = [table.weights for table in rule.tables if table.of == ("folded",)]
    weights = {word: weight for table in tables for (word,), weight in table.items()}
    least = RELATED_WEIGHT * max(weights.values(), default=0.0)
    close = {other for word in named for other, _ in near.of(word.lower())}
    found: list[str] = []
    for word, weight in sorted(weights.items(), key=lambda item: -item[1]):
        fits = weight >= least and word in close and word.isalpha() and len(word) > 2
        if fits and not any(are_forms(word, held.lower()) for held in [*named, *found]):
            found.append(word)
    return found[:RELATED_SHOWN]
