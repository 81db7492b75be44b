"""The words by which the tokens are named on which a feature fires: a word, a part of words with some of its words, a
word with what stands before it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from autointerp.rules.occurrences import Occurrences, is_blank, is_part, with_words
from autointerp.rules.patterns import Key
from autointerp.rules.token_facts import START, Facts, folded
from autointerp.rules.token_names import is_word, listed, quoted, token_name
from autointerp.rules.word_forms import are_forms, families

RATE = 2.0
"""Mean activation, 0..10, from which on a word tells when the feature fires."""
LEAST_SHARE = 0.015
PAIR_SHARE = 0.03
PART_FROM = 0.7
"""A token that is part of a longer word in this share of its places, and of its documents, is shown with some of those
words."""
EXTRA_FROM = 0.5
"""The same where it is named beside the main ones: alone, a part that is seen as often in words would mislead."""
WHOLE_DOCUMENTS = 0.5
"""If that is one and the same word, and this share of the documents hold it there, the token is named by the word."""
BEFORE_SHARE = 0.1
BEFORES_SHOWN = 3
"""How many of the words before one and the same word are shown, and the least share of each."""


@dataclass(frozen=True)
class Unit:
    """A word, a part of words, or a pair of words on which the feature fires."""

    name: str
    share: float
    shown: str
    """The name in backticks, a part of words with some of its words, a word of pairs with what stands before it."""
    is_pair: bool
    as_extra: str
    """How it is shown beside the main ones: with some of its words where it is part of words more often than not."""
    documents: frozenset[int]


def is_plain(unit: Unit) -> bool:
    """Whether it is a word, and neither part of one nor a pair."""
    return unit.name.isalpha() and len(unit.name) > 1 and unit.shown == quoted(unit.name)


# --- which words tell ------------------------------------------------------------------------------------------------


def telling_words(active: Occurrences) -> tuple[set[str], set[tuple[str, str]]]:
    """The words, and the pairs of a word and the one before it, that tell when the feature fires."""
    facts, y, weights = active.sample.facts, active.sample.activations.tolist(), active.sample.weights.tolist()
    common = active.shares(lambda i: facts[i].folded)[:60]
    known = {s.value for s in common if s.share >= LEAST_SHARE and not is_blank(s.value)}
    by_word: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    by_pair: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for fact, value, weight in zip(facts, y, weights, strict=True):
        if fact.folded in known:
            for sums in (by_word[fact.folded], by_pair[folded(fact.before), fact.folded]):
                sums[0] += weight * value
                sums[1] += weight
    singles = {word for word, (total, n) in by_word.items() if total / (n + 1.0) >= RATE}
    left = active.where(lambda i: facts[i].folded in known - singles)
    whole = sum(active.weights) or 1.0
    mass: dict[tuple[str, str], float] = defaultdict(float)
    for i, weight in zip(left.at, left.weights, strict=True):
        mass[folded(facts[i].before), facts[i].folded] += weight / whole
    pairs = {
        pair
        for pair, share in mass.items()
        if share >= PAIR_SHARE and pair[0] != START and not is_blank(pair[0])
        and by_pair[pair][0] / (by_pair[pair][1] + 1.0) >= RATE
    }  # fmt: skip
    return singles, pairs


def is_one(fact: Facts, singles: Collection[str], pairs: Collection[tuple[str, str]]) -> bool:
    return fact.folded in singles or (folded(fact.before), fact.folded) in pairs


def keys_of(fact: Facts, singles: Collection[str]) -> tuple[Key]:
    """What a token counts as: itself, or itself with the one before it."""
    return ((fact.folded,) if fact.folded in singles else (folded(fact.before), fact.folded),)


# --- how they are named ----------------------------------------------------------------------------------------------


def namer(here: Occurrences, singles: Collection[str]) -> Callable[[int], str]:
    """How the token at a place is named: the word that it is part of, or itself."""
    wholes = _wholes(here)

    def name(i: int) -> str:
        fact = here.fact(i)
        if fact.folded in singles:
            return wholes.get(fact.folded, fact.token.strip())
        return pair_end(here, i, singles) or _segment_at(here, i)

    return name


def pair_end(here: Occurrences, i: int, singles: Collection[str]) -> str | None:
    """The token where it tells only after the one before it; None where it tells by itself or goes on with a word, so
    that the word names both."""
    fact = here.fact(i)
    goes_on = is_part(here, i) and is_word(fact.before) and not fact.token[0].isspace()
    return None if fact.folded in singles or goes_on else fact.token.strip()


def units_of(here: Occurrences, singles: Collection[str]) -> list[Unit]:
    """What the active tokens are named by, heaviest first."""
    wholes = {word.lower() for word in _wholes(here).values()}
    name = namer(here, singles)
    documents: dict[str, set[int]] = defaultdict(set)
    for i in here.at:
        documents[name(i).lower()].add(int(here.sample.documents[i]))
    found = []
    for share in here.shares(name, str.lower)[:30]:
        own = here.where(lambda i, value=share.value: name(i).lower() == value)  # type: ignore[misc]
        paired = own.where(lambda i: pair_end(here, i, singles) is not None)
        is_pair = sum(paired.weights) >= 0.5 * sum(own.weights)
        in_words = _share_in_words(here, share.value) if share.value in singles and share.value not in wholes else 0.0
        if is_pair:
            shown = _after_its_befores(share.shown, paired)
        elif in_words >= PART_FROM:
            shown = with_words(share, here, 3)
        else:
            shown = quoted(share.shown)
        as_extra = with_words(share, here, 2) if not is_pair and EXTRA_FROM <= in_words < PART_FROM else shown
        found.append(Unit(share.shown, share.share, shown, is_pair, as_extra, frozenset(documents[share.value])))
    return found


def _after_its_befores(name: str, paired: Occurrences) -> str:
    befores = paired.befores()
    told = [s for s in befores[:BEFORES_SHOWN] if s.share >= BEFORE_SHARE] or befores[:1]
    return f"{quoted(name)} after {listed([token_name(s.shown) for s in told], 'or')}"


def _share_in_words(here: Occurrences, token: str) -> float:
    """In which share of its places, or of its documents where that is less, a token is part of a longer word. Where it
    is a word itself, its forms do not count."""
    own = here.where(lambda i: here.fact(i).folded == token)
    parts = own.where(lambda i: is_part(own, i))
    if len(parts.at) < len(own.at):
        parts = parts.where(lambda i: not are_forms(token, own.sample.words[i].lower()))
    documents, of_parts = ({int(here.sample.documents[i]) for i in some.at} for some in (own, parts))
    return min(sum(parts.weights) / (sum(own.weights) or 1.0), len(of_parts) / max(1, len(documents)))


def _wholes(here: Occurrences) -> dict[str, str]:
    """For tokens that are parts of one and the same word in most places and most documents, that word."""
    parts = here.where(lambda i: is_part(here, i))
    every, of_parts = _by_token(here, lambda i: ""), _by_token(parts, lambda i: _segment_at(here, i))
    found: dict[str, str] = {}
    for token, words in of_parts.items():
        word, (weight, documents) = max(words.items(), key=lambda item: (item[1].weight, item[0]))
        whole = every[token][""]
        if weight >= PART_FROM * whole.weight and len(documents) >= WHOLE_DOCUMENTS * len(whole.documents):
            found[token] = word
    return found


class _Held(NamedTuple):
    weight: float
    documents: frozenset[int]


def _by_token(of: Occurrences, value: Callable[[int], str]) -> dict[str, dict[str, _Held]]:
    """The weight and the documents of each token, apart for each value."""
    found: dict[str, dict[str, _Held]] = defaultdict(lambda: defaultdict(lambda: _Held(0.0, frozenset())))
    for i, weight in zip(of.at, of.weights, strict=True):
        held = found[of.fact(i).folded]
        before = held[value(i)]
        held[value(i)] = _Held(before.weight + weight, before.documents | {int(of.sample.documents[i])})
    return found


def _segment_at(of: Occurrences, i: int) -> str:
    return _segment(of.sample.words[i], of.fact(i).token.strip())


def _segment(word: str, token: str) -> str:
    """The piece between underscores in which the token stands: `FER` in `ENTITY_REFERENCE_NODE` is part of
    `REFERENCE`."""
    return next((segment for segment in word.split("_") if token in segment), word)


def families_of(units: Sequence[Unit]) -> list[list[Unit]]:
    """The units in groups of forms of one word, the heaviest group first."""
    by_name = {unit.name: unit for unit in units}
    groups = [[by_name[name] for name in family] for family in families(list(by_name))]
    return sorted(groups, key=share_of_all, reverse=True)


def share_of_all(family: Sequence[Unit]) -> float:
    return sum(unit.share for unit in family)
